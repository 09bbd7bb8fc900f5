"""The truth about the residual normalisation: plain torch, one formula after the other. And torch's own LayerNorm."""

import torch
from torch import Tensor

from penstock.kernels import philox
from penstock.kernels.dropout import keep_mask
from penstock.kernels.norm import Backward, Gradients, Problem, Results
from penstock.kernels.precision import accumulate_dtype


def residual_norm(problem: Problem) -> Results:
    """Differentiable any number of times."""
    dtype = accumulate_dtype(problem.x.dtype)
    x, factor = problem.x.to(dtype), _dropout_factor(problem)
    if problem.x_bias is not None:
        x = x + problem.x_bias
    z = problem.residual.to(dtype) + (x if factor is None else x * factor)
    rstd = (z.var(1, correction=0) + problem.eps).rsqrt()
    normal = (z - z.mean(1, keepdim=True)) * rstd[:, None]
    out = normal * problem.weight
    out = (out if problem.bias is None else out + problem.bias).to(problem.x.dtype)
    stream = z.to(problem.residual.dtype) if problem.prenorm else None
    return Results(out, stream, normal.to(problem.x.dtype), rstd) if problem.save else Results(out, stream, None, None)


def residual_norm_backward(problem: Backward) -> Gradients:
    """The derivative written out."""
    dtype, width = accumulate_dtype(problem.grad_out.dtype), problem.grad_out.shape[1]
    dy, normal = problem.grad_out.to(dtype), problem.normal.to(dtype)
    g = dy * problem.weight
    sums = g.sum(1, keepdim=True) + normal * (g * normal).sum(1, keepdim=True)
    dz = (g - sums / width) * problem.rstd[:, None]
    if problem.grad_z is not None:
        dz = dz + problem.grad_z
    factor = _dropout_factor(problem)
    dx = dz if factor is None else dz * factor
    return _gradients(problem, dz, dx, (dy * normal).sum(0), dy.sum(0))


def _dropout_factor(problem: Problem | Backward) -> Tensor | None:
    """What multiplies x + x_bias: 0 or the inverse keep probability, (tokens, width); None without dropout."""
    if problem.dropout_p == 0:
        return None
    assert problem.cu_seqlens is not None
    assert problem.ids is not None
    assert problem.seed is not None
    tokens, width = problem[0].shape
    lengths = problem.cu_seqlens.diff().long()
    example = torch.repeat_interleave(problem.ids, lengths)
    position = torch.arange(tokens, dtype=torch.int64, device=lengths.device)
    position = position - torch.repeat_interleave(problem.cu_seqlens[:-1], lengths)
    keep = philox.keep_mask(problem.seed, example, position, 0, width, problem.dropout_p)
    return keep.to(accumulate_dtype(problem[0].dtype)) * philox.scale(problem.dropout_p)


def _gradients(problem: Backward, dz: Tensor, dx: Tensor, weight: Tensor, bias: Tensor) -> Gradients:
    """Rounded to the dtypes that they must have."""
    x_dtype = problem.normal.dtype
    z_dtype = x_dtype if problem.grad_z is None else problem.grad_z.dtype
    own_x = dx.to(x_dtype) if dx is not dz or z_dtype != x_dtype else None
    x_bias = torch.zeros_like(bias) if problem.x_bias is None else dx.sum(0)
    return Gradients(dz.to(z_dtype), own_x, torch.stack([weight, bias, x_bias]))


class Torch:
    """By torch's own LayerNorm."""

    @staticmethod
    def residual_norm(problem: Problem) -> Results:
        dtype = problem.weight.dtype
        x = problem.x.to(dtype)
        if problem.x_bias is not None:
            x = x + problem.x_bias
        z = _drop(x, problem) + problem.residual
        out, mean, rstd = torch.native_layer_norm(z, z.shape[1:], problem.weight, problem.bias, problem.eps)
        out = out.to(problem.x.dtype)
        stream = z.to(problem.residual.dtype) if problem.prenorm else None
        if not problem.save:
            return Results(out, stream, None, None)
        return Results(out, stream, ((z - mean) * rstd).to(problem.x.dtype), rstd[:, 0])

    @staticmethod
    def residual_norm_backward(problem: Backward) -> Gradients:
        dtype = problem.weight.dtype
        mean, rstd = torch.zeros_like(problem.rstd)[:, None], torch.ones_like(problem.rstd)[:, None]
        normal = problem.normal.to(dtype)
        dz, weight, bias = torch.ops.aten.native_layer_norm_backward(
            *(problem.grad_out.to(dtype), normal, normal.shape[1:], mean, rstd, problem.weight, problem.weight),
            [True, True, True],
        )
        dz = dz * problem.rstd[:, None]
        if problem.grad_z is not None:
            dz = dz + problem.grad_z
        return _gradients(problem, dz, _drop(dz, problem), weight, bias)


def _drop(x: Tensor, problem: Problem | Backward) -> Tensor:
    if problem.dropout_p == 0:
        return x
    assert problem.cu_seqlens is not None
    assert problem.seed is not None
    tokens, width = x.shape
    keep = keep_mask(problem.cu_seqlens, tokens, problem.dropout_p, problem.seed, 0, problem.ids, width)
    return x * keep * philox.scale(problem.dropout_p)
