"""The residual normalisation with torch's own LayerNorm."""

import torch
from torch import Tensor

from penstock.kernels import philox
from penstock.kernels.dropout import keep_mask
from penstock.kernels.norm.protocol import Gradients, Problem, Saved


def _drop(x: Tensor, problem: Problem) -> Tensor:
    if problem.dropout_p == 0:
        return x
    assert problem.cu_seqlens is not None
    assert problem.seed is not None
    tokens, width = x.shape
    keep = keep_mask(problem.cu_seqlens, tokens, problem.dropout_p, problem.seed, 0, problem.ids, width)
    return x * keep * philox.scale(problem.dropout_p)


def forward(problem: Problem, save: bool) -> tuple[Tensor, Tensor, Saved]:
    dtype = problem.weight.dtype
    x = problem.x.to(dtype)
    if problem.x_bias is not None:
        x = x + problem.x_bias
    z = _drop(x, problem) + problem.residual
    out, mean, rstd = torch.native_layer_norm(z, z.shape[1:], problem.weight, problem.bias, problem.eps)
    out = out.to(problem.x.dtype)
    stream = z.to(problem.residual.dtype) if problem.prenorm else problem.empty_z()
    if not save:
        return out, stream, Saved.empty(problem.x, False)
    return out, stream, Saved(((z - mean) * rstd).to(problem.x.dtype), rstd[:, 0])


def backward(grad_out: Tensor, grad_z: Tensor | None, problem: Problem, saved: Saved) -> Gradients:
    dtype = problem.weight.dtype
    bias = torch.zeros_like(problem.weight) if problem.bias is None else problem.bias
    mean, rstd = torch.zeros_like(saved.rstd)[:, None], torch.ones_like(saved.rstd)[:, None]
    normal = saved.normal.to(dtype)
    dz, weight, bias = torch.ops.aten.native_layer_norm_backward(
        grad_out.to(dtype), normal, normal.shape[1:], mean, rstd, problem.weight, bias, [True, True, True]
    )
    dz = dz * saved.rstd[:, None]
    if grad_z is not None:
        dz = dz + grad_z
    dx = _drop(dz, problem)
    return Gradients(
        residual=dz.to(problem.residual.dtype),
        x=dx.to(grad_out.dtype) if problem.two_gradients else grad_out.new_empty(0),
        weight=weight,
        bias=bias,
        x_bias=None if problem.x_bias is None else dx.sum(0),
    )


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
