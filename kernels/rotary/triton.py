"""The rotary position embedding in Triton: a program turns the heads of one token."""

import triton
import triton.language as tl

from penstock.kernels.rotary import Problem, Rotated
from penstock.kernels.triton_support import on_device


def block(size: int) -> int:
    """The block that holds the heads of a token, or half of a head."""
    return 1 << max(size - 1, 0).bit_length()


def rotary(problem: Problem) -> Rotated:
    q, k, turned = problem.q, problem.k, problem.empty()
    tokens, head_dim = problem.cos.shape
    if tokens and head_dim:
        with on_device(q):
            kernel[(tokens,)](
                *(q, k, *turned, problem.cos, problem.sin, *q.stride()[:2], *k.stride()[:2]),
                Q_HEADS=q.shape[1],
                K_HEADS=k.shape[1],
                Q_BLOCK=block(q.shape[1]),
                K_BLOCK=block(k.shape[1]),
                HALF=head_dim // 2,
                HALF_BLOCK=block(head_dim // 2),
                TRANSPOSED=problem.transposed,
            )
    return turned


@triton.jit
def _rotate(
    x,  # the token's heads, (HEADS, 2 HALF), `head_stride` apart
    head_stride,
    out,  # the same, dense
    cos,  # the token's angles, (2 HALF,)
    sin,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    head, column = tl.arange(0, BLOCK), tl.arange(0, HALF_BLOCK)
    in_half = column < HALF
    c1 = tl.load(cos + column, mask=in_half, other=0.0)[None, :]
    c2 = tl.load(cos + HALF + column, mask=in_half, other=0.0)[None, :]
    s1 = tl.load(sin + column, mask=in_half, other=0.0)[None, :]
    s2 = tl.load(sin + HALF + column, mask=in_half, other=0.0)[None, :]
    inside = (head < HEADS)[:, None] & in_half[None, :]
    at = x + head.to(tl.int64)[:, None] * head_stride + column[None, :]
    x1 = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    if TRANSPOSED:
        y1, y2 = x1 * c1 + x2 * s2, x2 * c2 - x1 * s1
    else:
        y1, y2 = x1 * c1 - x2 * s1, x2 * c2 + x1 * s2
    to = out + head[:, None] * (2 * HALF) + column[None, :]
    tl.store(to, y1.to(out.dtype.element_ty), mask=inside)
    tl.store(to + HALF, y2.to(out.dtype.element_ty), mask=inside)


@triton.jit
def kernel(
    q,  # (tokens, Q_HEADS, 2 HALF), by its strides; k with K_HEADS
    k,
    q_out,  # dense, as k_out
    k_out,
    cos,  # (tokens, 2 HALF), as sin
    sin,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    cos += token * (2 * HALF)
    sin += token * (2 * HALF)
    q_out += token * (Q_HEADS * 2 * HALF)
    k_out += token * (K_HEADS * 2 * HALF)
    q += token * q_token_stride
    k += token * k_token_stride
    _rotate(q, q_head_stride, q_out, cos, sin, Q_HEADS, Q_BLOCK, HALF, HALF_BLOCK, TRANSPOSED)
    _rotate(k, k_head_stride, k_out, cos, sin, K_HEADS, K_BLOCK, HALF, HALF_BLOCK, TRANSPOSED)
