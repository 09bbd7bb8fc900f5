"""The rotary position embedding of queries and keys, in one operation: `rotary`.

The reference and torch's own operations are in plain.py, C++ is reached by kernels/cpu.py, Triton is in triton.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from penstock.kernels import checks, dispatch
from penstock.kernels.operation import Operation, Rows
from penstock.kernels.precision import accumulate_dtype


class Problem(NamedTuple):
    """x cos + rotate_half(x) sin for q and for k, with rotate_half((x1, x2)) = (-x2, x1) on the halves of a head.

    Attributes:
        q: (tokens, heads, head_dim). k: of its dtype, may have another number of heads.
        cos, sin: (tokens, head_dim), in `accumulate_dtype`.
        transposed: takes gradients back: x cos + rotate_half^T(x sin), and rotate_half^T is -rotate_half.
    """

    q: Rows
    k: Rows
    cos: Tensor
    sin: Tensor
    transposed: bool

    def empty(self) -> "Rotated":
        return Rotated(self.q.new_empty(self.q.shape), self.k.new_empty(self.k.shape))


class Rotated(NamedTuple):
    """q and k rotated, rounded once to their dtype."""

    q: Tensor
    k: Tensor


def _backward(grad_q: Tensor, grad_k: Tensor, cos: Tensor, sin: Tensor, transposed: bool, backend: str) -> Rotated:
    """The transposed rotation, which is the operation again."""
    return _operation.from_backward(grad_q, grad_k, cos, sin, not transposed, backend)


dispatch.register("rotary", "triton", "penstock.kernels.rotary.triton")
dispatch.register("rotary", "cpu", "penstock.kernels.cpu")
dispatch.register("rotary", "torch", "penstock.kernels.rotary.plain:Torch")
dispatch.register("rotary", "reference", "penstock.kernels.rotary.plain")

_forms = {"q": "tokens, heads, q.shape[2] // 2 * 2", "k": "tokens, kv_heads, q.shape[2]"}
_forms |= {"cos sin": "tokens, q.shape[2]: wide"}
_operation = Operation("rotary", Problem, Rotated, forms=_forms, backward=_backward, twice=True)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated by the angles of their tokens: x cos + rotate_half(x) sin, as in transformers.

    rotate_half((x1, x2)) = (-x2, x1) on the halves of a head. Views, such as slices of one
    product for q, k and v, are read in place.

    Args:
        q: (tokens, heads, head_dim), float16, bfloat16, float32 or float64.
        k: (tokens, kv_heads, head_dim), same dtype. Either may have 0 heads.
        cos, sin: (tokens, head_dim), floating point. They get no gradient.
    Returns:
        q and k rotated, dense, computed in float32 (float64 for float64) and rounded once to their dtype.
    Raises:
        TypeError, ValueError: an argument is wrong, or an angle asks for a gradient; the message names it.
        RuntimeError: the backend that `use_backend` forces cannot serve the call.
    """
    _check(q, k, cos, sin)
    backend = dispatch.choose("rotary", device_type=q.device.type, dtype=q.dtype)
    wide = accumulate_dtype(q.dtype)
    return _operation.call(q, k, cos.to(wide), sin.to(wide), False, backend)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"q must be float16, bfloat16, float32 or float64, got {q.dtype}")
    if k.dtype != q.dtype:
        raise TypeError(f"k is {k.dtype}, q is {q.dtype}")
    for name, x in (("q", q), ("k", k)):
        if x.ndim != 3:
            raise ValueError(f"{name} must have shape (tokens, heads, head_dim), got {tuple(x.shape)}")
    tokens, _, head_dim = q.shape
    if head_dim % 2:
        raise ValueError(f"head_dim must be even, got {head_dim}")
    if k.shape[0] != tokens or k.shape[2] != head_dim or k.device != q.device:
        raise ValueError(
            f"k must have shape ({tokens}, kv_heads, {head_dim}) on {q.device}, got {tuple(k.shape)} on {k.device}"
        )
    for name, angle in (("cos", cos), ("sin", sin)):
        if angle.shape != (tokens, head_dim) or angle.device != q.device:
            raise ValueError(
                f"{name} must have shape ({tokens}, {head_dim}) on {q.device}, "
                f"got {tuple(angle.shape)} on {angle.device}"
            )
        checks.floating(name, angle)
        if angle.requires_grad:
            raise ValueError(f"{name} requires a gradient, but rotary gives none to its angles: detach it")
