"""Pooling over the tokens of each sequence, in Triton: one program per sequence and block of features, no atomics.

A program takes a block of tokens at a time; each place in the block sums up the tokens that come to it, and at the end
the places are summed up: one order, whatever the batch.
"""

import triton
import triton.language as tl

from penstock.kernels.pooling import Backward, Gradients, Problem, Results
from penstock.kernels.triton_support import on_device

BLOCK, BLOCK_TOKENS = 128, 16  # features, tokens
NOWHERE = tl.constexpr(2**31 - 1)


def _half(features: int, problem: Problem | Backward) -> int:
    return features // 2 if problem.mode == "last" and problem.bidirectional else features


def segment_pool(problem: Problem) -> Results:
    values, made = problem.values, problem.empty()
    batch, features = made.out.shape
    if batch and features:
        with on_device(values):
            forward_kernel[batch, -(-features // BLOCK)](
                *(values, problem.scores, *made, problem.cu_seqlens, problem.tokens, _half(features, problem)),
                FEATURES=features,
                BLOCK=BLOCK,
                BLOCK_TOKENS=BLOCK_TOKENS,
                MODE=problem.mode,
            )
    return made


def segment_pool_backward(problem: Backward) -> Gradients:
    grad_out, saved, cu_seqlens, tokens = problem.grad_out, problem.saved, problem.cu_seqlens, problem.tokens
    (batch, features), made = grad_out.shape, problem.empty()
    if tokens and features:
        with on_device(grad_out):
            backward_kernel[batch, -(-features // BLOCK)](
                *(grad_out, saved, made.values, cu_seqlens, tokens, _half(features, problem)),
                FEATURES=features,
                BLOCK=BLOCK,
                BLOCK_TOKENS=BLOCK_TOKENS,
                MODE=problem.mode,
            )
            if made.scores is not None:
                scores_backward_kernel[(batch,)](
                    *(grad_out, problem.attended, saved, made.scores, cu_seqlens, tokens),
                    FEATURES=features,
                    BLOCK=BLOCK,
                    BLOCK_TOKENS=BLOCK_TOKENS,
                )
    return made


@triton.jit
def _bounds(cu_seqlens, sequence, tokens):
    """First row and the row behind the last of a sequence, within the tokens whatever cu_seqlens holds."""
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), tokens)
    return start, tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence + 1), start), tokens)


@triton.jit
def _load(values, rows, end, columns, FEATURES: tl.constexpr):
    """(rows, columns) in float32, 0 behind the end."""
    there = (rows < end)[:, None] & (columns < FEATURES)[None, :]
    at = values + rows.to(tl.int64)[:, None] * FEATURES + columns[None, :]
    return tl.load(at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _load_scores(scores, rows, end):
    """In float32, -inf behind the end."""
    return tl.load(scores + rows, mask=rows < end, other=float("-inf")).to(tl.float32)


@triton.jit(do_not_specialize=["tokens", "half"])
def forward_kernel(
    values,  # (tokens, FEATURES)
    scores,  # (tokens,), for attention
    out,  # (batch, FEATURES)
    saved,  # (batch, FEATURES): the row of each maximum; (tokens,): the weight of each token, for attention
    cu_seqlens,
    tokens,
    half,  # features from here on take the first token, for last
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    MODE: tl.constexpr,
):
    sequence, part = tl.program_id(0), tl.program_id(1)
    start, end = _bounds(cu_seqlens, sequence, tokens)
    columns = part * BLOCK + tl.arange(0, BLOCK)
    inside = columns < FEATURES
    result = tl.zeros((BLOCK,), tl.float32)
    if MODE == "last":
        row = tl.where(columns < half, end - 1, start)
        there = inside & (row >= start) & (row < end)
        result = tl.load(values + row.to(tl.int64) * FEATURES + columns, mask=there, other=0.0).to(tl.float32)
    else:
        places = tl.arange(0, BLOCK_TOKENS)
        sums = tl.zeros((BLOCK_TOKENS, BLOCK), tl.float32)
        if MODE == "mean":
            for first in range(start, end, BLOCK_TOKENS):
                sums += _load(values, first + places, end, columns, FEATURES)
            result = tl.sum(sums, 0) / tl.maximum(end - start, 1)
        elif MODE == "max":
            largest = sums + float("-inf")
            where = tl.zeros((BLOCK_TOKENS, BLOCK), tl.int32) + NOWHERE
            for first in range(start, end, BLOCK_TOKENS):
                rows = (first + places)[:, None]
                v = _load(values, first + places, end, columns, FEATURES)
                better = (where == NOWHERE) | (v > largest) | ((v != v) & (largest == largest))  # the first NaN stays
                better = better & (rows < end)
                largest = tl.where(better, v, largest)
                where = tl.where(better, rows, where)
            # NaN before all others, then the largest, then the first
            nan = largest != largest
            has_nan = tl.max(nan.to(tl.int32), 0) > 0
            result = tl.max(tl.where(nan, float("-inf"), largest), 0)
            best = tl.where(has_nan[None, :], nan, largest == result[None, :])
            row = tl.min(tl.where(best, where, NOWHERE), 0)
            result = tl.where(has_nan, float("nan"), tl.where(end > start, result, 0.0))
            tl.store(saved + sequence.to(tl.int64) * FEATURES + columns, row, mask=inside)
        else:
            largest = tl.zeros((BLOCK_TOKENS,), tl.float32) + float("-inf")
            for first in range(start, end, BLOCK_TOKENS):
                largest = tl.maximum(largest, _load_scores(scores, first + places, end))
            highest = tl.max(largest, 0)
            total = tl.zeros((BLOCK_TOKENS,), tl.float32)
            for first in range(start, end, BLOCK_TOKENS):
                total += tl.exp(_load_scores(scores, first + places, end) - highest)
            whole = tl.sum(total, 0)
            for first in range(start, end, BLOCK_TOKENS):
                rows = first + places
                weight = tl.exp(_load_scores(scores, rows, end) - highest) / whole
                # what a token behind the end reads is 0, its weight may be NaN as all others are
                sums += tl.where(
                    (rows < end)[:, None], weight[:, None] * _load(values, rows, end, columns, FEATURES), 0.0
                )
                if part == 0:
                    tl.store(saved + rows, weight, mask=rows < end)
            result = tl.sum(sums, 0)
    tl.store(out + sequence.to(tl.int64) * FEATURES + columns, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "half"])
def backward_kernel(
    grad_out,  # (batch, FEATURES)
    saved,  # as forward left it
    grad_values,  # (tokens, FEATURES)
    cu_seqlens,
    tokens,
    half,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    MODE: tl.constexpr,
):
    sequence = tl.program_id(0)
    start, end = _bounds(cu_seqlens, sequence, tokens)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < FEATURES
    at = sequence.to(tl.int64) * FEATURES + columns
    grad = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
    if MODE == "mean":
        grad = grad / tl.maximum(end - start, 1)
    chosen = tl.where(columns < half, end - 1, start)
    if MODE == "max":
        chosen = tl.load(saved + at, mask=inside, other=0)
    for first in range(start, end, BLOCK_TOKENS):
        rows = first + tl.arange(0, BLOCK_TOKENS)
        if MODE == "attention":
            d = grad[None, :] * tl.load(saved + rows, mask=rows < end, other=0.0)[:, None]
        elif MODE == "mean":
            d = tl.broadcast_to(grad[None, :], (BLOCK_TOKENS, BLOCK))
        else:
            d = tl.where(chosen[None, :] == rows[:, None], grad[None, :], 0.0)
        pointers = grad_values + rows.to(tl.int64)[:, None] * FEATURES + columns[None, :]
        tl.store(pointers, d.to(grad_values.dtype.element_ty), mask=(rows < end)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["tokens"])
def scores_backward_kernel(
    grad_out,  # (batch, FEATURES)
    values,  # (tokens, FEATURES)
    weights,  # (tokens,)
    grad_scores,  # (tokens,)
    cu_seqlens,
    tokens,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """weights (d - sum of weights d) with d = values grad_out: twice over the values, so that nothing is kept."""
    sequence = tl.program_id(0)
    start, end = _bounds(cu_seqlens, sequence, tokens)
    mean = tl.cast(0.0, tl.float32)
    for again in range(2):
        sums = tl.zeros((BLOCK_TOKENS,), tl.float32)
        for first in range(start, end, BLOCK_TOKENS):
            rows = first + tl.arange(0, BLOCK_TOKENS)
            d = tl.zeros((BLOCK_TOKENS, BLOCK), tl.float32)
            for column in range(0, FEATURES, BLOCK):
                columns = column + tl.arange(0, BLOCK)
                at = grad_out + sequence.to(tl.int64) * FEATURES + columns
                g = tl.load(at, mask=columns < FEATURES, other=0.0).to(tl.float32)
                d += g[None, :] * _load(values, rows, end, columns, FEATURES)
            weight = tl.load(weights + rows, mask=rows < end, other=0.0)
            product = tl.sum(d, 1)
            sums += weight * product
            if again == 1:
                tl.store(grad_scores + rows, weight * (product - mean), mask=rows < end)
        mean = tl.sum(sums, 0)
