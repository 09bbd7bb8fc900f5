"""The truth about the residual normalisation: plain torch, one formula after the other."""

import torch
from torch import Tensor

from penstock.kernels import philox
from penstock.kernels.norm.protocol import Gradients, Problem, Saved
from penstock.kernels.precision import accumulate_dtype


def dropout_factor(problem: Problem) -> Tensor | None:
    """What multiplies x + x_bias: 0 or the inverse keep probability, (tokens, width); None without dropout."""
    if problem.dropout_p == 0:
        return None
    assert problem.cu_seqlens is not None
    assert problem.ids is not None
    assert problem.seed is not None
    tokens, width = problem.x.shape
    lengths = problem.cu_seqlens.diff().long()
    example = torch.repeat_interleave(problem.ids, lengths)
    position = torch.arange(tokens, device=lengths.device) - torch.repeat_interleave(problem.cu_seqlens[:-1], lengths)
    keep = philox.keep_mask(problem.seed, example, position, 0, width, problem.dropout_p)
    return keep.to(accumulate_dtype(problem.x.dtype)) * philox.scale(problem.dropout_p)


def normalize(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, z, normal and rstd in `accumulate_dtype`; differentiable any number of times."""
    dtype = accumulate_dtype(problem.x.dtype)
    x, factor = problem.x.to(dtype), dropout_factor(problem)
    if problem.x_bias is not None:
        x = x + problem.x_bias
    z = problem.residual.to(dtype) + (x if factor is None else x * factor)
    rstd = (z.var(1, correction=0) + problem.eps).rsqrt()
    normal = (z - z.mean(1, keepdim=True)) * rstd[:, None]
    out = normal * problem.weight
    return out if problem.bias is None else out + problem.bias, z, normal, rstd


def forward(problem: Problem, save: bool) -> tuple[Tensor, Tensor, Saved]:
    out, z, normal, rstd = normalize(problem)
    x = problem.x
    z = z.to(problem.residual.dtype) if problem.prenorm else problem.empty_z()
    return out.to(x.dtype), z, Saved(normal.to(x.dtype), rstd) if save else Saved.empty(x, False)


def backward(grad_out: Tensor, grad_z: Tensor | None, problem: Problem, saved: Saved) -> Gradients:
    """The derivative written out, as the operation's implementation runs below autograd."""
    dtype, width = accumulate_dtype(grad_out.dtype), grad_out.shape[1]
    dy, normal = grad_out.to(dtype), saved.normal.to(dtype)
    g = dy * problem.weight
    sums = g.sum(1, keepdim=True) + normal * (g * normal).sum(1, keepdim=True)
    dz = (g - sums / width) * saved.rstd[:, None]
    if grad_z is not None:
        dz = dz + grad_z
    factor = dropout_factor(problem)
    dx = dz if factor is None else dz * factor
    return Gradients(
        residual=dz.to(problem.residual.dtype),
        x=dx.to(grad_out.dtype) if problem.two_gradients else grad_out.new_empty(0),
        weight=(dy * normal).sum(0),
        bias=dy.sum(0),
        x_bias=None if problem.x_bias is None else dx.sum(0),
    )


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
