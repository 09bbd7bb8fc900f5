"""The truth about the rotary position embedding (Su et al., RoFormer, 2021), in transformers' layout of halves."""

import torch
from torch import Tensor

from penstock.kernels.precision import accumulate_dtype


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, transposed: bool) -> Tensor:
    wide, cos, sin = x.to(accumulate_dtype(x.dtype)), cos[:, None], sin[:, None]
    turned = -_rotate_half(wide * sin) if transposed else _rotate_half(wide) * sin
    return (wide * cos + turned).to(x.dtype)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    return _rotated(q, cos, sin, transposed), _rotated(k, cos, sin, transposed)


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
