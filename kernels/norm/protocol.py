"""What a backend of the residual normalisation is asked to compute."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from penstock.kernels.precision import accumulate_dtype


@dataclass(frozen=True)
class Problem:
    """One call; all of its tensors are dense.

        z = residual + dropout(x + x_bias)
        out = (z - mean(z)) / sqrt(var(z) + eps) * weight + bias     (mean and variance of each row, divided by width)

    Attributes:
        x: (tokens, width).
        residual: as x; with `prenorm` it may be in `accumulate_dtype`.
        x_bias, weight, bias: (width,), in `accumulate_dtype`; the first and the last may be absent.
        dropout_p: probability of dropping an element of x + x_bias; 0 whenever it rounds to nothing.
        cu_seqlens: int32, (batch + 1,), ids: int64, (batch,), seed: int64 scalar; present exactly if dropout_p > 0.
            The rule is that of `philox.py`: stream = 0, position = the token's place in its sequence, unit = column.
        prenorm: z is an output too, the residual stream of a pre-norm layer.
    """

    x: Tensor
    residual: Tensor
    x_bias: Tensor | None
    weight: Tensor
    bias: Tensor | None
    eps: float
    dropout_p: float = 0.0
    cu_seqlens: Tensor | None = None
    ids: Tensor | None = None
    seed: Tensor | None = None
    prenorm: bool = False

    @property
    def two_gradients(self) -> bool:
        """Whether the gradients of x and residual differ, be it in their dtypes alone."""
        return self.dropout_p > 0 or self.residual.dtype != self.x.dtype

    def empty_z(self) -> Tensor:
        """z uninitialised, without elements unless it is an output."""
        return self.residual.new_empty(self.residual.shape if self.prenorm else 0)


@dataclass(frozen=True)
class Saved:
    """What forward keeps for backward.

    Attributes:
        normal: (z - mean) rstd, (tokens, width), in the dtype of x: in 16 bits more exact than z itself.
        rstd: 1 / sqrt(var(z) + eps), (tokens,), in `accumulate_dtype`.
    """

    normal: Tensor
    rstd: Tensor

    @classmethod
    def empty(cls, x: Tensor, save: bool) -> "Saved":
        """Uninitialised tensors, without elements if nothing is to be kept."""
        rows = x.shape[0] if save else 0
        return cls(x.new_empty(rows, x.shape[1]), x.new_empty(rows, dtype=accumulate_dtype(x.dtype)))


@dataclass(frozen=True)
class Gradients:
    """Gradients of residual and x, in their dtypes, and of the parameters, in `accumulate_dtype`.

    `x` has no elements where it would be the gradient of residual again. `x_bias` is present as in the problem.
    """

    residual: Tensor
    x: Tensor
    weight: Tensor
    bias: Tensor
    x_bias: Tensor | None


class Backend(Protocol):
    """What a backend's module defines; its functions run below autograd and with autocast off."""

    def forward(self, problem: Problem, save: bool) -> tuple[Tensor, Tensor, Saved]:
        """Returns out in the dtype of x and z in that of residual, both dense; z as `empty_z` says."""
        ...

    def backward(self, grad_out: Tensor, grad_z: Tensor | None, problem: Problem, saved: Saved) -> Gradients:
        """The gradients are dense, that of z is present exactly if the problem is `prenorm`.

        The problem's x and residual are gone: others of their shape and dtypes stand for them.
        """
        ...

    def why_not(self, *, device_type: str, dtype: torch.dtype, width: int, **_: object) -> str | None:
        """None, or one line saying why this backend cannot serve such a call."""
        ...

    def available(self) -> str | None:
        """None, or one line saying why this backend cannot run here at all."""
        ...
