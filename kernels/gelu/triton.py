"""Bias and GELU, alone and as a gate, in Triton: how the kernels of `triton_kernels.py` are launched."""

import torch
from torch import Tensor

from penstock.kernels.triton_support import on_device, why_not

BLOCK, BLOCK_ROWS, BLOCK_COLUMNS = 1024, 16, 128
_PROGRAMS = 64  # along the rows of backward, each with sums of its own

__all__ = ["backward", "forward", "geglu_backward", "geglu_forward", "why_not"]


def _shares(rows: int) -> tuple[int, int]:
    """How many programs share the rows of backward, and the rows of each."""
    each = -(-max(rows, 1) // _PROGRAMS)
    return -(-rows // each), each


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
    programs, each = _shares(rows)
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


def geglu_forward(x: Tensor, bias: Tensor | None) -> Tensor:
    from penstock.kernels.gelu.triton_kernels import geglu_forward_kernel

    out = x.new_empty(x.shape[0], x.shape[1] // 2)
    count = out.numel()
    if count:
        with on_device(x):
            geglu_forward_kernel[(-(-count // BLOCK),)](
                *(x, bias, out, count),
                WIDTH=out.shape[1],
                BLOCK=BLOCK,
                HAS_BIAS=bias is not None,
            )
    return out


def geglu_backward(grad_out: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    from penstock.kernels.gelu.triton_kernels import geglu_backward_kernel

    rows, width = grad_out.shape
    d_x = torch.empty_like(x)
    programs, each = _shares(rows)
    sums = x.new_empty(0 if bias is None else programs, 2 * width, dtype=torch.float32)
    if rows:
        with on_device(x):
            geglu_backward_kernel[programs, -(-width // BLOCK_COLUMNS)](
                *(grad_out, x, bias, d_x, sums, rows, each),
                WIDTH=width,
                BLOCK_ROWS=BLOCK_ROWS,
                BLOCK_COLUMNS=BLOCK_COLUMNS,
                HAS_BIAS=bias is not None,
            )
    return d_x, sums.new_empty(0) if bias is None else sums.sum(0)
