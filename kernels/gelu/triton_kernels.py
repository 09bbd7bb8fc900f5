"""Bias and GELU, and their derivative, element by element."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])
def forward_kernel(
    x,  # (rows, WIDTH), as out and derivative
    bias,  # (WIDTH,)
    out,
    derivative,
    count,  # rows * WIDTH
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        v += tl.load(bias + at % WIDTH, mask=inside, other=0.0)
    phi = 0.5 + 0.5 * tl.erf(v * 0.7071067811865476)
    tl.store(out + at, (v * phi).to(out.dtype.element_ty), mask=inside)
    if SAVE:
        bell = tl.exp2(v * v * -0.7213475204444817) * 0.3989422804014327
        tl.store(derivative + at, (phi + v * bell).to(derivative.dtype.element_ty), mask=inside)


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
    total = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for start in range(first, last, BLOCK_ROWS):
        block = start + tl.arange(0, BLOCK_ROWS)
        inside = (block < last)[:, None] & (columns < WIDTH)[None, :]
        at = block.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        dx = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        dx *= tl.load(derivative + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x + at, dx.to(grad_x.dtype.element_ty), mask=inside)
        total += tl.sum(dx, 0)
    if HAS_BIAS:
        tl.store(sums + tl.program_id(0).to(tl.int64) * WIDTH + columns, total, mask=columns < WIDTH)
