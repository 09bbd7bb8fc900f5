"""Bias and GELU with torch's own operations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels.gelu import reference
from penstock.kernels.gelu.protocol import accumulate_dtype

backward = reference.backward  # the derivative is saved: there is one product left, and a sum


def forward(x: Tensor, bias: Tensor | None, save: bool) -> tuple[Tensor, Tensor]:
    wide = x.to(accumulate_dtype(x.dtype))
    if bias is not None:
        wide = wide + bias
    if not save:
        return F.gelu(wide).to(x.dtype), x.new_empty(0, x.shape[1])
    derivative = torch.ops.aten.gelu_backward(torch.ones_like(wide), wide)
    return F.gelu(wide).to(x.dtype), derivative.to(x.dtype)


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
