"""Bias and GELU with torch's own operations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels.gelu import reference

backward = reference.backward  # the derivative is saved: there is one product left, and a sum


def forward(x: Tensor, bias: Tensor | None, save: bool) -> tuple[Tensor, Tensor]:
    wide = reference.biased(x, bias)
    if not save:
        return F.gelu(wide).to(x.dtype), x.new_empty(0, x.shape[1])
    derivative = torch.ops.aten.gelu_backward(torch.ones_like(wide), wide)
    return F.gelu(wide).to(x.dtype), derivative.to(x.dtype)


def geglu_forward(x: Tensor, bias: Tensor | None) -> Tensor:
    gate, value = reference.biased(x, bias).chunk(2, 1)
    return F.gelu(gate).mul_(value).to(x.dtype)


def geglu_backward(grad_out: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    gate, value = reference.biased(x, bias).chunk(2, 1)
    d_x = torch.cat((torch.ops.aten.gelu_backward(grad_out * value, gate), grad_out * F.gelu(gate)), 1)
    return d_x.to(x.dtype), d_x.new_empty(0) if bias is None else d_x.sum(0)


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
