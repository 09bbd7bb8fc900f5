"""Scaled dot-product attention within each sequence of a ragged batch, in one operation: `varlen_attention`.

The reference is in plain.py, torch's own operations are in tiles.py; C++ (csrc/attention/cpu) is reached by cpu.py, and
Triton by triton.py, which launches what is in triton_kernels.py.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from penstock.kernels import checks, dispatch, philox, triton_support
from penstock.kernels.autocast import autocast_dtype, cast
from penstock.kernels.operation import Operation, Rows
from penstock.kernels.precision import accumulate_dtype
from penstock.kernels.ragged import check_cu_seqlens, check_cu_seqlens_form


class Problem(NamedTuple):
    """One call.

    Attributes:
        q: (total_q, heads, head_dim). k, v: (total_k, kv_heads, head_dim), of the same dtype. Query head h reads kv
            head h // (heads // kv_heads).
        cu_seqlens_q, cu_seqlens_k: int32, (batch + 1,).
        max_seqlen_q, max_seqlen_k: upper bounds of the lengths, on the host.
        scale: multiplies q k^T.
        window_left, window_right: with `shift = length_k - length_q`, query i sees the keys from
            i + shift - window_left to i + shift + window_right; -1 is unbounded. Causal is window_right = 0.
        dropout_p: probability of dropping an attention weight; 0 whenever it rounds to nothing.
        seed: int64 scalar, ids: int64, (batch,), on the device of q; both present exactly if dropout_p > 0.
            Head h drops the weight of key j for query i of example b by the rule of `philox.py` for attention weights,
            with example id = ids[b] (i and j count from their sequence's start).
    """

    q: Rows
    k: Rows
    v: Rows
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    scale: float
    window_left: int
    window_right: int
    dropout_p: float
    seed: Tensor | None
    ids: Tensor | None

    def check(self) -> None:
        if self.dropout_p > 0:
            philox.check_there(self.ids, self.seed)
        check_cu_seqlens("cu_seqlens_q", self.cu_seqlens_q, self.q.shape[0], self.max_seqlen_q)
        same = self.max_seqlen_k == self.max_seqlen_q and self.k.shape[0] == self.q.shape[0]
        if not same or self.cu_seqlens_k is not self.cu_seqlens_q:
            check_cu_seqlens("cu_seqlens_k", self.cu_seqlens_k, self.k.shape[0], self.max_seqlen_k)

    def empty(self) -> "Results":
        tokens, heads, _ = self.q.shape
        lse = self.q.new_empty((heads, tokens), dtype=accumulate_dtype(self.q.dtype))
        return Results(self.q.new_empty(self.q.shape), lse)


class Results(NamedTuple):
    """out, shaped as q and of its dtype, and lse, (heads, total_q), in `accumulate_dtype`.

    lse is the natural logarithm of the sum of exp(scale * q k^T) over the visible keys, before dropout. A query that
    sees no key has out 0 and lse +inf, so that exp(score - lse) is 0.
    """

    out: Tensor
    lse: Tensor


class Backward(NamedTuple):
    """As in Problem and Results."""

    grad_out: Tensor
    q: Rows
    k: Rows
    v: Rows
    out: Tensor
    lse: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    scale: float
    window_left: int
    window_right: int
    dropout_p: float
    seed: Tensor | None
    ids: Tensor | None

    def check(self) -> None:
        if self.dropout_p > 0:
            philox.check_there(self.ids, self.seed)

    def forward(self) -> Problem:
        """What was asked for in forward."""
        return Problem(**{name: getattr(self, name) for name in Problem._fields})

    def empty(self) -> "Gradients":
        return Gradients(*(x.new_empty(x.shape) for x in (self.q, self.k, self.v)))


class Gradients(NamedTuple):
    """In the dtype of q."""

    q: Tensor
    k: Tensor
    v: Tensor


def _differentiable_backward(problem: Backward) -> Gradients:
    """From q, k and v alone: torch can differentiate it in all of its arguments."""
    from penstock.kernels.attention import plain

    def forward(*qkv: Tensor) -> Tensor:
        return plain.varlen_attention(problem.forward()._replace(q=qkv[0], k=qkv[1], v=qkv[2])).out

    pull_back = torch.func.vjp(forward, problem.q, problem.k, problem.v)[1]
    return Gradients(*pull_back(problem.grad_out))


def _why_not_triton(*, head_dim: int, **facts: Any) -> str | None:
    too_wide = f"its head_dim goes to 256, not {head_dim}" if head_dim > 256 else None
    return triton_support.why_not(**facts) or too_wide


dispatch.register("varlen_attention", "triton", "penstock.kernels.attention.triton", _why_not_triton)
dispatch.register("varlen_attention", "cpu", "penstock.kernels.attention.cpu")
dispatch.register("varlen_attention", "torch", "penstock.kernels.attention.tiles")
dispatch.register("varlen_attention", "reference", "penstock.kernels.attention.plain")

_forms = {"k v": "keys, kv_heads, head_dim", "q": "queries, q.shape[1] // kv_heads * kv_heads, head_dim"}
_forms |= {"cu_seqlens_q cu_seqlens_k": "bounds: int32", "ids": "bounds - 1: int64", "seed": "...: int64"}
_of_results = {"grad_out out": "queries, q.shape[1], head_dim", "lse": "q.shape[1], queries: wide"}
_backward = Operation(
    "varlen_attention_backward", Backward, Gradients, forms=_forms | _of_results, plain=_differentiable_backward
)
_operation = Operation("varlen_attention", Problem, Results, forms=_forms, backward=_backward, twice=True)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    ids: Tensor | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention within each sequence of a ragged batch: dropout(softmax(scale * q k^T)) v.

    Args:
        q: (total_q, heads, head_dim), float16, bfloat16, float32 or float64.
        k, v: (total_k, kv_heads, head_dim), same dtype; query head h reads kv head h // (heads // kv_heads).
        cu_seqlens_q, cu_seqlens_k: int32, (batch + 1,), sequence b's queries and keys; either may have none.
        max_seqlen_q, max_seqlen_k: upper bounds of the lengths.
        dropout_p: probability of dropping an attention weight. The caller passes 0 in evaluation.
        softmax_scale: multiplies q k^T; head_dim ** -0.5 if None.
        causal: query i sees no key behind it, the last query being aligned with the last key as in FlashAttention 2.
        window: (left, right), how many keys before and after its own place a query sees; -1, or more than there can
            be, is unbounded.
        ids: int64, (batch,), names the examples for dropout; their place in the batch if None.
        seed: int64 scalar, the key of dropout; drawn from torch's generator if None.
    Returns:
        (total_q, heads, head_dim), in the dtype of q; 0 for a query that sees no key. Under autocast q, k and v are
        cast to the autocast dtype (float64 excepted).
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. The values of cu_seqlens are checked on a
            CPU always, on a GPU if PENSTOCK_DEBUG is set.
        RuntimeError: the backend that `use_backend` forces cannot serve the call.
    """
    device_type = q.device.type
    dtype = autocast_dtype(q)
    if dtype is not None:
        q, k, v = cast(q, dtype), cast(k, dtype), cast(v, dtype)
    _check(q, k, v, cu_seqlens_q, cu_seqlens_k, ids, seed)
    max_seqlen_q = checks.integer("max_seqlen_q", max_seqlen_q, 0)
    max_seqlen_k = checks.integer("max_seqlen_k", max_seqlen_k, 0)
    window_left, window_right = _check_window(window)
    dropout_p = checks.real("dropout_p", dropout_p)
    scale = q.shape[2] ** -0.5 if softmax_scale is None else checks.real("softmax_scale", softmax_scale)
    if causal:
        window_right = 0
    if philox.threshold(dropout_p) == 0:
        dropout_p, seed, ids = 0.0, None, None
    else:
        seed = philox.new_seed(q.device) if seed is None else seed
        ids = torch.arange(cu_seqlens_q.shape[0] - 1, dtype=torch.int64, device=q.device) if ids is None else ids
    backend = dispatch.choose(
        "varlen_attention", device_type=device_type, dtype=q.dtype, head_dim=q.shape[2], dropout=dropout_p > 0
    )
    out, _ = _operation.call(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        scale,
        window_left,
        window_right,
        dropout_p,
        seed,
        ids,
        backend,
    )
    return out


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    ids: Tensor | None,
    seed: Tensor | None,
) -> None:
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"q must be float16, bfloat16, float32 or float64, got {q.dtype}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3:
            raise ValueError(f"{name} must have shape (tokens, heads, head_dim), got {tuple(x.shape)}")
        if x.dtype != q.dtype:
            raise TypeError(f"{name} is {x.dtype}, q is {q.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, q is on {q.device}")
        if x.shape[2] != q.shape[2]:
            raise ValueError(f"{name} has head_dim {x.shape[2]}, q has {q.shape[2]}")
    if k.shape[:2] != v.shape[:2]:
        raise ValueError(f"k has shape {tuple(k.shape)}, v has {tuple(v.shape)}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1] != 0:
        raise ValueError(f"q's {q.shape[1]} heads must be a multiple of the {k.shape[1]} heads of k and v")
    if q.shape[2] == 0:
        raise ValueError("q has head_dim 0")
    check_cu_seqlens_form("cu_seqlens_q", cu_seqlens_q, q.device)
    check_cu_seqlens_form("cu_seqlens_k", cu_seqlens_k, q.device)
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_q holds {cu_seqlens_q.shape[0] - 1} sequences, cu_seqlens_k {cu_seqlens_k.shape[0] - 1}"
        )
    checks.seed(seed, q.device)
    checks.ids(ids, cu_seqlens_q.shape[0] - 1, q.device)


def _check_window(window: tuple[int, int]) -> list[int]:
    """A bound as large as int32, in which places are counted, is none: its sum with a place might overflow."""
    if len(window) != 2:
        raise ValueError(f"window must be two integers of at least -1, got {window}")
    bounds = [checks.integer("window", bound, -1) for bound in window]
    return [-1 if bound >= torch.iinfo(torch.int32).max else bound for bound in bounds]
