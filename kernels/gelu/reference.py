"""The truth about bias and GELU: x Phi(x), with Phi the normal distribution (Hendrycks and Gimpel, 2016)."""

import math

import torch
from torch import Tensor

from penstock.kernels.gelu.protocol import accumulate_dtype


def forward(x: Tensor, bias: Tensor | None, save: bool) -> tuple[Tensor, Tensor]:
    wide = x.to(accumulate_dtype(x.dtype))
    if bias is not None:
        wide = wide + bias
    phi = 0.5 * torch.special.erfc(-wide / math.sqrt(2))
    density = torch.exp(-0.5 * wide.square()) / math.sqrt(2 * math.pi)
    derivative = (phi + wide * density).to(x.dtype) if save else x.new_empty(0, x.shape[1])
    return (wide * phi).to(x.dtype), derivative


def backward(grad_out: Tensor, derivative: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(grad_out.dtype)
    d_x = grad_out.to(dtype) * derivative
    return d_x.to(grad_out.dtype), d_x.sum(0) if has_bias else d_x.new_empty(0)


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
