"""Bias and GELU in Triton: how the kernels of `triton_kernels.py` are launched."""

import torch
from torch import Tensor

from penstock.kernels.triton_here import on_device, why_not

BLOCK, BLOCK_ROWS, BLOCK_COLUMNS = 1024, 16, 128
_PROGRAMS = 64  # along the rows of backward, each with sums of its own

__all__ = ["backward", "forward", "why_not"]


def forward(x: Tensor, bias: Tensor | None, save: bool) -> tuple[Tensor, Tensor]:
    from penstock.kernels.gelu.triton_kernels import forward_kernel

    out, derivative = torch.empty_like(x), x.new_empty(x.shape[0] if save else 0, x.shape[1])
    count = x.numel()
    if count:
        with on_device(x):
            forward_kernel[(-(-count // BLOCK),)](
                *(x, bias, out, derivative, count),
                WIDTH=x.shape[1],
                BLOCK=BLOCK,
                HAS_BIAS=bias is not None,
                SAVE=save,
            )
    return out, derivative


def backward(grad_out: Tensor, derivative: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
    from penstock.kernels.gelu.triton_kernels import backward_kernel

    rows, width = grad_out.shape
    x = torch.empty_like(grad_out)
    each = -(-max(rows, 1) // _PROGRAMS)
    programs = -(-rows // each)
    sums = grad_out.new_empty(programs if has_bias else 0, width, dtype=torch.float32)
    if rows:
        with on_device(grad_out):
            backward_kernel[programs, -(-width // BLOCK_COLUMNS)](
                *(grad_out, derivative, x, sums, rows, each),
                WIDTH=width,
                BLOCK_ROWS=BLOCK_ROWS,
                BLOCK_COLUMNS=BLOCK_COLUMNS,
                HAS_BIAS=has_bias,
            )
    return x, sums.sum(0) if has_bias else sums.new_empty(0)
