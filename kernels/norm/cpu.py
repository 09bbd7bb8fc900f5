"""The residual normalisation on a CPU, in C++ (csrc/rowwise/cpu): one pass over memory, dropout inside."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import philox
from penstock.kernels.compiled import address, available, call, native, why_not
from penstock.kernels.norm.protocol import Gradients, Problem, Saved

__all__ = ["available", "backward", "forward", "why_not"]


def _arguments(problem: Problem, saved: Saved, **tensors: Tensor | None) -> dict[str, Any]:
    """What csrc/rowwise/cpu/rowwise.cpp reads; the tensors must outlive the call. One without elements is null."""
    tensors |= {"x_bias": problem.x_bias, "weight": problem.weight}
    tensors |= {"cu_seqlens": problem.cu_seqlens, "ids": problem.ids, "normal": saved.normal, "rstd": saved.rstd}
    return {
        "bfloat16": problem.x.dtype == torch.bfloat16,
        "bfloat16_residual": problem.residual.dtype == torch.bfloat16,
        "rows": problem.x.shape[0],
        "width": problem.x.shape[1],
        "dropout_threshold": philox.threshold(problem.dropout_p),
        "dropout_scale": philox.scale(problem.dropout_p),
        "seed": 0 if problem.seed is None else int(problem.seed) & 0xFFFFFFFFFFFFFFFF,
        "batch": 0 if problem.cu_seqlens is None else problem.cu_seqlens.shape[0] - 1,
        **{name: address(tensor) for name, tensor in tensors.items()},
    }


def forward(problem: Problem, save: bool) -> tuple[Tensor, Tensor, Saved]:
    out, z, saved = torch.empty_like(problem.x), problem.empty_z(), Saved.empty(problem.x, save)
    made = {"out": out, "z": z}
    arguments = _arguments(problem, saved, x=problem.x, residual=problem.residual, bias=problem.bias, **made)
    call(native.norm_forward, arguments | {"eps": problem.eps})
    return out, z, saved


def backward(grad_out: Tensor, grad_z: Tensor | None, problem: Problem, saved: Saved) -> Gradients:
    rows, width = grad_out.shape
    residual = torch.empty_like(problem.residual)
    x = grad_out.new_empty(grad_out.shape if problem.two_gradients else 0)
    sums = torch.empty(native.row_pieces(rows), 3, width)
    made = {"grad_residual": residual, "grad_x": x, "sums": sums}
    arguments = _arguments(problem, saved, grad_out=grad_out, grad_z=grad_z, **made)
    call(native.norm_backward, arguments)
    weight, bias, x_bias = sums.sum(0)
    return Gradients(residual, x, weight, bias, None if problem.x_bias is None else x_bias)
