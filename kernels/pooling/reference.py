"""The truth about pooling a ragged batch: plain torch, one sequence after the other."""

import itertools

import torch
from torch import Tensor

from penstock.kernels.precision import accumulate_dtype


def _sequences(cu_seqlens: Tensor) -> list[tuple[int, slice]]:
    bounds = cu_seqlens.tolist()
    return [(b, slice(start, end)) for b, (start, end) in enumerate(itertools.pairwise(bounds))]


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


def segment_pool(
    values: Tensor, cu_seqlens: Tensor, mode: str, scores: Tensor | None = None, bidirectional: bool = False
) -> Tensor:
    """As the public function, differentiable any number of times."""
    dtype = accumulate_dtype(values.dtype)
    pooled = [values.new_zeros(0, values.shape[1])]
    for _, rows in _sequences(cu_seqlens):
        s = None if scores is None else scores[rows].to(dtype)
        pooled.append(pool(values[rows].to(dtype), s, mode, bidirectional).to(values.dtype)[None])
    return torch.cat(pooled)


def forward(
    values: Tensor, scores: Tensor | None, cu_seqlens: Tensor, mode: str, bidirectional: bool
) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(values.dtype)
    if mode == "max":
        saved = torch.zeros(cu_seqlens.shape[0] - 1, values.shape[1], dtype=torch.int32, device=values.device)
        for b, rows in _sequences(cu_seqlens):
            if rows.stop > rows.start:
                saved[b] = values[rows].argmax(0) + rows.start
    elif mode == "attention":
        assert scores is not None
        weights = [scores[rows].to(dtype).softmax(0) for _, rows in _sequences(cu_seqlens)]
        saved = torch.cat([scores.new_zeros(0, dtype=dtype), *weights])
    else:
        saved = values.new_empty(0)
    return segment_pool(values, cu_seqlens, mode, scores, bidirectional), saved


def backward(
    grad_out: Tensor,
    values: Tensor | None,
    saved: Tensor,
    cu_seqlens: Tensor,
    tokens: int,
    mode: str,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """The derivative written out, as the operation's implementation runs below autograd."""
    dtype = accumulate_dtype(grad_out.dtype)
    features = grad_out.shape[1]
    d_values = torch.zeros(tokens, features, dtype=dtype, device=grad_out.device)
    d_scores = torch.zeros(tokens if mode == "attention" else 0, dtype=dtype, device=grad_out.device)
    for b, rows in _sequences(cu_seqlens):
        length = rows.stop - rows.start
        if length == 0:
            continue
        grad = grad_out[b].to(dtype)
        if mode == "max":
            d_values[saved[b].long(), torch.arange(features, device=grad.device)] = grad
        elif mode == "mean":
            d_values[rows] = grad / length
        elif mode == "last":
            half = features // 2 if bidirectional else features
            d_values[rows.stop - 1, :half] = grad[:half]
            d_values[rows.start, half:] = grad[half:]
        else:
            assert values is not None
            weights = saved[rows]
            d_weights = values[rows].to(dtype) @ grad
            d_values[rows] = weights[:, None] * grad
            d_scores[rows] = weights * (d_weights - weights @ d_weights)
    return d_values.to(grad_out.dtype), d_scores


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
