"""LayerNorm(residual + dropout(x + x_bias)) in one operation: `residual_norm`.

The reference and torch's own operations are in plain.py, C++ is reached by kernels/cpu.py, Triton is in triton.py.
"""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from penstock.kernels import checks, dispatch, philox, transforms, triton_support
from penstock.kernels.autocast import autocast_dtype, cast
from penstock.kernels.operation import Operation
from penstock.kernels.precision import accumulate_dtype
from penstock.kernels.ragged import check_cu_seqlens, check_cu_seqlens_form


class Problem(NamedTuple):
    """One call.

        z = residual + dropout(x + x_bias)
        out = (z - mean(z)) / sqrt(var(z) + eps) * weight + bias     (mean and variance of each row, divided by width)

    Attributes:
        x: (tokens, width).
        residual: as x; with `prenorm` it may be in `accumulate_dtype`.
        x_bias, weight, bias: (width,), in `accumulate_dtype`; the first and the last may be absent.
        dropout_p: probability of dropping an element of x + x_bias; 0 whenever it rounds to nothing.
        cu_seqlens: int32, (batch + 1,), ids: int64, (batch,), seed: int64 scalar; present exactly if dropout_p > 0.
            The rule is that of `philox.py`: stream = 0, position = the token's place in its sequence, unit = column.
        prenorm: z is a result too, the residual stream of a pre-norm layer.
        save: normal and rstd are results too.
    """

    x: Tensor
    residual: Tensor
    x_bias: Tensor | None
    weight: Tensor
    bias: Tensor | None
    eps: float
    dropout_p: float
    cu_seqlens: Tensor | None
    ids: Tensor | None
    seed: Tensor | None
    prenorm: bool
    save: bool

    def check(self) -> None:
        if self.dropout_p > 0:
            philox.check_there(self.cu_seqlens, self.ids, self.seed)
        if self.cu_seqlens is not None:
            check_cu_seqlens("cu_seqlens", self.cu_seqlens, self.x.shape[0], self.x.shape[0])

    def empty(self) -> "Results":
        x = self.x
        return Results(
            out=torch.empty_like(x),
            z=torch.empty_like(self.residual) if self.prenorm else None,
            normal=torch.empty_like(x) if self.save else None,
            rstd=x.new_empty(x.shape[0], dtype=accumulate_dtype(x.dtype)) if self.save else None,
        )


class Results(NamedTuple):
    """out in the dtype of x, z in that of residual, and what is kept for backward.

    Attributes:
        normal: (z - mean) rstd, (tokens, width), in the dtype of x: in 16 bits more exact than z itself.
        rstd: 1 / sqrt(var(z) + eps), (tokens,), in `accumulate_dtype`.
    """

    out: Tensor
    z: Tensor | None
    normal: Tensor | None
    rstd: Tensor | None


class Backward(NamedTuple):
    """The gradients that came, that of z exactly with `prenorm`; the rest as in Problem and Results."""

    grad_out: Tensor
    grad_z: Tensor | None
    normal: Tensor
    rstd: Tensor
    x_bias: Tensor | None
    weight: Tensor
    dropout_p: float
    cu_seqlens: Tensor | None
    ids: Tensor | None
    seed: Tensor | None

    def check(self) -> None:
        if self.dropout_p > 0:
            philox.check_there(self.cu_seqlens, self.ids, self.seed)

    def empty_rows(self) -> tuple[Tensor, Tensor | None]:
        """The gradients of residual and, if it differs, be it in its dtype alone, of x; uninitialised."""
        normal, stream = self.normal, self.normal if self.grad_z is None else self.grad_z
        two = self.dropout_p > 0 or stream.dtype != normal.dtype
        return torch.empty_like(stream), torch.empty_like(normal) if two else None

    def empty(self) -> "Gradients":
        return Gradients(*self.empty_rows(), self.weight.new_empty(3, self.weight.shape[0]))


class Gradients(NamedTuple):
    """Gradients of residual and x, in their dtypes, and of the parameters, in `accumulate_dtype`.

    Attributes:
        own_x: None where the gradient of x would be that of residual again.
        parameters: (3, width), of weight, bias and x_bias, be they there or not. One result: an operation's must not
            share memory.
    """

    residual: Tensor
    own_x: Tensor | None
    parameters: Tensor

    @property
    def x(self) -> Tensor:
        own, residual = self.own_x, self.residual
        return residual if own is None or own.shape != residual.shape else own

    @property
    def weight(self) -> Tensor:
        return self.parameters[0]

    @property
    def bias(self) -> Tensor:
        return self.parameters[1]

    @property
    def x_bias(self) -> Tensor:
        return self.parameters[2]


_WIDEST_IN_TRITON = 8192  # a row is one block


def _why_not_triton(*, width: int, **facts: Any) -> str | None:
    too_wide = f"its width goes to {_WIDEST_IN_TRITON}, not {width}" if width > _WIDEST_IN_TRITON else None
    return triton_support.why_not(**facts) or too_wide


dispatch.register("residual_norm", "triton", "penstock.kernels.norm.triton", _why_not_triton)
dispatch.register("residual_norm", "cpu", "penstock.kernels.cpu")
dispatch.register("residual_norm", "torch", "penstock.kernels.norm.plain:Torch")
dispatch.register("residual_norm", "reference", "penstock.kernels.norm.plain")

_both = {
    "x_bias weight": "width: wide",
    "cu_seqlens": "bounds: int32",
    "ids": "bounds - 1: int64",
    "seed": "...: int64",
}
_forms = {"grad_out normal": "tokens, width", "grad_z": "tokens, width: same, wide", "rstd": "tokens: wide"}
_backward = Operation("residual_norm_backward", Backward, Gradients, forms=_forms | _both)
_forms = {"x": "tokens, width", "residual": "tokens, width: same, wide", "bias": "width: wide"}
_operation = Operation("residual_norm", Problem, Results, forms=_forms | _both, backward=_backward)


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
        RuntimeError: the backend that `use_backend` forces cannot serve the call. In backward: create_graph=True, for
            it can be differentiated once only (by torch.func any number of times).
    """
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
        residual = residual if prenorm and residual.dtype == torch.float32 else cast(residual, dtype)
    _check(x, residual, x_bias, weight, bias, prenorm)
    eps, dropout_p = checks.real("eps", eps), checks.real("dropout_p", dropout_p)
    if philox.threshold(dropout_p) == 0:
        dropout_p, cu_seqlens, ids, seed = 0.0, None, None, None
    else:
        if cu_seqlens is None:
            raise ValueError("dropout needs cu_seqlens, the bounds of the sequences")
        _check_dropout(x, cu_seqlens, ids, seed)
        ids = torch.arange(cu_seqlens.shape[0] - 1, dtype=torch.int64, device=x.device) if ids is None else ids
        seed = philox.new_seed(x.device) if seed is None else seed
    tensors = x, residual, x_bias, weight, bias
    save = transforms.wants_gradient(tensors)
    wide = accumulate_dtype(x.dtype)
    x_bias, weight, bias = cast(x_bias, wide), cast(weight, wide), cast(bias, wide)
    backend = dispatch.choose("residual_norm", device_type=x.device.type, dtype=x.dtype, width=x.shape[1])
    out, z, *_ = _operation.call(
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
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")


def _check_dropout(x: Tensor, cu_seqlens: Tensor, ids: Tensor | None, seed: Tensor | None) -> None:
    check_cu_seqlens_form("cu_seqlens", cu_seqlens, x.device)
    checks.seed(seed, x.device)
    checks.ids(ids, cu_seqlens.shape[0] - 1, x.device)
