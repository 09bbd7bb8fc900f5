"""Bias and GELU, alone and as a gate, and their derivatives, element by element, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.gelu import Geglu, GegluBackward, Gelu, GeluBackward, GeluResults, Gradients
from penstock.kernels.triton_support import on_device

BLOCK, BLOCK_ROWS, BLOCK_COLUMNS = 1024, 16, 128
GEGLU_ROWS = 8  # two gradients take twice the registers
_PROGRAMS = 64  # along the rows of backward, each with sums of its own


def _shares(rows: int) -> tuple[int, int]:
    """How many programs share the rows of backward, and the rows of each."""
    each = -(-max(rows, 1) // _PROGRAMS)
    return -(-rows // each), each


def bias_gelu(problem: Gelu) -> GeluResults:
    x, bias, made = problem.x, problem.bias, problem.empty()
    rows, count = x.shape[0], x.numel()
    if count:
        with on_device(x):
            forward_kernel[(-(-count // BLOCK),)](
                *(x, bias, *made, rows),
                WIDTH=x.shape[1],
                BLOCK=BLOCK,
                HAS_BIAS=bias is not None,
                SAVE=problem.save,
            )
    return made


def bias_gelu_backward(problem: GeluBackward) -> Gradients:
    grad_out, x = problem.grad_out, torch.empty_like(problem.grad_out)
    rows, width = grad_out.shape
    programs, each = _shares(rows)
    sums = grad_out.new_empty(programs, width, dtype=torch.float32) if problem.has_bias else None
    if rows:
        with on_device(grad_out):
            backward_kernel[programs, -(-width // BLOCK_COLUMNS)](
                *(grad_out, problem.derivative, x, sums, rows, each),
                WIDTH=width,
                BLOCK_ROWS=BLOCK_ROWS,
                BLOCK_COLUMNS=BLOCK_COLUMNS,
                HAS_BIAS=problem.has_bias,
            )
    return Gradients(x, None if sums is None else sums.sum(0))


def geglu(problem: Geglu) -> Tensor:
    x, bias, out = problem.x, problem.bias, problem.empty()
    rows, count = x.shape[0], out.numel()
    if count:
        with on_device(x):
            geglu_forward_kernel[(-(-count // BLOCK),)](
                *(x, bias, out, rows), WIDTH=out.shape[1], BLOCK=BLOCK, HAS_BIAS=bias is not None
            )
    return out


def geglu_backward(problem: GegluBackward) -> Gradients:
    grad_out, x, bias = problem.grad_out, torch.empty_like(problem.x), problem.bias
    rows, width = grad_out.shape
    programs, each = _shares(rows)
    sums = None if bias is None else x.new_empty(programs, 2 * width, dtype=torch.float32)
    if rows:
        with on_device(x):
            geglu_backward_kernel[programs, -(-width // BLOCK_COLUMNS)](
                *(grad_out, problem.x, bias, x, sums, rows, each),
                WIDTH=width,
                BLOCK_ROWS=GEGLU_ROWS,
                BLOCK_COLUMNS=BLOCK_COLUMNS,
                HAS_BIAS=bias is not None,
            )
    return Gradients(x, None if sums is None else sums.sum(0))


@triton.jit
def _gelu(v):
    """GELU and its derivative."""
    phi = 0.5 + 0.5 * tl.erf(v * 0.7071067811865476)
    bell = tl.exp2(v * v * -0.7213475204444817) * 0.3989422804014327
    return v * phi, phi + v * bell


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    x,  # (rows, WIDTH), as out and derivative
    bias,  # (WIDTH,)
    out,
    derivative,
    rows,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tl.cast(rows, tl.int64) * WIDTH  # multiplied here, the compiler knows what divides it: wide accesses
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        v += tl.load(bias + at % WIDTH, mask=inside, other=0.0)
    value, slope = _gelu(v)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
    if SAVE:
        tl.store(derivative + at, slope.to(derivative.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "rows_per_program"])
def backward_kernel(
    grad_out,  # (rows, WIDTH), as derivative and grad_x
    derivative,
    grad_x,
    sums,  # (programs, WIDTH)
    rows,
    rows_per_program,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    first = tl.program_id(0) * rows_per_program
    last = tl.minimum(first + rows_per_program, rows)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    total = tl.zeros(
        (BLOCK_ROWS, BLOCK_COLUMNS), tl.float32
    )  # summed over rows once, at the end: the loop has no barrier
    for start in range(first, last, BLOCK_ROWS):
        block = start + tl.arange(0, BLOCK_ROWS)
        inside = (block < last)[:, None] & (columns < WIDTH)[None, :]
        at = block.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        dx = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        dx *= tl.load(derivative + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x + at, dx.to(grad_x.dtype.element_ty), mask=inside)
        total += dx
    if HAS_BIAS:
        tl.store(sums + tl.program_id(0).to(tl.int64) * WIDTH + columns, tl.sum(total, 0), mask=columns < WIDTH)


@triton.jit(do_not_specialize=["rows"])
def geglu_forward_kernel(
    x,  # (rows, 2 WIDTH)
    bias,  # (2 WIDTH,)
    out,  # (rows, WIDTH)
    rows,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tl.cast(rows, tl.int64) * WIDTH  # multiplied here, the compiler knows what divides it: wide accesses
    column = at % WIDTH
    of_gate = x + at // WIDTH * (2 * WIDTH) + column
    gate = tl.load(of_gate, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(of_gate + WIDTH, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        gate += tl.load(bias + column, mask=inside, other=0.0)
        value += tl.load(bias + WIDTH + column, mask=inside, other=0.0)
    activated, _ = _gelu(gate)
    tl.store(out + at, (activated * value).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "rows_per_program"])
def geglu_backward_kernel(
    grad_out,  # (rows, WIDTH)
    x,  # (rows, 2 WIDTH), as grad_x
    bias,  # (2 WIDTH,)
    grad_x,
    sums,  # (programs, 2 WIDTH)
    rows,
    rows_per_program,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    first = tl.program_id(0) * rows_per_program
    last = tl.minimum(first + rows_per_program, rows)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    in_row = columns < WIDTH
    gate_total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    value_total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    if HAS_BIAS:
        gate_bias = tl.load(bias + columns, mask=in_row, other=0.0)[None, :]
        value_bias = tl.load(bias + WIDTH + columns, mask=in_row, other=0.0)[None, :]
    for start in range(first, last, BLOCK_ROWS):
        block = start + tl.arange(0, BLOCK_ROWS)
        inside = (block < last)[:, None] & in_row[None, :]
        row = block.to(tl.int64)[:, None]
        dy = tl.load(grad_out + row * WIDTH + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        at = row * (2 * WIDTH) + columns[None, :]
        gate = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + at + WIDTH, mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            gate += gate_bias
            value += value_bias
        activated, derivative = _gelu(gate)
        d_gate, d_value = dy * value * derivative, dy * activated
        tl.store(grad_x + at, d_gate.to(grad_x.dtype.element_ty), mask=inside)
        tl.store(grad_x + at + WIDTH, d_value.to(grad_x.dtype.element_ty), mask=inside)
        gate_total += d_gate
        value_total += d_value
    if HAS_BIAS:
        of_program = sums + tl.program_id(0).to(tl.int64) * (2 * WIDTH) + columns
        tl.store(of_program, tl.sum(gate_total, 0), mask=in_row)
        tl.store(of_program + WIDTH, tl.sum(value_total, 0), mask=in_row)
