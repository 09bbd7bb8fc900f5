"""`penstock::residual_norm` as torch sees it, and the public function."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from penstock.kernels import checks, dispatch, philox, transforms
from penstock.kernels.autocast import autocast_dtype, cast, without_autocast
from penstock.kernels.norm import cpu, reference
from penstock.kernels.norm import torch as torch_backend
from penstock.kernels.norm import triton as triton_backend
from penstock.kernels.norm.protocol import Problem, Saved
from penstock.kernels.precision import accumulate_dtype
from penstock.kernels.ragged import check_cu_seqlens, check_cu_seqlens_form

dispatch.register_modules("residual_norm", triton=triton_backend, cpu=cpu, torch=torch_backend, reference=reference)

# Problem's fields behind x and residual, in their order
_PROBLEM = (
    "Tensor? x_bias, Tensor weight, Tensor? bias, float eps, float dropout_p, Tensor? cu_seqlens, Tensor? ids, "
    "Tensor? seed, bool prenorm"
)

torch.library.define(
    "penstock::residual_norm",
    f"(Tensor x, Tensor residual, {_PROBLEM}, bool save, str backend)"
    " -> (Tensor out, Tensor z, Tensor normal, Tensor rstd)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::residual_norm_backward",
    f"(Tensor grad_out, Tensor? grad_z, Tensor normal, Tensor rstd, {_PROBLEM}, str backend)"
    " -> (Tensor residual, Tensor x, Tensor weight, Tensor bias, Tensor x_bias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@overload
def residual_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    x_bias: Tensor | None = ...,
    eps: float = ...,
    dropout_p: float = ...,
    cu_seqlens: Tensor | None = ...,
    ids: Tensor | None = ...,
    seed: Tensor | None = ...,
    prenorm: Literal[False] = ...,
) -> Tensor: ...
@overload
def residual_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    x_bias: Tensor | None = ...,
    eps: float = ...,
    dropout_p: float = ...,
    cu_seqlens: Tensor | None = ...,
    ids: Tensor | None = ...,
    seed: Tensor | None = ...,
    prenorm: Literal[True],
) -> tuple[Tensor, Tensor]: ...
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
    prenorm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """LayerNorm(residual + dropout(x + x_bias)), what follows every product of a transformer's layer, in one operation.

    Args:
        x: (tokens, width), float16, bfloat16, float32 or float64.
        residual: as x; with prenorm it may be float32 beside a 16-bit x, because a 16-bit stream accumulates
            rounding errors.
        weight, bias: of the LayerNorm, (width,), floating point.
        x_bias: (width,), floating point: the bias of the linear layer that made x, if that did not add it.
        dropout_p: probability of dropping an element. The caller passes 0 in evaluation.
        cu_seqlens: int32, (batch + 1,), the sequences; with dropout only.
        ids: int64, (batch,), names the examples for dropout; their place in the batch if None.
        seed: int64 scalar, the key of dropout; drawn from torch's generator if None.
        prenorm: also return what is normalised, the residual stream of a layer that begins with its norms.
    Returns:
        (tokens, width), in the dtype of x; with prenorm this and residual + dropout(x + x_bias), in the dtype of
        residual. Under autocast x and residual are cast to the autocast dtype (float64 excepted, and with prenorm a
        float32 residual). Sums are taken in float32, float64 for float64.
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. The values of cu_seqlens are checked on a
            CPU always, on a GPU if PENSTOCK_DEBUG is set.
        RuntimeError: the backend that `use_backend` forces cannot serve the call.
    """
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
        residual = residual if prenorm and residual.dtype == torch.float32 else residual.to(dtype)
    _check(x, residual, x_bias, weight, bias, prenorm)
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
    out, z, *_ = _operation(
        x, residual, x_bias, weight, bias, eps, dropout_p, cu_seqlens, ids, seed, prenorm, save, backend
    )
    return (out, z) if prenorm else out


def _check(
    x: Tensor, residual: Tensor, x_bias: Tensor | None, weight: Tensor, bias: Tensor | None, prenorm: bool
) -> None:
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape (tokens, width), got {tuple(x.shape)}")
    if residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}, x has {tuple(x.shape)}")
    if residual.dtype != x.dtype and not (prenorm and residual.dtype == accumulate_dtype(x.dtype)):
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
    checks.seed(seed, x.device)
    checks.ids(ids, cu_seqlens.shape[0] - 1, x.device)


def _problem(*arguments: Any) -> Problem:
    """The problem that an operation's arguments state; its tensors are made dense."""
    dense: list[Any] = [each.contiguous() if isinstance(each, Tensor) else each for each in arguments]
    return Problem(*dense)


@torch.library.impl("penstock::residual_norm", "default")
def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    *fields, save, backend = arguments
    problem = _problem(*fields)
    x, cu_seqlens = problem.x, problem.cu_seqlens
    if cu_seqlens is not None:
        check_cu_seqlens("cu_seqlens", cu_seqlens, x.shape[0], x.shape[0])
    with without_autocast(x.device.type):
        out, z, saved = dispatch.implementation("residual_norm", backend).forward(problem, save)
    return out, z, saved.normal, saved.rstd


@torch.library.register_fake("penstock::residual_norm")
def _fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    *fields, save, _ = arguments
    problem = Problem(*fields)
    x, saved = problem.x, Saved.empty(problem.x, save)
    return x.new_empty(x.shape), problem.empty_z(), saved.normal, saved.rstd


@torch.library.impl("penstock::residual_norm_backward", "default")
def _backward(
    grad_out: Tensor, grad_z: Tensor | None, normal: Tensor, rstd: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    *fields, backend = arguments
    grad_z = None if grad_z is None else grad_z.contiguous()
    problem = _problem(normal, normal if grad_z is None else grad_z, *fields)
    with without_autocast(normal.device.type):
        implementation = dispatch.implementation("residual_norm", backend)
        found = implementation.backward(grad_out.contiguous(), grad_z, problem, Saved(normal, rstd))
    x_bias = problem.weight.new_empty(0) if found.x_bias is None else found.x_bias
    return found.residual, found.x, found.weight, found.bias, x_bias


@torch.library.register_fake("penstock::residual_norm_backward")
def _fake_backward(
    grad_out: Tensor, grad_z: Tensor | None, normal: Tensor, rstd: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    problem = Problem(normal, normal if grad_z is None else grad_z, *arguments[:-1])
    weight = problem.weight
    return (
        problem.residual.new_empty(normal.shape),
        normal.new_empty(normal.shape if problem.two_gradients else 0),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(0 if problem.x_bias is None else weight.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, residual, x_bias, weight, bias, eps, dropout_p, cu_seqlens, ids, seed, prenorm, _, backend = inputs
    _, z, *saved = output
    ctx.mark_non_differentiable(*saved, *(() if prenorm else (z,)))
    ctx.set_materialize_grads(False)  # else zeros are made for what has no gradient
    ctx.save_for_backward(*saved, x_bias, weight, bias, cu_seqlens, ids, seed)
    ctx.eps, ctx.dropout_p, ctx.prenorm, ctx.backend = eps, dropout_p, prenorm, backend
    ctx.z_dtype = residual.dtype


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_z: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None and grad_z is None:
        return (None,) * 13
    if torch.is_grad_enabled():
        raise RuntimeError("residual_norm can be differentiated once only (it was asked for with create_graph=True)")
    normal, rstd, x_bias, weight, bias, *dropout = ctx.saved_tensors
    grad_out = torch.zeros_like(normal) if grad_out is None else grad_out
    if ctx.prenorm and grad_z is None:
        grad_z = torch.zeros_like(normal, dtype=ctx.z_dtype)
    residual, x, d_weight, d_bias, d_x_bias = transforms.call(
        torch.ops.penstock.residual_norm_backward.default,
        grad_out,
        grad_z,
        normal,
        rstd,
        x_bias,
        weight,
        bias,
        ctx.eps,
        ctx.dropout_p,
        *dropout,
        ctx.prenorm,
        ctx.backend,
    )
    gradients = x if x.shape == residual.shape else residual, residual, d_x_bias, d_weight, d_bias
    needed = ctx.needs_input_grad[:5]
    return *(each if need else None for each, need in zip(gradients, needed, strict=True)), *(None,) * 8


def _plain(*arguments: Any) -> tuple[Tensor, ...]:
    problem = Problem(*arguments[:-2])
    if problem.cu_seqlens is not None:
        transforms.check_readable("cu_seqlens", problem.cu_seqlens)
        check_cu_seqlens("cu_seqlens", problem.cu_seqlens, problem.x.shape[0], problem.x.shape[0])
    with without_autocast(problem.x.device.type):
        out, z, saved = reference.forward(problem, False)
    return out, z, saved.normal, saved.rstd


def _plain_backward(
    grad_out: Tensor, grad_z: Tensor | None, normal: Tensor, rstd: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    problem = Problem(normal, normal if grad_z is None else grad_z, *arguments[:-1])
    with without_autocast(normal.device.type):
        found = reference.backward(grad_out, grad_z, problem, Saved(normal, rstd))
    x_bias = problem.weight.new_empty(0) if found.x_bias is None else found.x_bias
    return found.residual, found.x, found.weight, found.bias, x_bias


_operation = transforms.register("residual_norm", _plain, _setup_context, _differentiate)
transforms.register("residual_norm_backward", _plain_backward)
