"""Bias and GELU, alone and as a gate, on a CPU, in C++ (csrc/rowwise/cpu)."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels.compiled import address, available, call, native, why_not

__all__ = ["available", "backward", "forward", "geglu_backward", "geglu_forward", "why_not"]


def _call(function: Any, shape: torch.Size, dtype: torch.dtype, **tensors: Tensor | None) -> None:
    arguments: dict[str, Any] = {"bfloat16": dtype == torch.bfloat16, "rows": shape[0], "width": shape[1]}
    arguments |= {name: address(tensor) for name, tensor in tensors.items()}
    call(function, arguments)


def forward(x: Tensor, bias: Tensor | None, save: bool) -> tuple[Tensor, Tensor]:
    out, derivative = torch.empty_like(x), x.new_empty(x.shape[0] if save else 0, x.shape[1])
    kept = derivative if save else None
    _call(native.gelu_forward, x.shape, x.dtype, x=x, bias=bias, out=out, derivative=kept)
    return out, derivative


def backward(grad_out: Tensor, derivative: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
    rows, width = grad_out.shape
    x = torch.empty_like(grad_out)
    sums = torch.empty(native.row_pieces(rows), width) if has_bias else None
    tensors = {"grad_out": grad_out, "saved_derivative": derivative, "grad_x": x, "sums": sums}
    _call(native.gelu_backward, x.shape, x.dtype, **tensors)
    return x, torch.empty(0) if sums is None else sums.sum(0)


def geglu_forward(x: Tensor, bias: Tensor | None) -> Tensor:
    out = x.new_empty(x.shape[0], x.shape[1] // 2)
    _call(native.geglu_forward, out.shape, x.dtype, x=x, bias=bias, out=out)
    return out


def geglu_backward(grad_out: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    d_x = torch.empty_like(x)
    sums = None if bias is None else torch.empty(native.row_pieces(x.shape[0]), x.shape[1])
    tensors = {"grad_out": grad_out, "x": x, "bias": bias, "grad_x": d_x, "sums": sums}
    _call(native.geglu_backward, grad_out.shape, x.dtype, **tensors)
    return d_x, torch.empty(0) if sums is None else sums.sum(0)
