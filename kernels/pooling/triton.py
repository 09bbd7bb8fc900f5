"""Pooling in Triton: how the kernels of `triton_kernels.py` are launched."""

from torch import Tensor

from penstock.kernels.pooling.protocol import saved_shape
from penstock.kernels.triton_support import on_device, why_not

BLOCK = 128  # features

__all__ = ["backward", "forward", "why_not"]


def _half(features: int, mode: str, bidirectional: bool) -> int:
    return features // 2 if mode == "last" and bidirectional else features


def forward(
    values: Tensor, scores: Tensor | None, cu_seqlens: Tensor, mode: str, bidirectional: bool
) -> tuple[Tensor, Tensor]:
    from penstock.kernels.pooling.triton_kernels import forward_kernel

    (tokens, features), batch = values.shape, cu_seqlens.shape[0] - 1
    shape, dtype = saved_shape(values, batch, mode)
    out, saved = values.new_empty(batch, features), values.new_empty(shape, dtype=dtype)
    scores = None if scores is None else scores.contiguous()
    if batch and features:
        with on_device(values):
            forward_kernel[batch, -(-features // BLOCK)](
                *(values, scores, out, saved, cu_seqlens, tokens, _half(features, mode, bidirectional)),
                FEATURES=features,
                BLOCK=BLOCK,
                MODE=mode,
            )
    return out, saved


def backward(
    grad_out: Tensor,
    values: Tensor | None,
    saved: Tensor,
    cu_seqlens: Tensor,
    tokens: int,
    mode: str,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    from penstock.kernels.pooling.triton_kernels import backward_kernel, scores_backward_kernel

    batch, features = grad_out.shape
    d_values = grad_out.new_empty(tokens, features)
    d_scores = saved.new_empty(tokens if mode == "attention" else 0)
    if tokens and features:
        with on_device(grad_out):
            backward_kernel[batch, -(-features // BLOCK)](
                *(grad_out, saved, d_values, cu_seqlens, tokens, _half(features, mode, bidirectional)),
                FEATURES=features,
                BLOCK=BLOCK,
                MODE=mode,
            )
            if mode == "attention":
                assert values is not None
                scores_backward_kernel[(batch,)](
                    *(grad_out, values, saved, d_scores, cu_seqlens, tokens), FEATURES=features, BLOCK=BLOCK
                )
    return d_values, d_scores
