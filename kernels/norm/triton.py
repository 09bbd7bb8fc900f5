"""Bias, dropout, residual and LayerNorm in one pass over memory, in Triton, with dropout by the rule of `philox.py`.

A row is one block; its sequence is found on the device by bisection. Backward has no atomics: each program sums its own
rows for the parameters.
"""

from typing import Any

import triton
import triton.language as tl

from penstock.kernels import philox
from penstock.kernels.norm import Backward, Gradients, Problem, Results
from penstock.kernels.philox_triton import dropout_bits
from penstock.kernels.triton_support import on_device

# Of backward, each with sums of its own: eight for each multiprocessor of a large GPU, and enough rows for each to
# outweigh its sums. Not by the device, so that results do not depend on it.
_PROGRAMS, _ROWS = 1024, 8


def block(width: int) -> int:
    """The elements of a row's block: dropout draws eight at a time."""
    return max(16, 1 << (width - 1).bit_length())


def warps(width: int) -> int:
    return min(max(block(width) // 256, 1), 8)


def _dropout(problem: Problem | Backward) -> tuple[tuple[Any, ...], tuple[int, int], tuple[int, float]]:
    batch = 0 if problem.cu_seqlens is None else problem.cu_seqlens.shape[0] - 1
    drop = philox.threshold(problem.dropout_p), philox.scale(problem.dropout_p)
    return (problem.cu_seqlens, problem.ids, problem.seed), (batch, batch.bit_length()), drop


def residual_norm(problem: Problem) -> Results:
    rows, width = problem.x.shape
    made = problem.empty()
    tensors, bisection, drop = _dropout(problem)
    if rows:
        with on_device(problem.x):
            forward_kernel[(rows,)](
                *(problem.x, problem.residual, problem.x_bias, problem.weight, problem.bias, *made),
                *(*tensors, *bisection, problem.eps, *drop),
                WIDTH=width,
                BLOCK=block(width),
                HAS_X_BIAS=problem.x_bias is not None,
                HAS_BIAS=problem.bias is not None,
                DROPOUT=problem.dropout_p > 0,
                PRENORM=problem.prenorm,
                SAVE=problem.save,
                num_warps=warps(width),
            )
    return made


def residual_norm_backward(problem: Backward) -> Gradients:
    rows, width = problem.grad_out.shape
    residual, own_x = problem.empty_rows()
    programs = min(-(-rows // _ROWS), _PROGRAMS)
    sums = problem.weight.new_empty(programs, 3, width)
    tensors, bisection, drop = _dropout(problem)
    if rows:
        with on_device(problem.grad_out):
            backward_kernel[(programs,)](
                *(problem.grad_out, problem.grad_z, problem.normal, problem.rstd, problem.weight),
                *(residual, own_x, sums, *tensors, rows, *bisection, *drop),
                WIDTH=width,
                BLOCK=block(width),
                DROPOUT=problem.dropout_p > 0,
                PRENORM=problem.grad_z is not None,
                TWO_GRADIENTS=own_x is not None,
                num_warps=warps(width),
            )
    return Gradients(residual, own_x, sums.sum(0))


@triton.jit
def _keep(cu_seqlens, ids, seed, row, batch, halvings, threshold, BLOCK: tl.constexpr):
    """Which columns of a row are kept."""
    low, high = 0, batch
    for _ in range(halvings):  # the last sequence that begins at or before the row
        middle = (low + high) // 2
        starts_before = tl.load(cu_seqlens + middle) <= row
        low = tl.where(starts_before, middle, low)
        high = tl.where(starts_before, high, middle)
    position = row - tl.load(cu_seqlens + low) + tl.arange(0, 1)
    bits = dropout_bits(tl.load(seed), tl.load(ids + low), position, 0, tl.arange(0, BLOCK // 8))
    return tl.reshape(bits, (BLOCK,)) >= threshold


@triton.jit(do_not_specialize=["batch", "halvings", "threshold"])
def forward_kernel(
    x,  # (rows, WIDTH), as residual, out, z and normal
    residual,
    x_bias,  # (WIDTH,), as weight and bias
    weight,
    bias,
    out,
    z_out,
    normal,
    rstd,  # (rows,)
    cu_seqlens,
    ids,
    seed,
    batch,
    halvings,
    eps,
    threshold,
    dropout_scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_X_BIAS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRENORM: tl.constexpr,
    SAVE: tl.constexpr,
):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    at = tl.cast(row, tl.int64) * WIDTH + columns
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_X_BIAS:
        z += tl.load(x_bias + columns, mask=inside, other=0.0)
    if DROPOUT:
        kept = _keep(cu_seqlens, ids, seed, row, batch, halvings, threshold, BLOCK)
        z = tl.where(kept, z * dropout_scale, 0.0)
    z += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if PRENORM:
        tl.store(z_out + at, z.to(z_out.dtype.element_ty), mask=inside)
    mean = tl.sum(z, 0) / WIDTH
    centred = tl.where(inside, z - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
    centred *= scale
    y = centred * tl.load(weight + columns, mask=inside, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias + columns, mask=inside, other=0.0)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)
    if SAVE:
        tl.store(normal + at, centred.to(normal.dtype.element_ty), mask=inside)
        tl.store(rstd + row, scale)


@triton.jit(do_not_specialize=["rows", "batch", "halvings", "threshold"])
def backward_kernel(
    grad_out,  # (rows, WIDTH), as grad_z, normal, grad_residual and grad_x
    grad_z,
    normal,
    rstd,  # (rows,)
    weight,  # (WIDTH,)
    grad_residual,
    grad_x,
    sums,  # (programs, 3, WIDTH): of weight, bias and x_bias
    cu_seqlens,
    ids,
    seed,
    rows,
    batch,
    halvings,
    threshold,
    dropout_scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRENORM: tl.constexpr,
    TWO_GRADIENTS: tl.constexpr,
):
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    factor = tl.load(weight + columns, mask=inside, other=0.0)
    grad_weight = tl.zeros((BLOCK,), tl.float32)
    grad_bias = tl.zeros((BLOCK,), tl.float32)
    grad_x_bias = tl.zeros((BLOCK,), tl.float32)
    for row in range(program, rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * WIDTH + columns
        dy = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        n = tl.load(normal + at, mask=inside, other=0.0).to(tl.float32)
        g = dy * factor
        dz = (g - tl.sum(g, 0) / WIDTH - n * (tl.sum(g * n, 0) / WIDTH)) * tl.load(rstd + row)
        if PRENORM:
            dz += tl.load(grad_z + at, mask=inside, other=0.0).to(tl.float32)
        dx = dz
        if DROPOUT:
            kept = _keep(cu_seqlens, ids, seed, row, batch, halvings, threshold, BLOCK)
            dx = tl.where(kept, dz * dropout_scale, 0.0)
        if TWO_GRADIENTS:
            tl.store(grad_x + at, dx.to(grad_x.dtype.element_ty), mask=inside)
        tl.store(grad_residual + at, dz.to(grad_residual.dtype.element_ty), mask=inside)
        grad_weight += dy * n
        grad_bias += dy
        grad_x_bias += dx
    at = program.to(tl.int64) * (3 * WIDTH) + columns
    tl.store(sums + at, grad_weight, mask=inside)
    tl.store(sums + at + WIDTH, grad_bias, mask=inside)
    tl.store(sums + at + 2 * WIDTH, grad_x_bias, mask=inside)
