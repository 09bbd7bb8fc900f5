"""The truth about the rotary position embedding (Su et al., RoFormer, 2021), in transformers' layout of halves.

And torch's own operations.
"""

import torch
from torch import Tensor

from penstock.kernels.precision import accumulate_dtype
from penstock.kernels.rotary import Problem, Rotated


def rotary(problem: Problem) -> Rotated:
    return Rotated(_rotated(problem.q, problem), _rotated(problem.k, problem))


def _rotated(x: Tensor, problem: Problem) -> Tensor:
    wide, cos, sin = x.to(accumulate_dtype(x.dtype)), problem.cos[:, None], problem.sin[:, None]
    turned = -_rotate_half(wide * sin) if problem.transposed else _rotate_half(wide) * sin
    return (wide * cos + turned).to(x.dtype).contiguous()


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


class Torch:
    """Each half takes up the other's part in place."""

    @staticmethod
    def rotary(problem: Problem) -> Rotated:
        return Rotated(_rotated_in_place(problem.q, problem), _rotated_in_place(problem.k, problem))


def _rotated_in_place(x: Tensor, problem: Problem) -> Tensor:
    out = x * problem.cos[:, None]
    (x1, x2), (out1, out2), (s1, s2) = x.chunk(2, -1), out.chunk(2, -1), problem.sin[:, None].chunk(2, -1)
    if problem.transposed:
        s1, s2 = -s2, -s1
    out1.addcmul_(x2, s1, value=-1)
    out2.addcmul_(x1, s2)
    return out.to(x.dtype).contiguous()
