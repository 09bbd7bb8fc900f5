"""The truth about bias and GELU: x Phi(x), with Phi the normal distribution (Hendrycks and Gimpel, 2016).

As a gate it is GEGLU (Shazeer, GLU Variants Improve Transformer, 2020).
"""

import math

import torch
from torch import Tensor

from penstock.kernels.precision import accumulate_dtype


def biased(x: Tensor, bias: Tensor | None) -> Tensor:
    """x + bias in the dtype of the arithmetic."""
    wide = x.to(accumulate_dtype(x.dtype))
    return wide if bias is None else wide + bias


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU and its derivative."""
    phi = 0.5 * torch.special.erfc(-x / math.sqrt(2))
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
    return x * phi, phi + x * density


def forward(x: Tensor, bias: Tensor | None, save: bool) -> tuple[Tensor, Tensor]:
    out, derivative = _gelu(biased(x, bias))
    return out.to(x.dtype), derivative.to(x.dtype) if save else x.new_empty(0, x.shape[1])


def backward(grad_out: Tensor, derivative: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(grad_out.dtype)
    d_x = grad_out.to(dtype) * derivative
    return d_x.to(grad_out.dtype), d_x.sum(0) if has_bias else d_x.new_empty(0)


def geglu_forward(x: Tensor, bias: Tensor | None) -> Tensor:
    gate, value = biased(x, bias).chunk(2, 1)
    return (_gelu(gate)[0] * value).to(x.dtype)


def geglu_backward(grad_out: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    gate, value = biased(x, bias).chunk(2, 1)
    activated, derivative = _gelu(gate)
    d_x = torch.cat((grad_out * value * derivative, grad_out * activated), 1)
    return d_x.to(x.dtype), d_x.new_empty(0) if bias is None else d_x.sum(0)


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
