"""Each sequence of a ragged batch turned into one vector, in one operation: `segment_pool`.

The reference and torch's own operations are in plain.py, Triton is in triton.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from penstock.kernels import dispatch
from penstock.kernels.operation import Operation
from penstock.kernels.precision import accumulate_dtype
from penstock.kernels.ragged import check_cu_seqlens, check_cu_seqlens_form

MODES = ("max", "mean", "last", "attention")


class Problem(NamedTuple):
    """values (tokens, features), scores (tokens,), present exactly if the mode is "attention"."""

    values: Tensor
    scores: Tensor | None
    cu_seqlens: Tensor
    mode: str
    bidirectional: bool

    @property
    def tokens(self) -> int:
        return self.values.shape[0]

    @property
    def attended(self) -> Tensor | None:
        """The values, if backward needs them."""
        return self.values if self.mode == "attention" else None

    def check(self) -> None:
        tokens = self.values.shape[0]
        check_cu_seqlens("cu_seqlens", self.cu_seqlens, tokens, tokens)

    def empty(self) -> "Results":
        batch = self.cu_seqlens.shape[0] - 1
        return Results(self.values.new_empty(batch, self.values.shape[1]), empty_saved(self.values, batch, self.mode))


class Results(NamedTuple):
    """(batch, features), and what backward needs: the row of each maximum (max; any where the sequence is empty), the
    weight of each token (attention), or nothing."""

    out: Tensor
    saved: Tensor


def empty_saved(values: Tensor, batch: int, mode: str) -> Tensor:
    """What forward saves for backward, uninitialised."""
    if mode == "max":
        return values.new_empty(batch, values.shape[1], dtype=torch.int32)
    if mode == "attention":
        return values.new_empty(values.shape[0], dtype=accumulate_dtype(values.dtype))
    return values.new_empty(0)


class Backward(NamedTuple):
    """As in Problem and Results; `attended` holds the values exactly if the mode is "attention"."""

    grad_out: Tensor
    attended: Tensor | None
    scores: Tensor | None
    saved: Tensor
    cu_seqlens: Tensor
    tokens: int
    mode: str
    bidirectional: bool

    def empty(self) -> "Gradients":
        scores = self.saved.new_empty(self.tokens) if self.mode == "attention" else None
        return Gradients(self.grad_out.new_empty(self.tokens, self.grad_out.shape[1]), scores)


class Gradients(NamedTuple):
    """(tokens, features), in the dtype of the output's gradient; (tokens,), in that of `saved`, if there are scores."""

    values: Tensor
    scores: Tensor | None


dispatch.register("segment_pool", "triton", "penstock.kernels.pooling.triton")
dispatch.register("segment_pool", "torch", "penstock.kernels.pooling.plain:Torch")
dispatch.register("segment_pool", "reference", "penstock.kernels.pooling.plain")

_forms = {"grad_out": "batch, features", "attended": "tokens, features", "scores": "tokens: any"}
_forms |= {"saved": "...: any", "cu_seqlens": "batch + 1: int32"}
_backward = Operation("segment_pool_backward", Backward, Gradients, forms=_forms)
_forms = {"values": "tokens, features", "scores": "tokens: any", "cu_seqlens": "bounds: int32"}
_operation = Operation("segment_pool", Problem, Results, forms=_forms, backward=_backward, twice=True)


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
    if bidirectional and mode != "last":
        raise ValueError(f"bidirectional is for mode 'last' alone, the mode is {mode!r}")
    if bidirectional and values.shape[1] % 2:
        raise ValueError(f"values has {values.shape[1]} features, which do not split into two directions")
    backend = dispatch.choose("segment_pool", device_type=values.device.type, dtype=values.dtype, mode=mode)
    out, _ = _operation.call(values, scores, cu_seqlens, mode, bidirectional, backend)
    return out
