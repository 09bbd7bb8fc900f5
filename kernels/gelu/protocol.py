"""What a backend of bias and GELU is asked to compute."""

from typing import Protocol

import torch
from torch import Tensor


class Backend(Protocol):
    """What a backend's module defines; its functions run below autograd and with autocast off.

    x, (tokens, width), is dense; the bias, (width,), is float32, or float64 for float64 x.
    """

    def forward(self, x: Tensor, bias: Tensor | None, save: bool) -> tuple[Tensor, Tensor]:
        """Returns gelu(x + bias) and its derivative there, in the dtype of x; the latter empty if not to be saved."""
        ...

    def backward(self, grad_out: Tensor, derivative: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
        """Returns the gradients of x, in the dtype of `grad_out`, and of the bias, empty if there is none."""
        ...

    def why_not(self, *, device_type: str, dtype: torch.dtype, **_: object) -> str | None:
        """None, or one line saying why this backend cannot serve such a call."""
        ...

    def available(self) -> str | None:
        """None, or one line saying why this backend cannot run here at all."""
        ...


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: float32, or float64 for float64 input."""
    return torch.float64 if dtype == torch.float64 else torch.float32
