"""Reproducible dropout over a ragged batch: the mask of `philox.py`, whatever the batch around a sequence."""

import torch
from torch import Tensor

from penstock.kernels import philox
from penstock.kernels.ragged import check_cu_seqlens

try:
    from penstock import _native
except ImportError:  # penstock.kernels works without its compiled module
    _native = None  # type: ignore[assignment]

torch.library.define(
    "penstock::keep_mask",
    "(Tensor cu_seqlens, SymInt tokens, float p, Tensor seed, int stream, Tensor? ids, SymInt units, bool per_sequence)"
    " -> Tensor",
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
    return x * keep_mask(cu_seqlens, x.shape[0], p, seed, stream, ids, x.shape[1], per_sequence) * philox.scale(p)


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
    if not hasattr(_native, "keep_mask"):
        return _plain_keep_mask(cu_seqlens, tokens, p, seed, stream, ids, units, per_sequence)
    check_cu_seqlens("cu_seqlens", cu_seqlens, tokens, tokens)
    cu_seqlens, ids = cu_seqlens.contiguous(), None if ids is None else ids.contiguous()
    mask = torch.empty(tokens, units, dtype=torch.bool)
    _native.keep_mask(
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
