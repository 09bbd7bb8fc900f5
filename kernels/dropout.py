"""Reproducible dropout over a ragged batch: the mask of `philox.py`, whatever the batch around a sequence."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import checks, compiled, philox, transforms
from penstock.kernels.compiled import native
from penstock.kernels.ragged import check_cu_seqlens, check_cu_seqlens_form

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
    Raises:
        TypeError: cu_seqlens is not int32, seed or ids not int64, or a number not an integer.
        ValueError: a shape, a device or the contents of cu_seqlens are wrong, p is outside [0, 1], or stream is.
    """
    _check(None, cu_seqlens, seed, stream, ids)
    p = checks.real("p", p)
    tokens, units = checks.integer("tokens", tokens, 0), checks.integer("units", units, 0)
    return _keep_mask(cu_seqlens, tokens, p, seed, stream, ids, units, per_sequence)


def dropout(
    x: Tensor,
    cu_seqlens: Tensor,
    p: float,
    seed: Tensor,
    stream: int,
    ids: Tensor | None = None,
    per_sequence: bool = False,
) -> Tensor:
    """Drops each element of x, (tokens, units), with probability p and scales the rest; arguments as of `keep_mask`.

    Raises:
        TypeError, ValueError: as `keep_mask` does, or x is not (tokens, units) of floating point.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise TypeError(f"x must be floating point of shape (tokens, units), got {x.dtype} {tuple(x.shape)}")
    p = checks.real("p", p)
    if philox.threshold(p) == 0:
        return x
    _check(x.device, cu_seqlens, seed, stream, ids)
    return _dropout(x, cu_seqlens, p, seed, stream, ids, per_sequence)


def _check(device: torch.device | None, cu_seqlens: Tensor, seed: Tensor, stream: int, ids: Tensor | None) -> None:
    """Everything that the operations' kernels read by address: a caller of the operation itself meets it too."""
    check_cu_seqlens_form("cu_seqlens", cu_seqlens, device)
    checks.ids(ids, cu_seqlens.shape[0] - 1, cu_seqlens.device)
    if seed is None:
        raise TypeError("seed must be a tensor of int64, got None")
    checks.seed(seed, cu_seqlens.device)
    if not 0 <= checks.integer("stream", stream) < 2**32:
        raise ValueError(f"stream must lie in [0, 2**32), got {stream}")


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
    _check(None, cu_seqlens, seed, stream, ids)
    batch = cu_seqlens.shape[0] - 1
    ids = torch.arange(batch, dtype=torch.int64, device=cu_seqlens.device) if ids is None else ids
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
    _check(None, cu_seqlens, seed, stream, ids)
    check_cu_seqlens("cu_seqlens", cu_seqlens, tokens, tokens)
    cu_seqlens, ids = cu_seqlens.contiguous(), None if ids is None else ids.contiguous()
    mask = torch.empty(tokens, units, dtype=torch.bool, device="cpu")
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
    kept = keep_mask(cu_seqlens, x.shape[0], p, seed, stream, ids, x.shape[1], per_sequence)
    return x.contiguous() * kept * philox.scale(p)


def _cpu_dropout(
    x: Tensor, cu_seqlens: Tensor, p: float, seed: Tensor, stream: int, ids: Tensor | None, per_sequence: bool
) -> Tensor:
    """One pass in C++ (csrc/rowwise/cpu), without a mask in memory."""
    if native is None or compiled.why_not(device_type="cpu", dtype=x.dtype):
        return _plain_dropout(x, cu_seqlens, p, seed, stream, ids, per_sequence)
    (rows, width), batch = x.shape, cu_seqlens.shape[0] - 1
    _check(x.device, cu_seqlens, seed, stream, ids)
    check_cu_seqlens("cu_seqlens", cu_seqlens, rows, rows)
    x, cu_seqlens, ids = x.contiguous(), cu_seqlens.contiguous(), None if ids is None else ids.contiguous()
    out = torch.empty_like(x)
    arguments: dict[str, Any] = {"bfloat16": x.dtype == torch.bfloat16, "rows": rows, "width": width, "batch": batch}
    arguments |= {"seed": int(seed) & 0xFFFFFFFFFFFFFFFF, "stream": stream, "per_sequence": per_sequence}
    arguments |= {"dropout_threshold": philox.threshold(p), "dropout_scale": philox.scale(p)}
    arguments |= {"x": x.data_ptr(), "out": out.data_ptr(), "cu_seqlens": cu_seqlens.data_ptr()}
    compiled.call(native.dropout, arguments | {"ids": compiled.address(ids)})
    return out


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cu_seqlens, ctx.p, seed, ctx.stream, ids, ctx.per_sequence = inputs
    ctx.save_for_backward(cu_seqlens, seed, ids)


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient is dropped alike."""
    cu_seqlens, seed, ids = ctx.saved_tensors
    arguments = cu_seqlens, ctx.p, seed, ctx.stream, ids, ctx.per_sequence
    return transforms.call(torch.ops.penstock.dropout.default, grad_out, *arguments), *(None for _ in arguments)


torch.library.impl("penstock::dropout", "default", _plain_dropout)
torch.library.impl("penstock::dropout", "cpu", _cpu_dropout)
torch.library.register_fake("penstock::dropout", lambda x, *_: x.new_empty(x.shape))
_keep_mask = transforms.register("keep_mask", _plain_keep_mask)
_dropout = transforms.register("dropout", _plain_dropout, _setup_context, _differentiate)
