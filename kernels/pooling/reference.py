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


def softmax(scores: Tensor, cu_seqlens: Tensor, dtype: torch.dtype) -> Tensor:
    """The softmax of each sequence's scores, (tokens,)."""
    weights = [scores[rows].to(dtype).softmax(0) for _, rows in _sequences(cu_seqlens)]
    return torch.cat([scores.new_zeros(0, dtype=dtype), *weights])


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
        saved = softmax(scores, cu_seqlens, dtype)
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
    d_values = [grad_out.new_zeros(0, grad_out.shape[1], dtype=dtype)]
    d_scores = [grad_out.new_zeros(0, dtype=dtype)]
    for b, rows in _sequences(cu_seqlens):
        length = rows.stop - rows.start
        if length == 0:
            continue
        grad = grad_out[b].to(dtype)
        token = torch.arange(length, device=grad.device)[:, None]
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
    return torch.cat(d_values).to(grad_out.dtype), torch.cat(d_scores)


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
