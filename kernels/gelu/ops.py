"""`penstock::bias_gelu` and `penstock::geglu` as torch sees them, and the public functions."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import dispatch, transforms
from penstock.kernels.autocast import autocast_dtype, cast, without_autocast
from penstock.kernels.gelu import cpu, reference
from penstock.kernels.gelu import torch as torch_backend
from penstock.kernels.gelu import triton as triton_backend
from penstock.kernels.precision import accumulate_dtype

for _operation in ("bias_gelu", "geglu"):
    dispatch.register_modules(_operation, triton=triton_backend, cpu=cpu, torch=torch_backend, reference=reference)

torch.library.define(
    "penstock::bias_gelu",
    "(Tensor x, Tensor? bias, bool save, str backend) -> (Tensor out, Tensor derivative)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::bias_gelu_backward",
    "(Tensor grad_out, Tensor derivative, bool has_bias, str backend) -> (Tensor x, Tensor bias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::geglu",
    "(Tensor x, Tensor? bias, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::geglu_backward",
    "(Tensor grad_out, Tensor x, Tensor? bias, str backend) -> (Tensor x, Tensor bias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


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
        RuntimeError: the backend that `use_backend` forces cannot serve the call.
    """
    x, wide, backend = _prepared("bias_gelu", x, bias)
    save = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    return _bias_gelu(x, wide, save, backend)[0]


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
    return _geglu(x, wide, backend)


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
    backend = dispatch.choose(operation, device_type=x.device.type, dtype=x.dtype)
    return x, cast(bias, accumulate_dtype(x.dtype)), backend


@torch.library.impl("penstock::bias_gelu", "default")
def _forward(x: Tensor, bias: Tensor | None, save: bool, backend: str) -> tuple[Tensor, Tensor]:
    implementation = dispatch.implementation("bias_gelu", backend)
    with without_autocast(x.device.type):
        return implementation.forward(x.contiguous(), None if bias is None else bias.contiguous(), save)


@torch.library.register_fake("penstock::bias_gelu")
def _fake_forward(x: Tensor, bias: Tensor | None, save: bool, backend: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0] if save else 0, x.shape[1])


@torch.library.impl("penstock::bias_gelu_backward", "default")
def _backward(grad_out: Tensor, derivative: Tensor, has_bias: bool, backend: str) -> tuple[Tensor, Tensor]:
    implementation = dispatch.implementation("bias_gelu", backend)
    with without_autocast(grad_out.device.type):
        return implementation.backward(grad_out.contiguous(), derivative, has_bias)


@torch.library.register_fake("penstock::bias_gelu_backward")
def _fake_backward(grad_out: Tensor, derivative: Tensor, has_bias: bool, backend: str) -> tuple[Tensor, Tensor]:
    bias = grad_out.new_empty(grad_out.shape[1] if has_bias else 0, dtype=accumulate_dtype(grad_out.dtype))
    return grad_out.new_empty(grad_out.shape), bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, bias, _, backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else zeros are made for what has no gradient
    ctx.save_for_backward(output[1])
    ctx.has_bias, ctx.backend = bias is not None, backend


def _differentiate(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 4
    if torch.is_grad_enabled():
        raise RuntimeError("bias_gelu can be differentiated once only (it was asked for with create_graph=True)")
    (derivative,) = ctx.saved_tensors
    x, bias = transforms.call(
        torch.ops.penstock.bias_gelu_backward.default, grad_out, derivative, ctx.has_bias, ctx.backend
    )
    return x, bias if ctx.has_bias else None, None, None


def _plain(x: Tensor, bias: Tensor | None, save: bool, backend: str) -> tuple[Tensor, Tensor]:
    with without_autocast(x.device.type):
        return reference.forward(x, bias, False)


def _plain_backward(grad_out: Tensor, derivative: Tensor, has_bias: bool, backend: str) -> tuple[Tensor, Tensor]:
    with without_autocast(grad_out.device.type):
        return reference.backward(grad_out, derivative, has_bias)


_bias_gelu = transforms.register("bias_gelu", _plain, _setup_context, _differentiate)
transforms.register("bias_gelu_backward", _plain_backward)


@torch.library.impl("penstock::geglu", "default")
def _geglu_forward(x: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    implementation = dispatch.implementation("geglu", backend)
    with without_autocast(x.device.type):
        return implementation.geglu_forward(x.contiguous(), None if bias is None else bias.contiguous())


@torch.library.register_fake("penstock::geglu")
def _fake_geglu_forward(x: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2)


@torch.library.impl("penstock::geglu_backward", "default")
def _geglu_backward(grad_out: Tensor, x: Tensor, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    implementation = dispatch.implementation("geglu", backend)
    bias = None if bias is None else bias.contiguous()
    with without_autocast(x.device.type):
        return implementation.geglu_backward(grad_out.contiguous(), x.contiguous(), bias)


@torch.library.register_fake("penstock::geglu_backward")
def _fake_geglu_backward(grad_out: Tensor, x: Tensor, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    d_bias = x.new_empty(0 if bias is None else x.shape[1], dtype=accumulate_dtype(x.dtype))
    return x.new_empty(x.shape), d_bias


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.backend = inputs
    ctx.save_for_backward(x, bias)


def _differentiate_geglu(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    d_x, d_bias = transforms.call(torch.ops.penstock.geglu_backward.default, grad_out, x, bias, ctx.backend)
    return d_x, None if bias is None else d_bias, None


def _plain_geglu(x: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    with without_autocast(x.device.type):
        return reference.geglu_forward(x, bias)


def _plain_geglu_backward(grad_out: Tensor, x: Tensor, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    with without_autocast(x.device.type):
        return reference.geglu_backward(grad_out, x, bias)


_geglu = transforms.register("geglu", _plain_geglu, _keep_inputs, _differentiate_geglu)
transforms.register("geglu_backward", _plain_geglu_backward)
