"""The truth: one LSTM layer as a plain loop over time, differentiable to any order, exact in float64.

    i, f, o = sigmoid(...), g = tanh(...)       of  W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
    c~ = f c_{t-1} + i g                        c_t = z_c c_{t-1} + (1 - z_c) c~
    h~ = W_hr (o tanh(c~))                      h_t = z_h h_{t-1} + (1 - z_h) h~

z_c and z_h are zoneout's (Krueger et al., "Zoneout: Regularizing RNNs by randomly preserving hidden activations", ICLR
2017), 0 without it; W_hr is nn.LSTM's projection.
"""

from collections.abc import Callable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels import pooling
from penstock.kernels.autograd import enable_grad_inside_operation
from penstock.kernels.lstm.protocol import InputGrads, LayerInputs, LayerOutputs, LayerWeights, OutputGrads
from penstock.kernels.pooling.plain import segment_pool
from penstock.kernels.precision import accumulate_dtype

FUSES = True


def lstm_layer(inputs: LayerInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, h_n, c_n and cells, as in LayerOutputs. No state crosses a reset, in either direction.

    With pooling, y is what LayerOutputs calls `pooled`.
    """
    weights, resets, dtype = inputs.weights, inputs.resets, inputs.dtype
    x = inputs.x if inputs.ids is None else F.embedding(inputs.ids, inputs.x).to(dtype)
    compute = accumulate_dtype(dtype)
    batch, hidden, output = inputs.batch_size, weights.hidden_size, weights.output_size
    starts, ends = inputs.cu_seqlens[:-1].long(), inputs.cu_seqlens[1:].long()
    lengths = ends - starts
    longest = int(lengths.max()) if batch else 0

    ys, hs, cs, cells = [], [], [], []
    for d in range(weights.directions):
        w_ih, w_hh = weights.w_ih[d].to(compute), weights.w_hh[d].to(compute)
        projected = x.to(compute) @ w_ih.t()
        if weights.b_ih:
            projected = projected + weights.b_ih[d].to(compute) + weights.b_hh[d].to(compute)
        h = x.new_zeros(batch, output, dtype=compute) if inputs.h0 is None else inputs.h0[d].to(compute)
        c = x.new_zeros(batch, hidden, dtype=compute) if inputs.c0 is None else inputs.c0[d].to(compute)
        rows_of_steps, h_of_steps, c_of_steps = [], [], []
        for t in range(longest):
            active = torch.nonzero(lengths > t).squeeze(1)
            rows = starts[active] + t if d == 0 else ends[active] - 1 - t
            h_before, c_before = h[active], c[active]
            if resets is not None:
                # an edge before row r separates r - 1 from r, whichever comes first
                edge = resets[rows] if d == 0 else resets[(rows + 1).clamp(max=len(x) - 1)] & (t > 0)
                h_before = torch.where(edge[:, None], 0, h_before)
                c_before = torch.where(edge[:, None], 0, c_before)
            i, f, g, o = (projected[rows] + h_before @ w_hh.t()).chunk(4, dim=1)
            c_new = torch.sigmoid(f) * c_before + torch.sigmoid(i) * torch.tanh(g)
            h_new = torch.sigmoid(o) * torch.tanh(c_new)
            if weights.w_hr:
                h_new = h_new @ weights.w_hr[d].to(compute).t()
            h_new = _mix(inputs.zone_h, d, output, rows, h_before, h_new)
            c_new = _mix(inputs.zone_c, d, hidden, rows, c_before, c_new)
            h, c = h.index_copy(0, active, h_new), c.index_copy(0, active, c_new)
            rows_of_steps.append(rows)
            h_of_steps.append(h_new)
            c_of_steps.append(c_new)
        ys.append(_to_token_order(rows_of_steps, h_of_steps, x.new_empty(0, output, dtype=compute)))
        cells.append(_to_token_order(rows_of_steps, c_of_steps, x.new_empty(0, hidden, dtype=compute)))
        hs.append(h)
        cs.append(c)
    y, h_n = torch.cat(ys, 1).to(dtype), torch.stack(hs).to(dtype)
    if inputs.pool:
        y = segment_pool(pooling.Problem(y, None, inputs.cu_seqlens, inputs.pool, False)).out
    return y, h_n, torch.stack(cs), torch.cat(cells, 1)


def _mix(zone: Tensor | None, d: int, width: int, rows: Tensor, before: Tensor, new: Tensor) -> Tensor:
    if zone is None:
        return new
    kept = zone if zone.shape[0] == 1 else zone[rows]
    kept = kept if kept.shape[1] == 1 else kept[:, d * width : (d + 1) * width]
    return kept * before + (1 - kept) * new


def _to_token_order(rows: list[Tensor], values: list[Tensor], empty: Tensor) -> Tensor:
    if not rows:
        return empty
    return torch.cat(values)[torch.argsort(torch.cat(rows))]


def forward(inputs: LayerInputs, return_cells: bool, save: bool) -> LayerOutputs:
    with torch.no_grad():
        y, h_n, c_n, cells = lstm_layer(inputs)
    cells = cells if return_cells else cells.new_empty(0)
    if inputs.pool:
        return LayerOutputs(y.new_empty(0), h_n, c_n, cells, [], y)
    return LayerOutputs(y, h_n, c_n, cells, [])


def saved_like(inputs: LayerInputs, return_cells: bool) -> list[Tensor]:
    return []


def backward(
    grads: OutputGrads, inputs: LayerInputs, y: Tensor, saved: list[Tensor], need_x: bool, need_weights: bool
) -> InputGrads:
    """Runs the layer again, recorded, and differentiates it."""

    with enable_grad_inside_operation():
        recorded = _each(inputs, lambda tensor: tensor.detach().requires_grad_())
        return _gradients(grads, recorded, create_graph=False)


def differentiate(grads: OutputGrads, inputs: LayerInputs) -> InputGrads:
    """The gradients of `inputs` in a form that can be differentiated again."""
    # views, so that a tensor that fills two places (tied weights) has a gradient for each
    return _gradients(grads, _each(inputs, lambda tensor: tensor.view_as(tensor)), create_graph=True)


def gradients(grads: OutputGrads, inputs: LayerInputs) -> InputGrads:
    """The gradients of `inputs` as torch.func makes them: themselves a plain torch function of `grads` and `inputs`."""
    states = [[] if state is None else [state] for state in (inputs.h0, inputs.c0)]
    kinds = [[inputs.x], *inputs.weights, *states]
    counts = [len(kind) for kind in kinds]

    def run(*flat: Tensor) -> tuple[Tensor, ...]:
        rest = iter(flat)
        x, *weights, h0, c0 = [list(islice(rest, count)) for count in counts]
        weighted = inputs._replace(x=x[0], weights=LayerWeights(*weights))
        return lstm_layer(weighted._replace(h0=h0[0] if h0 else None, c0=c0[0] if c0 else None))

    outputs, pull_back = torch.func.vjp(run, *(tensor for kind in kinds for tensor in kind))[:2]
    given = grads.pooled if inputs.pool else grads.y, grads.h_n, grads.c_n, grads.cells
    found = iter(pull_back(tuple(torch.zeros_like(o) if g is None else g for o, g in zip(outputs, given, strict=True))))
    dx, w_ih, w_hh, bias, _, w_hr, h0, c0 = [list(islice(found, count)) for count in counts]
    return InputGrads(dx[0], w_ih, w_hh, bias, w_hr, h0[0] if h0 else None, c0[0] if c0 else None)


def _each(inputs: LayerInputs, function: Callable[[Tensor], Tensor]) -> LayerInputs:
    return inputs._replace(
        x=function(inputs.x),
        weights=LayerWeights(*([function(weight) for weight in kind] for kind in inputs.weights)),
        h0=None if inputs.h0 is None else function(inputs.h0),
        c0=None if inputs.c0 is None else function(inputs.c0),
    )


def _gradients(grads: OutputGrads, inputs: LayerInputs, create_graph: bool) -> InputGrads:
    weights = inputs.weights
    biases = [b if b.requires_grad else other for b, other in zip(weights.b_ih, weights.b_hh, strict=True)]
    states = [state for state in (inputs.h0, inputs.c0) if state is not None]
    wanted = [inputs.x, *weights.w_ih, *weights.w_hh, *biases, *weights.w_hr, *states]
    given = grads.pooled if inputs.pool else grads.y, grads.h_n, grads.c_n, grads.cells
    pairs = [(out, grad) for out, grad in zip(lstm_layer(inputs), given, strict=True) if grad is not None]
    pairs = [(out, grad) for out, grad in pairs if out.requires_grad]
    places = [place for place, tensor in enumerate(wanted) if tensor.requires_grad]
    found = torch.autograd.grad(
        [out for out, _ in pairs],
        [wanted[place] for place in places],
        [grad for _, grad in pairs],
        create_graph=create_graph,
        materialize_grads=True,
    )
    by_place = dict(zip(places, found, strict=True))
    every = iter([by_place.get(place, torch.zeros_like(tensor)) for place, tensor in enumerate(wanted)])
    dx = next(every)
    kinds = (weights.w_ih, weights.w_hh, biases, weights.w_hr)
    dw_ih, dw_hh, db, dw_hr = (list(islice(every, len(kind))) for kind in kinds)
    dh0, dc0 = (None if state is None else next(every) for state in (inputs.h0, inputs.c0))
    return InputGrads(dx, dw_ih, dw_hh, db, dw_hr, dh0, dc0)
