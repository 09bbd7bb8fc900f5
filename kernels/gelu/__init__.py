"""GELU(x + bias), alone and as a gate, each in one operation: `bias_gelu` and `geglu`.

The reference and torch's own operations are in plain.py, C++ is reached by kernels/cpu.py, Triton is in triton.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from penstock.kernels import checks, dispatch
from penstock.kernels.autocast import autocast_dtype, cast
from penstock.kernels.operation import Operation
from penstock.kernels.precision import accumulate_dtype


class Gelu(NamedTuple):
    """gelu(x + bias): x (tokens, width), the bias (width,), in `accumulate_dtype`."""

    x: Tensor
    bias: Tensor | None
    save: bool  # the derivative is a result too

    @property
    def has_bias(self) -> bool:
        return self.bias is not None

    def empty(self) -> "GeluResults":
        return GeluResults(torch.empty_like(self.x), torch.empty_like(self.x) if self.save else None)


class GeluResults(NamedTuple):
    """gelu(x + bias), and its derivative there, both in the dtype of x."""

    out: Tensor
    derivative: Tensor | None


class GeluBackward(NamedTuple):
    grad_out: Tensor
    derivative: Tensor
    has_bias: bool

    def empty(self) -> "Gradients":
        grad, width = self.grad_out, self.grad_out.shape[1]
        bias = grad.new_empty(width, dtype=accumulate_dtype(grad.dtype)) if self.has_bias else None
        return Gradients(torch.empty_like(grad), bias)


class Geglu(NamedTuple):
    """gelu(gate) value of the halves (gate, value) of x + bias: x (tokens, 2 width), the bias (2 width,)."""

    x: Tensor
    bias: Tensor | None

    def empty(self) -> Tensor:
        return self.x.new_empty(self.x.shape[0], self.x.shape[1] // 2)


class GegluBackward(NamedTuple):
    grad_out: Tensor
    x: Tensor
    bias: Tensor | None

    def empty(self) -> "Gradients":
        return Gradients(torch.empty_like(self.x), None if self.bias is None else torch.empty_like(self.bias))


class Gradients(NamedTuple):
    """Gradients of x, in its dtype, and of the bias, in `accumulate_dtype`."""

    x: Tensor
    bias: Tensor | None


for _name in ("bias_gelu", "geglu"):
    dispatch.register(_name, "triton", "penstock.kernels.gelu.triton")
    dispatch.register(_name, "cpu", "penstock.kernels.cpu")
    dispatch.register(_name, "torch", "penstock.kernels.gelu.plain:Torch")
    dispatch.register(_name, "reference", "penstock.kernels.gelu.plain")

_forms = {"grad_out derivative": "tokens, width"}
_bias_gelu_backward = Operation("bias_gelu_backward", GeluBackward, Gradients, forms=_forms)
_forms = {"x": "tokens, width", "bias": "width: wide"}
_bias_gelu = Operation("bias_gelu", Gelu, GeluResults, forms=_forms, backward=_bias_gelu_backward)
_forms = {"grad_out": "tokens, width", "x": "tokens, 2 * width", "bias": "2 * width: wide"}
_geglu_backward = Operation("geglu_backward", GegluBackward, Gradients, forms=_forms)
_forms = {"x": "tokens, x.shape[1] // 2 * 2", "bias": "x.shape[1]: wide"}
_geglu = Operation("geglu", Geglu, forms=_forms, backward=_geglu_backward, twice=True)


def bias_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU(x + bias), exact, not its tanh approximation.

    Forward saves the derivative instead of its argument: in 16 bits this is as small and more exact, and backward is
    one product.

    Args:
        x: (tokens, width), float16, bfloat16, float32 or float64.
        bias: (width,), floating point: that of the linear layer that made x, if that did not add it.
    Returns:
        (tokens, width), in the dtype of x. Under autocast x is cast to the autocast dtype (float64 excepted).
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        RuntimeError: the backend that `use_backend` forces cannot serve the call. In backward: create_graph=True, for
            it can be differentiated once only (by torch.func any number of times).
    """
    x, wide, backend = _prepared("bias_gelu", x, bias)
    save = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    return _bias_gelu.call(x, wide, save, backend)[0]


def geglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU(gate) * value, of the halves (gate, value) of each row of x + bias, with the exact GELU.

    Backward starts from x, which the product that made it left in memory: forward writes nothing but its result, and
    nothing is rounded between the two.

    Args:
        x: (tokens, 2 width), float16, bfloat16, float32 or float64.
        bias: (2 width,), floating point: that of the linear layer that made x, if that did not add it.
    Returns:
        (tokens, width), in the dtype of x. Under autocast x is cast to the autocast dtype (float64 excepted).
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        RuntimeError: the backend that `use_backend` forces cannot serve the call.
    """
    x, wide, backend = _prepared("geglu", x, bias)
    if x.shape[1] % 2:
        raise ValueError(f"x must have an even width, two halves, got {x.shape[1]}")
    return _geglu.call(x, wide, backend)


def _prepared(operation: str, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None, str]:
    """x as autocast wants it, the bias in the dtype of the arithmetic, and the backend; checked."""
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.ndim != 2:
        raise ValueError(f"x must have shape (tokens, width), got {tuple(x.shape)}")
    if bias is not None and (bias.shape != x.shape[1:] or bias.device != x.device):
        raise ValueError(
            f"bias must have shape ({x.shape[1]},) on {x.device}, got {tuple(bias.shape)} on {bias.device}"
        )
    checks.floating("bias", bias)
    backend = dispatch.choose(operation, device_type=x.device.type, dtype=x.dtype)
    return x, cast(bias, accumulate_dtype(x.dtype)), backend
