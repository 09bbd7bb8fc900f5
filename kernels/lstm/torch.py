"""The torch backend: the library's own LSTM (oneDNN, cuDNN) where it serves, else a loop over steps.

On the CPU the library is fast only when all lengths are equal; on a GPU it is cuDNN, for any lengths, and there c0 and
c_n pass through the dtype of x. The library keeps what its backward needs out of reach, so that backward runs forward
once more, recorded.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from penstock.kernels.autograd import enable_grad_inside_operation
from penstock.kernels.lstm import stepwise
from penstock.kernels.lstm.packing import Packing
from penstock.kernels.lstm.protocol import InputGrads, LayerInputs, LayerOutputs, LayerWeights, OutputGrads


def _uniform(inputs: LayerInputs) -> bool:
    """All lengths are equal: their sum is the most that it can be."""
    return inputs.x.shape[0] == inputs.batch_size * inputs.max_seqlen


def _library_serves(inputs: LayerInputs, return_cells: bool) -> bool:
    """Decided by shapes and dtypes alone, for `saved_like` must agree with `forward`."""
    beyond_it = inputs.zone_h is not None or inputs.zone_c is not None or inputs.resets is not None or return_cells
    if beyond_it or inputs.x.shape[0] == 0:
        return False
    # on the CPU, in 16 bits, oneDNN would round the cell state
    return inputs.x.device.type != "cpu" or (_uniform(inputs) and inputs.x.dtype in (torch.float32, torch.float64))


def _library(inputs: LayerInputs) -> tuple[Tensor, Tensor, Tensor]:
    """y, h_n, c_n; differentiable."""
    x, weights, batch = inputs.x, inputs.weights, inputs.batch_size
    directions = weights.directions
    h0 = x.new_zeros(directions, batch, weights.output_size) if inputs.h0 is None else inputs.h0
    c0 = x.new_zeros(directions, batch, weights.hidden_size) if inputs.c0 is None else inputs.c0.to(x.dtype)
    flat = [weight for d in range(directions) for kind in weights for weight in kind[d : d + 1]]
    options = flat, bool(weights.b_ih), 1, 0.0, torch.is_grad_enabled(), directions == 2
    if _uniform(inputs):
        dense = x.unflatten(0, (batch, inputs.max_seqlen))
        y, h, c = _lstm(dense, (h0.contiguous(), c0.contiguous()), *options, True)
        return y.flatten(0, 1), h, c
    packing = Packing.of(inputs.cu_seqlens, x.shape[0], 1)
    rows = packing.rows[0]
    nonempty = packing.order[: packing.nonempty]
    y, h, c = _lstm(x[rows], torch.tensor(packing.sizes), (h0[:, nonempty], c0[:, nonempty]), *options)
    token_order = torch.empty_like(rows)
    token_order[rows] = torch.arange(len(rows), device=rows.device)
    return y[token_order], h0.index_copy(1, nonempty, h), c0.index_copy(1, nonempty, c)


def _lstm(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    with warnings.catch_warnings():
        # cuDNN copies weights that do not lie in one piece; ours may lie anywhere
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        return torch._VF.lstm(*args)


def saved_like(inputs: LayerInputs, return_cells: bool) -> list[Tensor]:
    return [] if _library_serves(inputs, return_cells) else stepwise.saved_like(inputs, return_cells)


def forward(inputs: LayerInputs, return_cells: bool, save: bool) -> LayerOutputs:
    if not _library_serves(inputs, return_cells):
        return stepwise.forward(inputs, return_cells, save)
    with torch.no_grad():
        y, h_n, c_n = _library(inputs)
    c_n = c_n.to(torch.promote_types(c_n.dtype, torch.float32))
    return LayerOutputs(y, h_n, c_n, c_n.new_empty(0), [])


def backward(
    grads: OutputGrads, inputs: LayerInputs, y: Tensor, saved: list[Tensor], need_x: bool, need_weights: bool
) -> InputGrads:
    if saved:
        return stepwise.backward(grads, inputs, y, saved, need_x, need_weights)
    states = inputs.h0, inputs.c0
    with enable_grad_inside_operation():
        x = inputs.x.detach().requires_grad_(need_x)
        weights = LayerWeights(*([w.detach().requires_grad_(need_weights) for w in kind] for kind in inputs.weights))
        h0, c0 = (None if state is None else state.detach().requires_grad_() for state in states)
        outputs = _library(inputs._replace(x=x, weights=weights, h0=h0, c0=c0))
        wanted = [*weights.w_ih, *weights.w_hh, *weights.b_ih, *weights.w_hr] if need_weights else []
        wanted += [tensor for tensor in (x if need_x else None, h0, c0) if tensor is not None]
        pairs = [(out, grad) for out, grad in zip(outputs, grads[:3], strict=True) if grad is not None]
        found = torch.autograd.grad(
            [out for out, _ in pairs],
            wanted,
            [grad.to(out.dtype) for out, grad in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
    by_tensor = dict(zip(map(id, wanted), found, strict=True))

    def of(kind: list[Tensor]) -> list[Tensor]:
        return [by_tensor[id(weight)] for weight in kind] if need_weights else []

    dx, dh0, dc0 = (by_tensor.get(id(tensor)) for tensor in (x, h0, c0))
    return InputGrads(dx, of(weights.w_ih), of(weights.w_hh), of(weights.b_ih), of(weights.w_hr), dh0, dc0)
