"""Pooling over the tokens of each sequence, in Triton: one program per sequence and block of features, no atomics.

Tokens are taken one after the other, which keeps the first of equal maxima and the order of the sums.
"""

import triton
import triton.language as tl

from penstock.kernels.pooling import Backward, Gradients, Problem, Results
from penstock.kernels.triton_support import on_device

BLOCK = 128  # features


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
                MODE=problem.mode,
            )
            if made.scores is not None:
                scores_backward_kernel[(batch,)](
                    *(grad_out, problem.attended, saved, made.scores, cu_seqlens, tokens),
                    FEATURES=features,
                    BLOCK=BLOCK,
                )
    return made


@triton.jit
def _bounds(cu_seqlens, sequence, tokens):
    """First row and the row behind the last of a sequence, within the tokens whatever cu_seqlens holds."""
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), tokens)
    return start, tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence + 1), start), tokens)


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
    elif MODE == "mean":
        for row in range(start, end):
            at = values + tl.cast(row, tl.int64) * FEATURES + columns
            result += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        result = result / tl.maximum(end - start, 1)
    elif MODE == "max":
        where = tl.zeros((BLOCK,), tl.int32) + start
        for row in range(start, end):
            v = tl.load(values + tl.cast(row, tl.int64) * FEATURES + columns, mask=inside, other=0.0).to(tl.float32)
            better = (row == start) | (v > result) | ((v != v) & (result == result))  # the first NaN stays
            result = tl.where(better, v, result)
            where = tl.where(better, row, where)
        tl.store(saved + sequence.to(tl.int64) * FEATURES + columns, where, mask=inside)
    else:
        largest = tl.cast(float("-inf"), tl.float32)
        for row in range(start, end):
            s = tl.load(scores + row).to(tl.float32)
            largest = tl.where((s > largest) | (s != s), s, largest)
        total = tl.cast(0.0, tl.float32)
        for row in range(start, end):
            total += tl.exp(tl.load(scores + row).to(tl.float32) - largest)
        for row in range(start, end):
            weight = tl.exp(tl.load(scores + row).to(tl.float32) - largest) / total
            v = tl.load(values + tl.cast(row, tl.int64) * FEATURES + columns, mask=inside, other=0.0).to(tl.float32)
            result += weight * v
            if part == 0:
                tl.store(saved + row, weight)
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
    for row in range(start, end):
        d = grad
        if MODE == "attention":
            d = grad * tl.load(saved + row)
        elif MODE != "mean":
            d = tl.where(chosen == row, grad, 0.0)
        pointers = grad_values + tl.cast(row, tl.int64) * FEATURES + columns
        tl.store(pointers, d.to(grad_values.dtype.element_ty), mask=inside)


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
):
    """weights (d - sum of weights d) with d = values grad_out: twice over the values, so that nothing is kept."""
    sequence = tl.program_id(0)
    start, end = _bounds(cu_seqlens, sequence, tokens)
    mean = tl.cast(0.0, tl.float32)
    for again in range(2):
        for row in range(start, end):
            d = tl.zeros((BLOCK,), tl.float32)
            for column in range(0, FEATURES, BLOCK):
                columns = column + tl.arange(0, BLOCK)
                inside = columns < FEATURES
                g = tl.load(grad_out + sequence.to(tl.int64) * FEATURES + columns, mask=inside, other=0.0)
                v = tl.load(values + tl.cast(row, tl.int64) * FEATURES + columns, mask=inside, other=0.0)
                d += g.to(tl.float32) * v.to(tl.float32)
            weight = tl.load(weights + row)
            product = tl.sum(d, 0)
            if again == 0:
                mean += weight * product
            else:
                tl.store(grad_scores + row, weight * (product - mean))
