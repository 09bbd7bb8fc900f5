"""Reproducible dropout over a ragged batch: the mask of `philox.py`, whatever the batch around a sequence."""

import torch
from torch import Tensor

from penstock.kernels import philox


def positions(cu_seqlens: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """For each token: its sequence, and its place in that sequence; both int64, (tokens,)."""
    rows = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens[1:], rows, right=True)
    sequence = sequence.clamp(max=cu_seqlens.shape[0] - 2)
    return sequence, rows - cu_seqlens[sequence]


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
    """True where a unit is kept; bool, (tokens, units). With `per_sequence`, all tokens have position 0's mask."""
    batch = cu_seqlens.shape[0] - 1
    ids = torch.arange(batch, device=cu_seqlens.device) if ids is None else ids
    sequence, position = positions(cu_seqlens, tokens)
    if per_sequence:
        return philox.keep_mask(seed, ids, torch.zeros_like(ids), stream, units, p)[sequence]
    return philox.keep_mask(seed, ids[sequence], position, stream, units, p)


def dropout(
    x: Tensor,
    cu_seqlens: Tensor,
    p: float,
    seed: Tensor,
    stream: int,
    ids: Tensor | None = None,
    per_sequence: bool = False,
) -> Tensor:
    """Drops each element of x, (tokens, units), with probability p and scales the rest.

    Args:
        seed: int64 scalar. stream: tells apart the places of a model that drop (a layer's number).
        ids: int64, (batch,), the examples' names; their places in the batch if None.
        per_sequence: drop the same units at every token of a sequence (variational dropout).
    """
    kept = keep_mask(cu_seqlens, x.shape[0], p, seed, stream, ids, x.shape[1], per_sequence)
    return x * kept * philox.scale(p)
