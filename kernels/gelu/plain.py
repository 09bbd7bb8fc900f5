"""The truth about bias and GELU: x Phi(x), with Phi the normal distribution (Hendrycks and Gimpel, 2016).

As a gate it is GEGLU (Shazeer, GLU Variants Improve Transformer, 2020). And torch's own operations.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels.gelu import Geglu, GegluBackward, Gelu, GeluBackward, GeluResults, Gradients
from penstock.kernels.precision import accumulate_dtype


def _biased(problem: Gelu | Geglu | GegluBackward) -> Tensor:
    """x + bias in the dtype of the arithmetic."""
    wide = problem.x.to(accumulate_dtype(problem.x.dtype))
    return wide if problem.bias is None else wide + problem.bias


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU and its derivative."""
    phi = 0.5 * torch.special.erfc(-x / math.sqrt(2))
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
    return x * phi, phi + x * density


def bias_gelu(problem: Gelu) -> GeluResults:
    dtype = problem.x.dtype
    out, derivative = _gelu(_biased(problem))
    return GeluResults(out.to(dtype), derivative.to(dtype) if problem.save else None)


def bias_gelu_backward(problem: GeluBackward) -> Gradients:
    dtype = problem.grad_out.dtype
    x = problem.grad_out.to(accumulate_dtype(dtype)) * problem.derivative
    return Gradients(x.to(dtype), x.sum(0) if problem.has_bias else None)


def geglu(problem: Geglu) -> Tensor:
    gate, value = _biased(problem).chunk(2, 1)
    return (_gelu(gate)[0] * value).to(problem.x.dtype)


def geglu_backward(problem: GegluBackward) -> Gradients:
    gate, value = _biased(problem).chunk(2, 1)
    activated, derivative = _gelu(gate)
    x = torch.cat((problem.grad_out * value * derivative, problem.grad_out * activated), 1)
    return Gradients(x.to(problem.x.dtype), None if problem.bias is None else x.sum(0))


class Torch:
    """By torch's own GELU."""

    @staticmethod
    def bias_gelu(problem: Gelu) -> GeluResults:
        dtype, x = problem.x.dtype, _biased(problem)
        if not problem.save:
            return GeluResults(F.gelu(x).to(dtype), None)
        derivative = torch.ops.aten.gelu_backward(torch.ones_like(x), x)
        return GeluResults(F.gelu(x).to(dtype), derivative.to(dtype))

    bias_gelu_backward = staticmethod(bias_gelu_backward)  # one product and a sum are left

    @staticmethod
    def geglu(problem: Geglu) -> Tensor:
        gate, value = _biased(problem).chunk(2, 1)
        return F.gelu(gate).mul_(value).to(problem.x.dtype)

    @staticmethod
    def geglu_backward(problem: GegluBackward) -> Gradients:
        grad_out, (gate, value) = problem.grad_out, _biased(problem).chunk(2, 1)
        x = torch.cat((torch.ops.aten.gelu_backward(grad_out * value, gate), grad_out * F.gelu(gate)), 1)
        return Gradients(x.to(problem.x.dtype), None if problem.bias is None else x.sum(0))
