"""Pooling with torch's own operations, vectorised over the batch and free of atomics.

EmbeddingBag is torch's segmented reduction: deterministic, with 16-bit input summed in float32 here.
"""

import torch
from torch import Tensor

from penstock.kernels.pooling.protocol import saved_shape
from penstock.kernels.precision import accumulate_dtype

_SUM, _MAX = 0, 2


def _bag(values: Tensor, bounds: Tensor, mode: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sums or maxima of the rows between bounds, and, for maxima, the rows that they come from."""
    rows = torch.arange(values.shape[0], dtype=torch.int32, device=values.device)
    out, _, _, where = torch._embedding_bag(values, rows, bounds, False, mode, False, weights, True)
    return out, where


def _clamp(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Bounds within the tokens whatever cu_seqlens holds: its contents are not checked on a GPU."""
    return cu_seqlens if cu_seqlens.device.type == "cpu" else cu_seqlens.clamp(0, tokens)


def _owners(bounds: Tensor, tokens: int) -> Tensor:
    """The sequence that each token belongs to, int64, (tokens,)."""
    token = torch.arange(tokens, dtype=bounds.dtype, device=bounds.device)
    return torch.searchsorted(bounds[1:], token, right=True).clamp_(max=max(bounds.shape[0] - 2, 0))


def forward(
    values: Tensor, scores: Tensor | None, cu_seqlens: Tensor, mode: str, bidirectional: bool
) -> tuple[Tensor, Tensor]:
    tokens, features = values.shape
    bounds = _clamp(cu_seqlens, tokens)
    lengths = bounds.diff()[:, None]
    dtype = accumulate_dtype(values.dtype)
    saved = values.new_empty(0)
    if mode == "attention":
        assert scores is not None
        scores = scores.to(dtype)[:, None]
        owners = _owners(bounds, tokens)
        exponentials = torch.exp(scores - _bag(scores, bounds, _MAX)[0][owners])
        weights = (exponentials / _bag(exponentials, bounds, _SUM)[0][owners])[:, 0]
        return _bag(values.to(dtype), bounds, _SUM, weights)[0].to(values.dtype), weights
    if mode == "mean":
        return (_bag(values.to(dtype), bounds, _SUM)[0] / lengths.clamp(min=1)).to(values.dtype), saved
    if tokens == 0:
        shape, saved_dtype = saved_shape(values, lengths.shape[0], mode)
        return values.new_zeros(lengths.shape[0], features), values.new_zeros(shape, dtype=saved_dtype)
    if mode == "max":
        # EmbeddingBag passes over NaN: a NaN must come out as the maximum, as from torch.max
        saved = _bag(values.masked_fill(values.isnan(), float("inf")), bounds, _MAX)[1].clamp_(min=0)
        out = values.gather(0, saved.long())
    else:
        first, last = bounds[:-1].clamp(max=tokens - 1), (bounds[1:] - 1).clamp(min=0)
        half = features // 2 if bidirectional else features
        out = torch.cat([values[last, :half], values[first, half:]], 1)
    return out.masked_fill(lengths <= 0, 0.0), saved


def backward(
    grad_out: Tensor,
    values: Tensor | None,
    saved: Tensor,
    cu_seqlens: Tensor,
    tokens: int,
    mode: str,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(grad_out.dtype)
    features = grad_out.shape[1]
    bounds = _clamp(cu_seqlens, tokens)
    d_scores = torch.empty(0, dtype=saved.dtype, device=grad_out.device)
    if tokens == 0:
        return grad_out.new_zeros(0, features), d_scores
    owners = _owners(bounds, tokens)
    if mode == "mean":
        per_token = grad_out.to(dtype) / bounds.diff().clamp(min=1)[:, None]
        return per_token.to(grad_out.dtype)[owners], d_scores
    if mode == "attention":
        assert values is not None
        grad = grad_out.to(dtype)[owners]
        weighted = saved * (values.to(dtype) * grad).sum(1)
        d_scores = weighted - saved * _bag(weighted[:, None], bounds, _SUM)[0][owners, 0]
        return (saved[:, None] * grad).to(grad_out.dtype), d_scores
    token = torch.arange(tokens, dtype=bounds.dtype, device=bounds.device)[:, None]
    if mode == "max":
        chosen = saved[owners] == token
    else:
        forward_half = torch.arange(features, device=bounds.device) < (features // 2 if bidirectional else features)
        first, last = bounds[:-1][owners][:, None], bounds[1:][owners][:, None] - 1
        chosen = torch.where(forward_half, token == last, token == first)
    return grad_out[owners].masked_fill(~chosen, 0.0), d_scores


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
