"""The residual normalisation in Triton: how the kernels of `triton_kernels.py` are launched."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import philox, triton_support
from penstock.kernels.norm.protocol import Gradients, Problem, Saved
from penstock.kernels.triton_support import on_device

_WIDEST = 8192  # a row is one block
_PROGRAMS = 256  # of backward, each with sums of its own; not by the device, so that results do not depend on it


def block(width: int) -> int:
    """The elements of a row's block: dropout draws eight at a time."""
    return max(16, 1 << (width - 1).bit_length())


def warps(width: int) -> int:
    return min(max(block(width) // 256, 1), 8)


def _dropout(problem: Problem) -> tuple[tuple[Any, ...], tuple[int, int], tuple[int, float]]:
    batch = 0 if problem.cu_seqlens is None else problem.cu_seqlens.shape[0] - 1
    drop = philox.threshold(problem.dropout_p), philox.scale(problem.dropout_p)
    return (problem.cu_seqlens, problem.ids, problem.seed), (batch, batch.bit_length()), drop


def forward(problem: Problem, save: bool) -> tuple[Tensor, Tensor, Saved]:
    from penstock.kernels.norm.triton_kernels import forward_kernel

    x = problem.x
    rows, width = x.shape
    out, z, saved = torch.empty_like(x), problem.empty_z(), Saved.empty(x, save)
    tensors, bisection, drop = _dropout(problem)
    if rows:
        with on_device(x):
            forward_kernel[(rows,)](
                *(x, problem.residual, problem.x_bias, problem.weight, problem.bias, out, z, saved.normal, saved.rstd),
                *(*tensors, *bisection, problem.eps, *drop),
                WIDTH=width,
                BLOCK=block(width),
                HAS_X_BIAS=problem.x_bias is not None,
                HAS_BIAS=problem.bias is not None,
                DROPOUT=problem.dropout_p > 0,
                PRENORM=problem.prenorm,
                SAVE=save,
                num_warps=warps(width),
            )
    return out, z, saved


def backward(grad_out: Tensor, grad_z: Tensor | None, problem: Problem, saved: Saved) -> Gradients:
    from penstock.kernels.norm.triton_kernels import backward_kernel

    rows, width = grad_out.shape
    residual = torch.empty_like(problem.residual)
    x = grad_out.new_empty(grad_out.shape if problem.two_gradients else 0)
    programs = min(rows, _PROGRAMS)
    sums = problem.weight.new_empty(programs, 3, width)
    tensors, bisection, drop = _dropout(problem)
    if rows:
        with on_device(grad_out):
            backward_kernel[(programs,)](
                *(grad_out, grad_z, saved.normal, saved.rstd, problem.weight, residual, x, sums),
                *(*tensors, rows, *bisection, *drop),
                WIDTH=width,
                BLOCK=block(width),
                DROPOUT=problem.dropout_p > 0,
                PRENORM=problem.prenorm,
                TWO_GRADIENTS=problem.two_gradients,
                num_warps=warps(width),
            )
    weight, bias, x_bias = sums.sum(0)
    return Gradients(residual, x, weight, bias, None if problem.x_bias is None else x_bias)


def why_not(*, width: int, **facts: Any) -> str | None:
    too_wide = f"its width goes to {_WIDEST}, not {width}" if width > _WIDEST else None
    return triton_support.why_not(**facts) or too_wide
