"""Linear layers side by side, with gradients of their parameters of our own: `linear`."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from penstock.kernels import compiled, dispatch, transforms
from penstock.kernels.autocast import autocast_dtype
from penstock.kernels.operation import Operation
from penstock.kernels.precision import accumulate_dtype


class Backward(NamedTuple):
    """What the gradients of a linear layer's parameters are made of; that of its bias is asked for or not."""

    grad_out: Tensor  # (tokens, out_features)
    x: Tensor  # (tokens, in_features)
    with_bias: bool


class Gradients(NamedTuple):
    """Sums over tokens, in `accumulate_dtype`.

    Attributes:
        weight: grad_out^T x, (out_features, in_features).
        bias: of grad_out, (out_features,); None if it was not asked for.
    """

    weight: Tensor
    bias: Tensor | None


class Reference:
    """Summed in float32 or float64."""

    @staticmethod
    def linear_backward(problem: Backward) -> Gradients:
        wide = accumulate_dtype(problem.x.dtype)
        grad_out = problem.grad_out.to(wide)
        return Gradients(grad_out.t() @ problem.x.to(wide), grad_out.sum(0) if problem.with_bias else None)


class Torch:
    """Torch's own product; on a CPU it is rounded to the dtype of x, where that is one of 16 bits."""

    @staticmethod
    def linear_backward(problem: Backward) -> Gradients:
        grad_out, x = problem.grad_out.t(), problem.x
        wide = accumulate_dtype(x.dtype)
        bias = problem.grad_out.sum(0, dtype=wide) if problem.with_bias else None
        if x.is_cuda and x.dtype != wide and torch.version.hip is None:
            weight = torch.mm(grad_out, x, out_dtype=wide)  # one launch, no rounding on the way
        else:
            weight = (grad_out @ x).to(wide)
        return Gradients(weight, bias)


def _why_not_cpu(*, device_type: str, dtype: torch.dtype, **_: object) -> str | None:
    wrong_dtype = None if dtype == torch.bfloat16 else f"the matrix unit multiplies bfloat16, not {dtype}"
    return compiled.why_not(device_type=device_type, dtype=dtype) or wrong_dtype


def _cpu_available() -> str | None:
    """None with Intel's matrix unit, else the reason."""
    missing = compiled.available()
    if missing is None and compiled.isa() != "amx_bf16":
        missing = "torch's own product is as fast without Intel's matrix unit (AMX)"
    return missing


dispatch.register("linear", "cpu", "penstock.kernels.cpu", _why_not_cpu, _cpu_available)
dispatch.register("linear", "torch", Torch)
dispatch.register("linear", "reference", Reference)

_forms = {"grad_out": "tokens, rows", "x": "tokens, columns"}
_backward = Operation("linear_backward", Backward, Gradients, forms=_forms)


def linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] = ()) -> Tensor:
    """Linear layers that read the same input, side by side, by one product.

    The parameters' gradients are sums in float32, as a float32 weight under autocast wants them, and not rounded to the
    dtype of x on the way; on Intel's matrix unit penstock makes them, two to three times as fast as torch.

    Args:
        x: (tokens, in_features), float16, bfloat16, float32 or float64.
        weights: one or more, each (out_features, in_features), floating point.
        biases: none, or one for each weight, (out_features,).
    Returns:
        (tokens, sum of out_features), in the dtype of x. Under autocast x is cast to the autocast dtype (float64
        excepted); weights and biases are cast to the dtype of x.
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        RuntimeError: the backend that `use_backend` forces cannot serve the call.
    """
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
    _check(x, weights, biases)
    backend = dispatch.choose("linear", device_type=x.device.type, dtype=x.dtype)
    tensors = x, *weights, *biases
    if transforms.wants_plain_torch(*tensors):
        weight, *bias = (torch.cat([part.to(x.dtype) for part in parts]) for parts in (weights, biases) if parts)
        return F.linear(x, weight, *bias)
    if not transforms.wants_gradient(tensors):
        return _product(x, _join(weights, x.dtype), _join(biases, x.dtype) if biases else None)
    return _Linear.apply(x, backend, len(weights), *weights, *biases)


def _check(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.ndim != 2:
        raise ValueError(f"x must have shape (tokens, in_features), got {tuple(x.shape)}")
    if not weights or len(biases) not in (0, len(weights)):
        raise ValueError(f"expected weights, and no bias or one for each, got {len(weights)} and {len(biases)}")
    for name, parts in (("weight", weights), ("bias", biases)):
        for part in parts:
            if not part.is_floating_point():
                raise TypeError(f"a {name} must be floating point, got {part.dtype}")
    for weight in weights:
        if weight.ndim != 2 or weight.shape[1] != x.shape[1] or weight.device != x.device:
            raise ValueError(
                f"a weight must have shape (out_features, {x.shape[1]}) on {x.device}, "
                f"got {tuple(weight.shape)} on {weight.device}"
            )
    for weight, bias in zip(weights, biases, strict=False):
        if bias.shape != weight.shape[:1] or bias.device != x.device:
            raise ValueError(
                f"a bias must have shape ({weight.shape[0]},) on {x.device}, got {tuple(bias.shape)} on {bias.device}"
            )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias. On a CPU F.linear in bfloat16 writes the bias to every row before it multiplies, on one thread;
    the same product of the same library adds it as it goes, of a bias that it takes for dense."""
    if bias is None or x.dtype != torch.bfloat16 or x.device.type != "cpu" or not x.numel():
        return F.linear(x, weight, bias)
    plain = all(type(tensor) in transforms.PLAIN for tensor in (x, weight, bias))
    if transforms.is_intercepted() or not plain or not _adds_bias():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias.contiguous(), "none", [], "")


def _adds_bias() -> bool:
    """Whether oneDNN is there, switched on, and multiplies bfloat16 on this processor."""
    return torch._C._get_mkldnn_enabled() and _has_bfloat16()


@functools.cache
def _has_bfloat16() -> bool:
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _join(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """One below the other, cast on the way."""
    if len(parts) == 1:
        return parts[0].to(dtype)
    rows = [part.shape[0] for part in parts]
    joined = parts[0].new_empty(sum(rows), *parts[0].shape[1:], dtype=dtype)
    torch._foreach_copy_(joined.split(rows), list(parts))  # one launch on a GPU
    return joined


def _split(gradient: Tensor, parts: list[tuple[int, torch.dtype]]) -> list[Tensor]:
    split = gradient.split([rows for rows, _ in parts])
    return [piece.to(dtype) for piece, (_, dtype) in zip(split, parts, strict=True)]


class _Linear(torch.autograd.Function):
    """Takes x, the backend, the number of weights, then weights and biases one after the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: str, count: int, *parts: Tensor) -> Tensor:
        weight = _join(parts[:count], x.dtype)
        # kept for the gradient of the other alone, so that what no gradient needs may be changed in place
        x_needed, weights_needed = ctx.needs_input_grad[0], any(ctx.needs_input_grad[3 : 3 + count])
        weights = [] if weight is parts[0] or not x_needed else parts[:count]
        ctx.save_for_backward(x if weights_needed else None, weight if x_needed else None, *weights)
        ctx.set_materialize_grads(False)  # else zeros are made for what has no gradient
        ctx.backend, ctx.count, ctx.parts = backend, count, [(part.shape[0], part.dtype) for part in parts]
        return _product(x, weight, _join(parts[count:], x.dtype) if parts[count:] else None)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> Any:
        x_needed, _, _, *needed = ctx.needs_input_grad
        x_gradient: Tensor | None = None
        gradients: list[Tensor | None] = [None] * len(needed)
        if grad_out is None:
            return x_gradient, None, None, *gradients
        x, weight, *weights = ctx.saved_tensors
        if weights and torch.is_grad_enabled():  # the caller wants to differentiate once more (create_graph=True)
            weight = torch.cat([part.to(weight.dtype) for part in weights])
        if x_needed:
            x_gradient = grad_out @ weight
        of_weights, of_biases = any(needed[: ctx.count]), any(needed[ctx.count :])
        if of_weights:
            weight_gradient, bias_gradient = _backward.from_backward(grad_out, x, of_biases, ctx.backend)
            gradients[: ctx.count] = _split(weight_gradient, ctx.parts[: ctx.count])
        if of_biases:
            if not of_weights:
                bias_gradient = grad_out.sum(0, dtype=accumulate_dtype(grad_out.dtype))
            gradients[ctx.count :] = _split(bias_gradient, ctx.parts[ctx.count :])
        return x_gradient, None, None, *gradients
