"""Looking up rows of a table, with a gradient that a processor makes quickly.

The gradient is as large as the table and nearly all zeros. torch clears it with ordinary stores, which read every line
before they overwrite it; the C library's memset streams, four times as fast for a vocabulary of 30,000.
"""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from penstock.kernels import checks, transforms

torch.library.define(
    "penstock::embedding",
    "(Tensor ids, Tensor weight, int padding_idx) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::embedding_backward",
    "(Tensor grad_out, Tensor ids, SymInt rows, int padding_idx) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def embedding(ids: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of `weight`, (rows, width), named by `ids`, of any shape: (*ids.shape, width), as `F.embedding` gives.

    Args:
        padding_idx: from 0; this row gets no gradient.

    Raises:
        TypeError: ids are not int32 or int64, or padding_idx is not an integer.
        ValueError: weight is not (rows, width), or padding_idx is not one of its rows.
        IndexError: an id is not a row of the table.
    """
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"ids must be int32 or int64, got {ids.dtype}")
    if weight.ndim != 2:
        raise ValueError(f"weight must have shape (rows, width), got {tuple(weight.shape)}")
    if padding_idx is None:
        return _operation(ids, weight, -1)
    if checks.integer("padding_idx", padding_idx, 0) >= weight.shape[0]:
        raise ValueError(f"padding_idx is {padding_idx}, weight has {weight.shape[0]} rows")
    return _operation(ids, weight, padding_idx)


@torch.library.impl("penstock::embedding", "CompositeExplicitAutograd")
def _look_up(ids: Tensor, weight: Tensor, padding_idx: int) -> Tensor:
    return F.embedding(ids, weight)


@torch.library.register_fake("penstock::embedding")
def _look_up_shape(ids: Tensor, weight: Tensor, padding_idx: int) -> Tensor:
    return weight.new_empty(*ids.shape, weight.shape[1])


@torch.library.impl("penstock::embedding_backward", "CPU")
def _sum_by_row_on_cpu(grad_out: Tensor, ids: Tensor, rows: int, padding_idx: int) -> Tensor:
    width = grad_out.shape[-1]
    gradient = grad_out.new_empty(rows, width)
    ctypes.memset(gradient.data_ptr(), 0, gradient.nbytes)
    gradient.index_add_(0, ids.reshape(-1), grad_out.reshape(ids.numel(), width))
    if padding_idx >= 0:
        gradient[padding_idx] = 0
    return gradient


@torch.library.register_fake("penstock::embedding_backward")
def _gradient_shape(grad_out: Tensor, ids: Tensor, rows: int, padding_idx: int) -> Tensor:
    return grad_out.new_empty(rows, grad_out.shape[-1])


def _keep_ids(ctx, inputs, output) -> None:
    ids, weight, ctx.padding_idx = inputs
    ctx.rows = weight.shape[0]
    ctx.save_for_backward(ids)


def _backward(ctx, grad_out: Tensor):
    (ids,) = ctx.saved_tensors
    return (
        None,
        transforms.call(torch.ops.penstock.embedding_backward.default, grad_out, ids, ctx.rows, ctx.padding_idx),
        None,
    )


def _keep_ids_again(ctx, inputs, output) -> None:
    _, ids, _, ctx.padding_idx = inputs
    ctx.save_for_backward(ids)


def _backward_of_backward(ctx, grad_gradient: Tensor):
    (ids,) = ctx.saved_tensors
    rows = F.embedding(ids, grad_gradient)
    return rows.masked_fill((ids == ctx.padding_idx).unsqueeze(-1), 0), None, None, None


def _plain(ids: Tensor, weight: Tensor, padding_idx: int) -> Tensor:
    return F.embedding(ids, weight, None if padding_idx < 0 else padding_idx)


def _plain_backward(grad_out: Tensor, ids: Tensor, rows: int, padding_idx: int) -> Tensor:
    return torch.ops.aten.embedding_dense_backward(grad_out, ids, rows, padding_idx, False)


torch.library.impl("penstock::embedding_backward", "CompositeExplicitAutograd")(_plain_backward)
_operation = transforms.register("embedding", _plain, _keep_ids, _backward)
transforms.register("embedding_backward", _plain_backward, _keep_ids_again, _backward_of_backward)
