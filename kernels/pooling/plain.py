"""The truth about pooling a ragged batch: plain torch, one sequence after the other. And torch's own operations,
vectorised over the batch and free of atomics.
"""

import itertools

import torch
from torch import Tensor

from penstock.kernels.pooling import Backward, Gradients, Problem, Results, empty_saved
from penstock.kernels.precision import accumulate_dtype


def segment_pool(problem: Problem) -> Results:
    """Differentiable any number of times."""
    values, scores, cu_seqlens, mode, bidirectional = problem
    dtype = accumulate_dtype(values.dtype)
    pooled = [values.new_zeros(0, values.shape[1])]
    maxima = [torch.zeros(0, values.shape[1], dtype=torch.int32, device=values.device)]
    for _, rows in _sequences(cu_seqlens):
        sequence, of_sequence = values[rows].to(dtype), None if scores is None else scores[rows].to(dtype)
        pooled.append(pool(sequence, of_sequence, mode, bidirectional).to(values.dtype)[None])
        if mode == "max":
            found = sequence.argmax(0) + rows.start if rows.stop > rows.start else sequence.sum(0)
            maxima.append(found.to(torch.int32)[None])
    weights = values.new_empty(0) if scores is None else _softmax(scores, cu_seqlens, dtype)
    return Results(torch.cat(pooled), torch.cat(maxima) if mode == "max" else weights)


def pool(values: Tensor, scores: Tensor | None, mode: str, bidirectional: bool) -> Tensor:
    """One sequence, (length, features) -> (features,); differentiable any number of times."""
    if values.shape[0] == 0:
        return values.sum(0)
    if mode == "max":
        return values.gather(0, values.argmax(0, keepdim=True))[0]
    if mode == "mean":
        return values.mean(0)
    if mode == "last":
        half = values.shape[1] // 2 if bidirectional else values.shape[1]
        return torch.cat([values[-1, :half], values[0, half:]])
    assert scores is not None
    return scores.softmax(0) @ values


def segment_pool_backward(problem: Backward) -> Gradients:
    """The derivative written out. The softmax of the scores is made again, so that it can be differentiated."""
    grad_out, values, scores, saved, cu_seqlens, _, mode, bidirectional = problem
    dtype = accumulate_dtype(grad_out.dtype)
    if scores is not None:
        saved = _softmax(scores, cu_seqlens, saved.dtype)
    d_values = [grad_out.new_zeros(0, grad_out.shape[1], dtype=dtype)]
    d_scores = [grad_out.new_zeros(0, dtype=dtype)]
    for b, rows in _sequences(cu_seqlens):
        length = rows.stop - rows.start
        if length == 0:
            continue
        grad = grad_out[b].to(dtype)
        token = torch.arange(length, dtype=torch.int64, device=grad.device)[:, None]
        if mode == "max":
            d_values.append(torch.where(token == saved[b] - rows.start, grad, 0))
        elif mode == "mean":
            d_values.append((grad / length).expand(length, -1))
        elif mode == "last":
            half = len(grad) // 2 if bidirectional else len(grad)
            last = torch.where(token == length - 1, grad[:half], 0)
            d_values.append(torch.cat([last, torch.where(token == 0, grad[half:], 0)], 1))
        else:
            assert values is not None
            weights = saved[rows]
            d_weights = values[rows].to(dtype) @ grad
            d_values.append(weights[:, None] * grad)
            d_scores.append(weights * (d_weights - weights @ d_weights))
    return Gradients(torch.cat(d_values).to(grad_out.dtype), None if scores is None else torch.cat(d_scores))


def _sequences(cu_seqlens: Tensor) -> list[tuple[int, slice]]:
    bounds = cu_seqlens.tolist()
    return [(b, slice(start, end)) for b, (start, end) in enumerate(itertools.pairwise(bounds))]


def _softmax(scores: Tensor, cu_seqlens: Tensor, dtype: torch.dtype) -> Tensor:
    """The softmax of each sequence's scores, (tokens,)."""
    weights = [scores[rows].to(dtype).softmax(0) for _, rows in _sequences(cu_seqlens)]
    return torch.cat([scores.new_zeros(0, dtype=dtype), *weights])


_SUM, _MAX = 0, 2


class Torch:
    """EmbeddingBag is torch's segmented reduction: deterministic, with 16-bit input summed in float32 here."""

    @staticmethod
    def segment_pool(problem: Problem) -> Results:
        values, scores, cu_seqlens, mode, bidirectional = problem
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
            return Results(_bag(values.to(dtype), bounds, _SUM, weights)[0].to(values.dtype), weights)
        if mode == "mean":
            mean = _bag(values.to(dtype), bounds, _SUM)[0] / lengths.clamp(min=1)
            return Results(mean.to(values.dtype), saved)
        if tokens == 0:
            saved = empty_saved(values, lengths.shape[0], mode).zero_()
            return Results(values.new_zeros(lengths.shape[0], features), saved)
        if mode == "max":
            saved, nan = _bag(values, bounds, _MAX)[1], values.isnan()
            # EmbeddingBag passes over NaN: a NaN must come out as the maximum, as from torch.max
            if values.device.type != "cpu" or bool(nan.any()):  # a device would be waited for
                has_nan, first_nan = _bag(nan.to(values.dtype), bounds, _MAX)
                saved = torch.where(has_nan > 0, first_nan, saved)
            saved = saved.clamp_(min=0)
            out = values.gather(0, saved.long())
        else:
            first, last = bounds[:-1].clamp(max=tokens - 1), (bounds[1:] - 1).clamp(min=0)
            half = features // 2 if bidirectional else features
            out = torch.cat([values[last, :half], values[first, half:]], 1)
        return Results(out.masked_fill(lengths <= 0, 0.0), saved)

    @staticmethod
    def segment_pool_backward(problem: Backward) -> Gradients:
        grad_out, values, _, saved, cu_seqlens, tokens, mode, bidirectional = problem
        dtype = accumulate_dtype(grad_out.dtype)
        features = grad_out.shape[1]
        bounds = _clamp(cu_seqlens, tokens)
        if tokens == 0:
            return Gradients(grad_out.new_zeros(0, features), None if values is None else saved.new_zeros(0))
        owners = _owners(bounds, tokens)
        if mode == "mean":
            per_token = grad_out.to(dtype) / bounds.diff().clamp(min=1)[:, None]
            return Gradients(per_token.to(grad_out.dtype)[owners], None)
        if values is not None:  # attention
            grad = grad_out.to(dtype)[owners]
            weighted = saved * (values.to(dtype) * grad).sum(1)
            d_scores = weighted - saved * _bag(weighted[:, None], bounds, _SUM)[0][owners, 0]
            return Gradients((saved[:, None] * grad).to(grad_out.dtype), d_scores)
        token = torch.arange(tokens, dtype=bounds.dtype, device=bounds.device)[:, None]
        if mode == "max":
            chosen = saved[owners] == token
        else:
            forward_half = torch.arange(features, dtype=bounds.dtype, device=bounds.device)
            forward_half = forward_half < (features // 2 if bidirectional else features)
            first, last = bounds[:-1][owners][:, None], bounds[1:][owners][:, None] - 1
            chosen = torch.where(forward_half, token == last, token == first)
        return Gradients(grad_out[owners].masked_fill(~chosen, 0.0), None)


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
