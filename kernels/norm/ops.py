"""`penstock::residual_norm` as torch sees it, and the public function."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import dispatch, philox
from penstock.kernels.autocast import autocast_dtype, cast
from penstock.kernels.norm import cpu, reference
from penstock.kernels.norm import torch as torch_backend
from penstock.kernels.norm import triton as triton_backend
from penstock.kernels.norm.protocol import Problem, Saved, accumulate_dtype
from penstock.kernels.ragged import check_cu_seqlens, check_cu_seqlens_form

dispatch.register_modules("residual_norm", triton=triton_backend, cpu=cpu, torch=torch_backend, reference=reference)

# Problem's fields behind x and residual, in their order
_PROBLEM = (
    "Tensor? x_bias, Tensor weight, Tensor? bias, float eps, float dropout_p, Tensor? cu_seqlens, Tensor? ids, "
    "Tensor? seed"
)

torch.library.define(
    "penstock::residual_norm",
    f"(Tensor x, Tensor residual, {_PROBLEM}, bool save, str backend) -> (Tensor out, Tensor normal, Tensor rstd)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::residual_norm_backward",
    f"(Tensor grad_out, Tensor normal, Tensor rstd, {_PROBLEM}, str backend)"
    " -> (Tensor residual, Tensor x, Tensor weight, Tensor bias, Tensor x_bias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def residual_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    x_bias: Tensor | None = None,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | None = None,
    ids: Tensor | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """LayerNorm(residual + dropout(x + x_bias)), what follows every product of a transformer's layer, in one operation.

    Args:
        x: (tokens, width), float16, bfloat16, float32 or float64.
        residual: as x.
        weight, bias: of the LayerNorm, (width,), floating point.
        x_bias: (width,), floating point: the bias of the linear layer that made x, if that did not add it.
        dropout_p: probability of dropping an element. The caller passes 0 in evaluation.
        cu_seqlens: int32, (batch + 1,), the sequences; with dropout only.
        ids: int64, (batch,), names the examples for dropout; their place in the batch if None.
        seed: int64 scalar, the key of dropout; drawn from torch's generator if None.
    Returns:
        (tokens, width), in the dtype of x. Under autocast x and residual are cast to the autocast dtype (float64
        excepted). Sums are taken in float32, float64 for float64.
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. The values of cu_seqlens are checked on a
            CPU always, on a GPU if PENSTOCK_DEBUG is set.
        RuntimeError: the backend that `use_backend` forces cannot serve the call.
    """
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, residual = x.to(dtype), residual.to(dtype)
    _check(x, residual, x_bias, weight, bias)
    if philox.threshold(dropout_p) == 0:
        dropout_p, cu_seqlens, ids, seed = 0.0, None, None, None
    else:
        if cu_seqlens is None:
            raise ValueError("dropout needs cu_seqlens, the bounds of the sequences")
        _check_dropout(x, cu_seqlens, ids, seed)
        ids = torch.arange(cu_seqlens.shape[0] - 1, device=x.device) if ids is None else ids
        seed = philox.new_seed(x.device) if seed is None else seed
    tensors = x, residual, x_bias, weight, bias
    save = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    wide = accumulate_dtype(x.dtype)
    x_bias, weight, bias = cast(x_bias, wide), cast(weight, wide), cast(bias, wide)
    backend = dispatch.choose("residual_norm", device_type=x.device.type, dtype=x.dtype, width=x.shape[1])
    out, *_ = torch.ops.penstock.residual_norm(
        x, residual, x_bias, weight, bias, eps, dropout_p, cu_seqlens, ids, seed, save, backend
    )
    return out


def _check(x: Tensor, residual: Tensor, x_bias: Tensor | None, weight: Tensor, bias: Tensor | None) -> None:
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape (tokens, width), got {tuple(x.shape)}")
    if residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}, x has {tuple(x.shape)}")
    if residual.dtype != x.dtype:
        raise TypeError(f"residual is {residual.dtype}, x is {x.dtype}")
    for name, tensor in (("residual", residual), ("x_bias", x_bias), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}")
        if name != "residual" and tensor.shape != x.shape[1:]:
            raise ValueError(f"{name} must have shape ({x.shape[1]},), got {tuple(tensor.shape)}")


def _check_dropout(x: Tensor, cu_seqlens: Tensor, ids: Tensor | None, seed: Tensor | None) -> None:
    check_cu_seqlens_form("cu_seqlens", cu_seqlens, x.device)
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != x.device):
        raise ValueError(f"seed must be one int64 on {x.device}, got {seed.dtype} {tuple(seed.shape)} on {seed.device}")
    count = cu_seqlens.shape[0] - 1
    if ids is not None and (ids.dtype != torch.int64 or ids.shape != (count,) or ids.device != x.device):
        raise ValueError(
            f"ids must be int64 on {x.device} with one entry for each of {count} sequences, "
            f"got {ids.dtype} {tuple(ids.shape)} on {ids.device}"
        )


def _problem(*arguments: Any) -> Problem:
    """Of an operation's arguments; its tensors are made dense."""
    dense: list[Any] = [each.contiguous() if isinstance(each, Tensor) else each for each in arguments]
    return Problem(*dense)


@torch.library.impl("penstock::residual_norm", "default")
def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    *fields, save, backend = arguments
    problem = _problem(*fields)
    x, cu_seqlens = problem.x, problem.cu_seqlens
    if cu_seqlens is not None:
        check_cu_seqlens("cu_seqlens", cu_seqlens, x.shape[0], x.shape[0])
    with torch.autocast(x.device.type, enabled=False):
        out, saved = dispatch.implementation("residual_norm", backend).forward(problem, save)
    return out, saved.normal, saved.rstd


@torch.library.register_fake("penstock::residual_norm")
def _fake_forward(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    saved = Saved.empty(x, save=arguments[-2])
    return x.new_empty(x.shape), saved.normal, saved.rstd


@torch.library.impl("penstock::residual_norm_backward", "default")
def _backward(grad_out: Tensor, normal: Tensor, rstd: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *fields, backend = arguments
    problem = _problem(normal, normal, *fields)
    with torch.autocast(normal.device.type, enabled=False):
        implementation = dispatch.implementation("residual_norm", backend)
        found = implementation.backward(grad_out.contiguous(), problem, Saved(normal, rstd))
    x_bias = problem.weight.new_empty(0) if found.x_bias is None else found.x_bias
    return found.residual, found.x, found.weight, found.bias, x_bias


@torch.library.register_fake("penstock::residual_norm_backward")
def _fake_backward(grad_out: Tensor, normal: Tensor, rstd: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    x_bias, weight, _, _, dropout_p, *_ = arguments
    return (
        normal.new_empty(normal.shape),
        normal.new_empty(normal.shape if dropout_p > 0 else 0),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(0 if x_bias is None else weight.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, x_bias, weight, bias, eps, dropout_p, cu_seqlens, ids, seed, _, backend = inputs
    _, *saved = output
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)  # else zeros are made for what has no gradient
    ctx.save_for_backward(*saved, x_bias, weight, bias, cu_seqlens, ids, seed)
    ctx.eps, ctx.dropout_p, ctx.backend = eps, dropout_p, backend


def _differentiate(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 12
    if torch.is_grad_enabled():
        raise RuntimeError("residual_norm can be differentiated once only (it was asked for with create_graph=True)")
    normal, rstd, x_bias, weight, bias, *dropout = ctx.saved_tensors
    residual, x, d_weight, d_bias, d_x_bias = torch.ops.penstock.residual_norm_backward(
        grad_out, normal, rstd, x_bias, weight, bias, ctx.eps, ctx.dropout_p, *dropout, ctx.backend
    )
    gradients = residual if ctx.dropout_p == 0 else x, residual, d_x_bias, d_weight, d_bias
    needed = ctx.needs_input_grad[:5]
    return *(each if need else None for each, need in zip(gradients, needed, strict=True)), *(None,) * 7


torch.library.register_autograd("penstock::residual_norm", _differentiate, setup_context=_setup_context)
