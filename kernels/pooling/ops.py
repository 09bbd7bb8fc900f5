"""`penstock::segment_pool` as torch sees it, and the public function."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import dispatch, transforms
from penstock.kernels.autocast import without_autocast
from penstock.kernels.pooling import reference
from penstock.kernels.pooling import torch as torch_backend
from penstock.kernels.pooling import triton as triton_backend
from penstock.kernels.pooling.protocol import MODES, saved_shape
from penstock.kernels.ragged import check_cu_seqlens, check_cu_seqlens_form

dispatch.register_modules("segment_pool", triton=triton_backend, torch=torch_backend, reference=reference)


def segment_pool(
    values: Tensor, cu_seqlens: Tensor, mode: str, scores: Tensor | None = None, *, bidirectional: bool = False
) -> Tensor:
    """Turns each sequence of a ragged batch into one vector; an empty sequence gives 0.

    Args:
        values: (tokens, features), floating point.
        cu_seqlens: int32, (batch + 1,).
        mode: "max" of each feature (ties: the first token has the gradient; a NaN is the maximum), "mean", "last", or
            "attention", the sum of values weighted by the softmax of `scores` within the sequence.
        scores: (tokens,) or (tokens, 1), floating point; for "attention" only.
        bidirectional: for "last" only: the second half of the features belongs to a reverse direction, whose last
            step is the first token.
    Returns:
        (batch, features), in the dtype of values. Sums are made in float32 (float64 for float64 values).
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. The contents of cu_seqlens are checked on a
            CPU always, on a GPU if PENSTOCK_DEBUG is set.
        RuntimeError: the backend that `use_backend` forces cannot serve the call.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if not values.is_floating_point():
        raise TypeError(f"values must be floating point, got {values.dtype}")
    if values.ndim != 2:
        raise ValueError(f"values must have shape (tokens, features), got {tuple(values.shape)}")
    check_cu_seqlens_form("cu_seqlens", cu_seqlens, values.device)
    if (mode == "attention") != (scores is not None):
        raise ValueError(f"scores must be given for mode 'attention' and for no other, the mode is {mode!r}")
    if scores is not None:
        if scores.ndim == 2 and scores.shape[1] == 1:
            scores = scores[:, 0]
        if scores.shape != values.shape[:1]:
            raise ValueError(f"scores must have shape ({values.shape[0]},), got {tuple(scores.shape)}")
        if not scores.is_floating_point():
            raise TypeError(f"scores must be floating point, got {scores.dtype}")
        if scores.device != values.device:
            raise ValueError(f"scores is on {scores.device}, values is on {values.device}")
    if bidirectional and values.shape[1] % 2:
        raise ValueError(f"values has {values.shape[1]} features, which do not split into two directions")
    backend = dispatch.choose("segment_pool", device_type=values.device.type, dtype=values.dtype, mode=mode)
    out, _ = _operation(values, scores, cu_seqlens, mode, bidirectional, backend)
    return out


torch.library.define(
    "penstock::segment_pool",
    "(Tensor values, Tensor? scores, Tensor cu_seqlens, str mode, bool bidirectional, str backend)"
    " -> (Tensor out, Tensor saved)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::segment_pool_backward",
    "(Tensor grad_out, Tensor? values, Tensor? scores, Tensor saved, Tensor cu_seqlens, SymInt tokens, str mode, "
    "bool bidirectional, str backend) -> (Tensor d_values, Tensor d_scores)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("penstock::segment_pool", "default")
def _forward(
    values: Tensor, scores: Tensor | None, cu_seqlens: Tensor, mode: str, bidirectional: bool, backend: str
) -> tuple[Tensor, Tensor]:
    check_cu_seqlens("cu_seqlens", cu_seqlens, values.shape[0], values.shape[0])
    implementation = dispatch.implementation("segment_pool", backend)
    with without_autocast(values.device.type):
        return implementation.forward(values.contiguous(), scores, cu_seqlens, mode, bidirectional)


@torch.library.register_fake("penstock::segment_pool")
def _fake_forward(
    values: Tensor, scores: Tensor | None, cu_seqlens: Tensor, mode: str, bidirectional: bool, backend: str
) -> tuple[Tensor, Tensor]:
    batch_size = cu_seqlens.shape[0] - 1
    shape, dtype = saved_shape(values, batch_size, mode)
    return values.new_empty(batch_size, values.shape[1]), values.new_empty(shape, dtype=dtype)


@torch.library.impl("penstock::segment_pool_backward", "default")
def _backward(
    grad_out: Tensor,
    values: Tensor | None,
    scores: Tensor | None,
    saved: Tensor,
    cu_seqlens: Tensor,
    tokens: int,
    mode: str,
    bidirectional: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    implementation = dispatch.implementation("segment_pool", backend)
    with without_autocast(grad_out.device.type):
        return implementation.backward(grad_out.contiguous(), values, saved, cu_seqlens, tokens, mode, bidirectional)


@torch.library.register_fake("penstock::segment_pool_backward")
def _fake_backward(
    grad_out: Tensor,
    values: Tensor | None,
    scores: Tensor | None,
    saved: Tensor,
    cu_seqlens: Tensor,
    tokens: int,
    mode: str,
    bidirectional: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return grad_out.new_empty(tokens, grad_out.shape[1]), saved.new_empty(tokens if mode == "attention" else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, scores, cu_seqlens, mode, bidirectional, backend = inputs
    _, saved = output
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)  # else zeros are made for what has no gradient
    ctx.save_for_backward(values if mode == "attention" else None, scores, saved, cu_seqlens)
    ctx.arguments = values.shape[0], mode, bidirectional, backend
    ctx.scores_dtype = None if scores is None else scores.dtype


def _differentiate(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 6
    values, scores, saved, cu_seqlens = ctx.saved_tensors
    d_values, d_scores = transforms.call(
        torch.ops.penstock.segment_pool_backward.default, grad_out, values, scores, saved, cu_seqlens, *ctx.arguments
    )
    return d_values, None if ctx.scores_dtype is None else d_scores.to(ctx.scores_dtype), None, None, None, None


def _plain(
    values: Tensor, scores: Tensor | None, cu_seqlens: Tensor, mode: str, bidirectional: bool, backend: str
) -> tuple[Tensor, Tensor]:
    transforms.check_readable("cu_seqlens", cu_seqlens)
    check_cu_seqlens("cu_seqlens", cu_seqlens, values.shape[0], values.shape[0])
    with without_autocast(values.device.type):
        return reference.segment_pool(values, cu_seqlens, mode, scores, bidirectional), values.new_empty(0)


def _plain_backward(
    grad_out: Tensor,
    values: Tensor | None,
    scores: Tensor | None,
    saved: Tensor,
    cu_seqlens: Tensor,
    tokens: int,
    mode: str,
    bidirectional: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """`saved` holds the softmax of the scores, made again here so that it can be differentiated."""
    with without_autocast(grad_out.device.type):
        if scores is not None:
            saved = reference.softmax(scores, cu_seqlens, saved.dtype)
        return reference.backward(grad_out, values, saved, cu_seqlens, tokens, mode, bidirectional)


_operation = transforms.register("segment_pool", _plain, _setup_context, _differentiate)
transforms.register("segment_pool_backward", _plain_backward)
