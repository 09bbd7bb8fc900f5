"""`penstock::bias_gelu` as torch sees it, and the public function."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import dispatch
from penstock.kernels.autocast import autocast_dtype
from penstock.kernels.gelu import cpu, reference
from penstock.kernels.gelu import torch as torch_backend
from penstock.kernels.gelu import triton as triton_backend
from penstock.kernels.gelu.protocol import accumulate_dtype

dispatch.register_modules("bias_gelu", triton=triton_backend, cpu=cpu, torch=torch_backend, reference=reference)

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
    save = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    backend = dispatch.choose("bias_gelu", device_type=x.device.type, dtype=x.dtype)
    wide = None if bias is None else bias.to(accumulate_dtype(x.dtype))
    return torch.ops.penstock.bias_gelu(x, wide, save, backend)[0]


@torch.library.impl("penstock::bias_gelu", "default")
def _forward(x: Tensor, bias: Tensor | None, save: bool, backend: str) -> tuple[Tensor, Tensor]:
    implementation = dispatch.implementation("bias_gelu", backend)
    with torch.autocast(x.device.type, enabled=False):
        return implementation.forward(x.contiguous(), None if bias is None else bias.contiguous(), save)


@torch.library.register_fake("penstock::bias_gelu")
def _fake_forward(x: Tensor, bias: Tensor | None, save: bool, backend: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0] if save else 0, x.shape[1])


@torch.library.impl("penstock::bias_gelu_backward", "default")
def _backward(grad_out: Tensor, derivative: Tensor, has_bias: bool, backend: str) -> tuple[Tensor, Tensor]:
    implementation = dispatch.implementation("bias_gelu", backend)
    with torch.autocast(grad_out.device.type, enabled=False):
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
    x, bias = torch.ops.penstock.bias_gelu_backward(grad_out, derivative, ctx.has_bias, ctx.backend)
    return x, bias if ctx.has_bias else None, None, None


torch.library.register_autograd("penstock::bias_gelu", _differentiate, setup_context=_setup_context)
