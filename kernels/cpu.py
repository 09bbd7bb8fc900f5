"""The row-wise operations and the linear layer on a CPU, in C++ (csrc/rowwise/cpu, csrc/linear/cpu).

Each function passes its problem to the compiled one by names: tensors as addresses, which must outlive the call, None
where there is none.
"""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import gelu, norm, philox
from penstock.kernels.compiled import address, call, native
from penstock.kernels.linear import Backward as LinearBackward
from penstock.kernels.linear import Gradients as LinearGradients
from penstock.kernels.rotary import Problem as RotaryProblem
from penstock.kernels.rotary import Rotated


def _rows(function: Any, like: Tensor, given: dict[str, Any], tensors: dict[str, Tensor | None]) -> None:
    """Runs a function of csrc/rowwise on rows of the shape and dtype of `like`."""
    given |= {"bfloat16": like.dtype == torch.bfloat16, "rows": like.shape[0], "width": like.shape[1]}
    for name, tensor in tensors.items():
        given[name] = address(tensor)
    call(function, given)


def _sums(rows: int, *of_each: int) -> Tensor:
    """Uninitialised sums over rows, for the parameters: each piece of the rows has its own."""
    return torch.empty(native.row_pieces(rows), *of_each, dtype=torch.float32, device="cpu")


def residual_norm(problem: norm.Problem) -> norm.Results:
    p, made = problem, problem.empty()
    given = dropout_rule(p) | {"bfloat16_residual": p.residual.dtype == torch.bfloat16, "eps": p.eps}
    tensors = {"x": p.x, "residual": p.residual, "x_bias": p.x_bias, "weight": p.weight, "bias": p.bias}
    tensors |= {"out": made.out, "z": made.z, "normal": made.normal, "rstd": made.rstd}
    _rows(native.norm_forward, p.x, given, tensors)
    return made


def residual_norm_backward(problem: norm.Backward) -> norm.Gradients:
    p, (rows, width), (residual, own_x) = problem, problem.grad_out.shape, problem.empty_rows()
    sums = _sums(rows, 3, width)
    given = dropout_rule(p) | {"bfloat16_residual": residual.dtype == torch.bfloat16}
    tensors = {"grad_out": p.grad_out, "grad_z": p.grad_z, "x_bias": p.x_bias, "weight": p.weight}
    tensors |= {"normal": p.normal, "rstd": p.rstd, "grad_residual": residual, "grad_x": own_x, "sums": sums}
    _rows(native.norm_backward, p.grad_out, given, tensors)
    return norm.Gradients(residual, own_x, sums.sum(0))


def dropout_rule(problem: norm.Problem | norm.Backward) -> dict[str, Any]:
    """How csrc/dropout.h drops: nothing with a dropout_p of 0."""
    p = problem
    return {
        "dropout_threshold": philox.threshold(p.dropout_p),
        "dropout_scale": philox.scale(p.dropout_p),
        "seed": 0 if p.seed is None else int(p.seed) & 0xFFFFFFFFFFFFFFFF,
        "batch": 0 if p.cu_seqlens is None else p.cu_seqlens.shape[0] - 1,
        "cu_seqlens": address(p.cu_seqlens),
        "ids": address(p.ids),
    }


def bias_gelu(problem: gelu.Gelu) -> gelu.GeluResults:
    made = problem.empty()
    tensors = {"x": problem.x, "bias": problem.bias, "out": made.out, "derivative": made.derivative}
    _rows(native.gelu_forward, problem.x, {}, tensors)
    return made


def bias_gelu_backward(problem: gelu.GeluBackward) -> gelu.Gradients:
    grad_out, x = problem.grad_out, torch.empty_like(problem.grad_out)
    sums = _sums(*x.shape) if problem.has_bias else None
    tensors = {"grad_out": grad_out, "saved_derivative": problem.derivative, "grad_x": x, "sums": sums}
    _rows(native.gelu_backward, x, {}, tensors)
    return gelu.Gradients(x, None if sums is None else sums.sum(0))


def geglu(problem: gelu.Geglu) -> Tensor:
    out = problem.empty()
    _rows(native.geglu_forward, out, {}, {"x": problem.x, "bias": problem.bias, "out": out})
    return out


def geglu_backward(problem: gelu.GegluBackward) -> gelu.Gradients:
    x = torch.empty_like(problem.x)
    sums = None if problem.bias is None else _sums(*x.shape)
    tensors = {"grad_out": problem.grad_out, "x": problem.x, "bias": problem.bias, "grad_x": x, "sums": sums}
    _rows(native.geglu_backward, problem.grad_out, {}, tensors)
    return gelu.Gradients(x, None if sums is None else sums.sum(0))


def rotary(problem: RotaryProblem) -> Rotated:
    (q, k, cos, sin, transposed), turned = problem, problem.empty()
    arguments: dict[str, Any] = {
        "bfloat16": q.dtype == torch.bfloat16,
        "rows": cos.shape[0],
        "head_dim": cos.shape[1],
        "transposed": transposed,
        "cos": cos.data_ptr(),
        "sin": sin.data_ptr(),
        "q": _heads(q, turned.q),
        "k": _heads(k, turned.k),
    }
    call(native.rotary, arguments)
    return turned


def _heads(x: Tensor, out: Tensor) -> tuple[int, int, int, int, int]:
    return x.data_ptr(), out.data_ptr(), x.shape[1], x.stride(0), x.stride(1)


def linear_backward(problem: LinearBackward) -> LinearGradients:
    """On Intel's matrix unit. Without one, torch's own product is as fast."""
    (tokens, rows), columns = problem.grad_out.shape, problem.x.shape[1]
    weight = torch.empty(rows, columns, dtype=torch.float32, device="cpu")
    made = LinearGradients(weight, weight.new_empty(rows) if problem.with_bias else None)
    tensors = {"grad_out": problem.grad_out, "x": problem.x, "grad_weight": made.weight, "grad_bias": made.bias}
    arguments: dict[str, Any] = {"tokens": tokens, "rows": rows, "columns": columns}
    call(native.weight_gradient, arguments | {name: address(tensor) for name, tensor in tensors.items()})
    return made
