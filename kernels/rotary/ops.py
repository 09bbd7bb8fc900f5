"""`penstock::rotary` as torch sees it, and the public function."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import dispatch, transforms
from penstock.kernels.autocast import without_autocast
from penstock.kernels.precision import accumulate_dtype
from penstock.kernels.rotary import cpu, reference
from penstock.kernels.rotary import torch as torch_backend
from penstock.kernels.rotary import triton as triton_backend

dispatch.register_modules("rotary", triton=triton_backend, cpu=cpu, torch=torch_backend, reference=reference)

torch.library.define(
    "penstock::rotary",
    "(Tensor q, Tensor k, Tensor cos, Tensor sin, bool transposed, str backend) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


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
    return _operation(q, k, cos.to(wide), sin.to(wide), False, backend)


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
        if angle.requires_grad:
            raise ValueError(f"{name} requires a gradient, but rotary gives none to its angles: detach it")


def _last_stride_one(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.impl("penstock::rotary", "default")
def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, transposed: bool, backend: str) -> tuple[Tensor, Tensor]:
    implementation = dispatch.implementation("rotary", backend)
    with without_autocast(q.device.type):
        return implementation.rotate(
            _last_stride_one(q), _last_stride_one(k), cos.contiguous(), sin.contiguous(), transposed
        )


@torch.library.register_fake("penstock::rotary")
def _fake(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, cos, sin, ctx.transposed, ctx.backend = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
    """The transposed rotation, which is the operation again."""
    q, k = transforms.call(
        torch.ops.penstock.rotary.default, grad_q, grad_k, *ctx.saved_tensors, not ctx.transposed, ctx.backend
    )
    return q, k, None, None, None, None


def _plain(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, transposed: bool, backend: str) -> tuple[Tensor, Tensor]:
    with without_autocast(q.device.type):
        return reference.rotate(q, k, cos, sin, transposed)


_operation = transforms.register("rotary", _plain, _setup_context, _differentiate)
