"""What a backend of bias and GELU, alone and as a gate, is asked to compute."""

from typing import Protocol

import torch
from torch import Tensor


class Backend(Protocol):
    """What a backend's module defines; its functions run below autograd and with autocast off.

    x, (tokens, width), is dense; the bias, (width,), is float32, or float64 for float64 x. For GEGLU both are
    twice as wide as the output.
    """

    def forward(self, x: Tensor, bias: Tensor | None, save: bool) -> tuple[Tensor, Tensor]:
        """Returns gelu(x + bias) and its derivative there, in the dtype of x; the latter empty if not to be saved."""
        ...

    def backward(self, grad_out: Tensor, derivative: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
        """Returns the gradients of x, in the dtype of `grad_out`, and of the bias, empty if there is none."""
        ...

    def geglu_forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Returns gelu(gate) * value, (tokens, width), of the halves (gate, value) of x + bias, in the dtype of x."""
        ...

    def geglu_backward(self, grad_out: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the gradients of x, in its dtype, and of the bias, empty if there is none."""
        ...

    def why_not(self, *, device_type: str, dtype: torch.dtype, **_: object) -> str | None:
        """None, or one line saying why this backend cannot serve such a call."""
        ...

    def available(self) -> str | None:
        """None, or one line saying why this backend cannot run here at all."""
        ...
