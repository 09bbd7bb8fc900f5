"""Reproducible dropout over a ragged batch: the mask of `philox.py`, whatever the batch around a sequence."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import cpu_here, philox
from penstock.kernels.cpu_here import native
from penstock.kernels.ragged import check_cu_seqlens

torch.library.define(
    "penstock::keep_mask",
    "(Tensor cu_seqlens, SymInt tokens, float p, Tensor seed, int stream, Tensor? ids, SymInt units, bool per_sequence)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::dropout",
    "(Tensor x, Tensor cu_seqlens, float p, Tensor seed, int stream, Tensor? ids, bool per_sequence) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def keep_mask(
    cu_seqlens: Tensor,
    tokens: int,
    p: float,
    seed: Tensor,
    stream: int,
    ids: Tensor | None,
    units: int,
    per_sequence: bool = False,
) -> Tensor:
    """True where a unit is kept; bool, (tokens, units).

    Args:
        cu_seqlens: int32, (batch + 1,). tokens: what it ends with. p: the probability of dropping a unit.
        seed: int64 scalar. stream: tells apart the places of a model that drop (a layer's number), 0 to 2^32 - 1.
        ids: int64, (batch,), the examples' names; their places in the batch if None.
        per_sequence: the same units at every token of a sequence (variational dropout).
    """
    return torch.ops.penstock.keep_mask(cu_seqlens, tokens, p, seed, stream, ids, units, per_sequence)


def dropout(
    x: Tensor,
    cu_seqlens: Tensor,
    p: float,
    seed: Tensor,
    stream: int,
    ids: Tensor | None = None,
    per_sequence: bool = False,
) -> Tensor:
    """Drops each element of x, (tokens, units), with probability p and scales the rest; arguments as of `keep_mask`."""
    if philox.threshold(p) == 0:
        return x
    return torch.ops.penstock.dropout(x, cu_seqlens, p, seed, stream, ids, per_sequence)


def _plain_keep_mask(
    cu_seqlens: Tensor,
    tokens: int,
    p: float,
    seed: Tensor,
    stream: int,
    ids: Tensor | None,
    units: int,
    per_sequence: bool,
) -> Tensor:
    batch = cu_seqlens.shape[0] - 1
    ids = torch.arange(batch, device=cu_seqlens.device) if ids is None else ids
    rows = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens[1:], rows, right=True).clamp(max=max(batch - 1, 0))
    if per_sequence:
        return philox.keep_mask(seed, ids, torch.zeros_like(ids), stream, units, p)[sequence]
    return philox.keep_mask(seed, ids[sequence], rows - cu_seqlens[sequence], stream, units, p)


def _cpu_keep_mask(
    cu_seqlens: Tensor,
    tokens: int,
    p: float,
    seed: Tensor,
    stream: int,
    ids: Tensor | None,
    units: int,
    per_sequence: bool,
) -> Tensor:
    if native is None:
        return _plain_keep_mask(cu_seqlens, tokens, p, seed, stream, ids, units, per_sequence)
    check_cu_seqlens("cu_seqlens", cu_seqlens, tokens, tokens)
    cu_seqlens, ids = cu_seqlens.contiguous(), None if ids is None else ids.contiguous()
    mask = torch.empty(tokens, units, dtype=torch.bool)
    native.keep_mask(
        cu_seqlens=cu_seqlens.data_ptr(),
        batch=cu_seqlens.shape[0] - 1,
        ids=0 if ids is None else ids.data_ptr(),
        seed=int(seed) & 0xFFFFFFFFFFFFFFFF,
        stream=stream,
        units=units,
        threshold=philox.threshold(p),
        per_sequence=per_sequence,
        out=mask.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return mask


def _fake_keep_mask(
    cu_seqlens: Tensor,
    tokens: int,
    p: float,
    seed: Tensor,
    stream: int,
    ids: Tensor | None,
    units: int,
    per_sequence: bool,
) -> Tensor:
    return cu_seqlens.new_empty(tokens, units, dtype=torch.bool)


torch.library.impl("penstock::keep_mask", "default", _plain_keep_mask)
torch.library.impl("penstock::keep_mask", "cpu", _cpu_keep_mask)
torch.library.register_fake("penstock::keep_mask", _fake_keep_mask)


def _plain_dropout(
    x: Tensor, cu_seqlens: Tensor, p: float, seed: Tensor, stream: int, ids: Tensor | None, per_sequence: bool
) -> Tensor:
    return x * keep_mask(cu_seqlens, x.shape[0], p, seed, stream, ids, x.shape[1], per_sequence) * philox.scale(p)


def _cpu_dropout(
    x: Tensor, cu_seqlens: Tensor, p: float, seed: Tensor, stream: int, ids: Tensor | None, per_sequence: bool
) -> Tensor:
    """One pass in C++ (csrc/rowwise/cpu), without a mask in memory."""
    if native is None or cpu_here.why_not(device_type="cpu", dtype=x.dtype):
        return _plain_dropout(x, cu_seqlens, p, seed, stream, ids, per_sequence)
    (rows, width), batch = x.shape, cu_seqlens.shape[0] - 1
    check_cu_seqlens("cu_seqlens", cu_seqlens, rows, rows)
    x, cu_seqlens, ids = x.contiguous(), cu_seqlens.contiguous(), None if ids is None else ids.contiguous()
    out = torch.empty_like(x)
    arguments: dict[str, Any] = {"bfloat16": x.dtype == torch.bfloat16, "rows": rows, "width": width, "batch": batch}
    arguments |= {"seed": int(seed) & 0xFFFFFFFFFFFFFFFF, "stream": stream, "per_sequence": per_sequence}
    arguments |= {"dropout_threshold": philox.threshold(p), "dropout_scale": philox.scale(p)}
    arguments |= {"x": x.data_ptr(), "out": out.data_ptr(), "cu_seqlens": cu_seqlens.data_ptr()}
    cpu_here.call(native.dropout, arguments | {"ids": cpu_here.address(ids)})
    return out


class _Dropout(torch.autograd.Function):
    """The gradient is dropped alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cu_seqlens: Tensor, p: float, seed: Tensor, *rest: Any) -> Tensor:
        stream, ids, per_sequence = rest
        ctx.save_for_backward(cu_seqlens, seed, ids)
        ctx.p, ctx.stream, ctx.per_sequence = p, stream, per_sequence
        return _dropout_below_autograd(x, cu_seqlens, p, seed, *rest)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        cu_seqlens, seed, ids = ctx.saved_tensors
        arguments = cu_seqlens, ctx.p, seed, ctx.stream, ids, ctx.per_sequence
        return torch.ops.penstock.dropout(grad_out, *arguments), *(None for _ in arguments)


def _dropout_below_autograd(*arguments: Any) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.penstock.dropout(*arguments)


def _recorded_dropout(x: Tensor, *arguments: Any) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        return _Dropout.apply(x, *arguments)
    return _dropout_below_autograd(x, *arguments)


torch.library.impl("penstock::dropout", "default", _plain_dropout)
torch.library.impl("penstock::dropout", "cpu", _cpu_dropout)
torch.library.impl("penstock::dropout", "Autograd", _recorded_dropout)
torch.library.register_fake("penstock::dropout", lambda x, *_: torch.empty_like(x))
