"""The rotary position embedding in Triton: how the kernel of `triton_kernels.py` is launched."""

from torch import Tensor

from penstock.kernels.triton_support import on_device, why_not

__all__ = ["block", "rotate", "why_not"]


def block(size: int) -> int:
    """The block that holds the heads of a token, or half of a head."""
    return 1 << max(size - 1, 0).bit_length()


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    from penstock.kernels.rotary.triton_kernels import kernel

    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    tokens, head_dim = cos.shape
    if tokens and head_dim:
        with on_device(q):
            kernel[(tokens,)](
                *(q, k, q_out, k_out, cos, sin, *q.stride()[:2], *k.stride()[:2]),
                Q_HEADS=q.shape[1],
                K_HEADS=k.shape[1],
                Q_BLOCK=block(q.shape[1]),
                K_BLOCK=block(k.shape[1]),
                HALF=head_dim // 2,
                HALF_BLOCK=block(head_dim // 2),
                TRANSPOSED=transposed,
            )
    return q_out, k_out
