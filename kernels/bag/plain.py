"""The truth about bags of n-grams: plain torch, in the table's dtype."""

import torch
from torch import Tensor

from penstock.kernels.bag import Backward, Problem, RowGradients, Update

HASH_FACTOR, MIX_FACTOR = 0x9E3779B97F4A7C15 - 2**64, 0xD6E8FEB86659FD93 - 2**64  # as int64, whose products wrap


def ngram_bag(problem: Problem) -> Tensor:
    """Differentiable any number of times."""
    table, tokens, cu_seqlens, vocabulary, ngrams = problem
    batch = cu_seqlens.shape[0] - 1
    rows, texts = features(tokens, cu_seqlens, vocabulary, table.shape[0] - vocabulary, ngrams)
    means = table.new_zeros(batch, table.shape[1]).index_add(0, texts, table[rows])
    return means / torch.bincount(texts, minlength=batch).clamp(min=1)[:, None]


def ngram_bag_backward(problem: Backward) -> RowGradients:
    grad_out, tokens, cu_seqlens, table_rows, vocabulary, ngrams = problem
    rows, texts = features(tokens, cu_seqlens, vocabulary, table_rows - vocabulary, ngrams)
    counts = torch.bincount(texts, minlength=grad_out.shape[0]).clamp(min=1)
    distinct, place = rows.unique(sorted=True, return_inverse=True)
    values = grad_out.new_zeros(distinct.shape[0], grad_out.shape[1])
    return RowGradients(distinct, values.index_add_(0, place, (grad_out / counts[:, None])[texts]))


def adagrad_rows(problem: Update) -> None:
    table, sums, rows, values, rate, eps = problem
    sums[rows] += values.square().mean(1)
    table[rows] -= rate * values / (sums[rows].sqrt() + eps)[:, None]


def features(tokens: Tensor, cu_seqlens: Tensor, vocabulary: int, buckets: int, ngrams: int) -> tuple[Tensor, Tensor]:
    """The row of each feature and its text, both int64, (features,): token by token, and there by rising length.

    Raises:
        IndexError: a token is not in the vocabulary.
    """
    wrong = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if len(wrong):
        raise IndexError(f"token {wrong[0]} is not in the vocabulary of {vocabulary}")
    lengths = cu_seqlens.diff().long()
    text = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int64, device=tokens.device), lengths)
    place = torch.arange(len(tokens), dtype=torch.int64, device=tokens.device)
    left = cu_seqlens[1:].long()[text] - place  # tokens from here to the text's end
    hashes = tokens.long() + 1
    rows = [tokens.long()]
    for n in range(1, ngrams):
        following = tokens.roll(-n).long() + 1
        hashes = hashes * HASH_FACTOR + following
        rows.append(vocabulary + _bucket(hashes, buckets))
    there = torch.stack([left >= n for n in range(1, ngrams + 1)], 1)
    return torch.stack(rows, 1)[there], text[:, None].expand(-1, ngrams)[there]


def _bucket(hashes: Tensor, buckets: int) -> Tensor:
    mixed = (hashes ^ _upper(hashes)) * MIX_FACTOR
    return (_upper(mixed) * buckets) >> 32


def _upper(x: Tensor) -> Tensor:
    """The upper half of 64 bits without a sign."""
    return (x >> 32) & 0xFFFFFFFF
