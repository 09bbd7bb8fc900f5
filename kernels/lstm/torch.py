"""The torch backend: the library's own LSTM (oneDNN, cuDNN) where it serves, else a loop over steps.

On the CPU the library is fast only when all lengths are equal; on a GPU it is cuDNN, for any lengths, and there c0 and
c_n pass through the dtype of x. The library keeps what its backward needs out of reach, so that backward runs forward
once more, recorded.

The loop takes one step in time for all sequences and both directions at once. It serves what the library cannot:
sequences of different lengths at speed, zoneout, all cell states, a float32 cell state under 16-bit inputs. All
products that do not wait for the recurrence are made once, over all tokens: the input projection before the loop, the
gradients of weights and input after it.
"""

import warnings
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from penstock.kernels.autograd import enable_grad_inside_operation
from penstock.kernels.lstm.protocol import InputGrads, LayerInputs, LayerOutputs, LayerWeights, OutputGrads
from penstock.kernels.precision import accumulate_dtype

_WHOLE: dict[str, Any] = {"dtype": torch.int64, "device": "cpu"}  # of a Packing, which is made on the host


def saved_like(inputs: LayerInputs, return_cells: bool) -> list[Tensor]:
    return [] if _library_serves(inputs, return_cells) else _saved_by_steps(inputs, return_cells)


def forward(inputs: LayerInputs, return_cells: bool, save: bool) -> LayerOutputs:
    if not _library_serves(inputs, return_cells):
        return _forward_by_steps(inputs, return_cells, save)
    with torch.no_grad():
        y, h_n, c_n = _library(inputs)
    c_n = c_n.to(torch.promote_types(c_n.dtype, torch.float32))
    return LayerOutputs(y, h_n, c_n, c_n.new_empty(0), [])


def backward(
    grads: OutputGrads, inputs: LayerInputs, y: Tensor, saved: list[Tensor], need_x: bool, need_weights: bool
) -> InputGrads:
    if saved:
        return _backward_by_steps(grads, inputs, y, saved, need_x, need_weights)
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
    y, h, c = _lstm(x[rows], torch.tensor(packing.sizes, **_WHOLE), (h0[:, nonempty], c0[:, nonempty]), *options)
    token_order = torch.empty_like(rows)
    token_order[rows] = torch.arange(len(rows), dtype=torch.int64, device=rows.device)
    return y[token_order], h0.index_copy(1, nonempty, h), c0.index_copy(1, nonempty, c)


def _lstm(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    with warnings.catch_warnings():
        # cuDNN copies weights that do not lie in one piece; ours may lie anywhere
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        return torch._VF.lstm(*args)


@dataclass
class Packing:
    """A ragged batch laid out step by step, as in a PackedSequence, in each direction's own order of time.

    Sequences are sorted by length, so that the rows still active at a step are the first ones of the step before.
    """

    sizes: list[int]  # active rows of each step, descending
    bounds: list[int]  # step t owns packed rows bounds[t] to bounds[t + 1]
    order: Tensor  # (B,), sequences by descending length
    rows: list[Tensor]  # per direction: (tokens,), the token of each packed row
    last: Tensor  # (sequences that are not empty,), the packed row of the last step, sequences in `order`

    @classmethod
    def of(cls, cu_seqlens: Tensor, tokens: int, directions: int) -> "Packing":
        device = cu_seqlens.device
        bounds = cu_seqlens.cpu().long()  # a device is waited for here
        lengths = bounds.diff()
        batch = lengths.numel()
        order = torch.argsort(lengths, descending=True, stable=True)
        ended = torch.bincount(lengths).cumsum(0) if batch else lengths  # ended[t]: sequences of length <= t
        sizes = (batch - ended[:-1]).tolist()
        offsets = torch.tensor([0, *accumulate(sizes)], **_WHOLE)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(batch, **_WHOLE)
        sequence = torch.repeat_interleave(torch.arange(batch, **_WHOLE), lengths)
        step = torch.arange(tokens, **_WHOLE) - bounds[sequence]
        place = offsets[step] + rank[sequence]
        forward = torch.empty_like(place)
        forward[place] = torch.arange(tokens, **_WHOLE)
        reverse = torch.empty_like(place)
        reverse[place] = bounds[sequence + 1] - 1 - step
        rows = [forward.to(device), reverse.to(device)][:directions]
        longest_first = lengths[order][: sizes[0] if sizes else 0]
        last = offsets[longest_first - 1] + torch.arange(len(longest_first), **_WHOLE)
        return cls(sizes, offsets.tolist(), order.to(device), rows, last.to(device))

    @property
    def nonempty(self) -> int:
        """The number of sequences that have tokens: the first ones in `order`."""
        return self.sizes[0] if self.sizes else 0

    def pack(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """(tokens, D * width) in token order to (D, tokens, width) step by step."""
        columns = values.to(dtype).unflatten(1, (len(self.rows), -1))
        return torch.stack([columns[rows, d] for d, rows in enumerate(self.rows)])

    def unpack(self, values: Tensor) -> Tensor:
        """The inverse of `pack`."""
        directions, tokens, width = values.shape
        out = values.new_empty(tokens, directions, width)
        for d, rows in enumerate(self.rows):
            out[rows, d] = values[d]
        return out.flatten(1)

    def sort(self, state: Tensor, dtype: torch.dtype) -> Tensor:
        """A state of (D, B, width) with its sequences in `order`: a copy."""
        return state.to(dtype)[:, self.order]

    def unsort(self, state: Tensor) -> Tensor:
        out = torch.empty_like(state)
        out[:, self.order] = state
        return out

    def final(self, packed: Tensor, initial: Tensor | None) -> Tensor:
        """(D, B, width): each sequence's value at its last step, its (sorted) initial state or zero if it has none."""
        directions, _, width = packed.shape
        out = packed.new_zeros(directions, len(self.order), width) if initial is None else initial.clone()
        out[:, : self.nonempty] = packed[:, self.last]
        return self.unsort(out)


def _storage_dtype(x: Tensor) -> torch.dtype:
    # torch's CPU products in float16 are slow where the processor has none
    return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype


def _saved_by_steps(inputs: LayerInputs, return_cells: bool) -> list[Tensor]:
    tokens, weights = inputs.x.shape[0], inputs.weights
    gates = inputs.x.new_empty(weights.directions, tokens, 4 * weights.hidden_size, dtype=_storage_dtype(inputs.x))
    cells = gates.new_empty(weights.directions, tokens, weights.hidden_size, dtype=accumulate_dtype(inputs.x.dtype))
    return [gates, cells] if inputs.zone_c is None else [gates, cells, torch.empty_like(cells)]


def _forward_by_steps(inputs: LayerInputs, return_cells: bool, save: bool) -> LayerOutputs:
    weights, storage = inputs.weights, _storage_dtype(inputs.x)
    hidden, output, directions = weights.hidden_size, weights.output_size, weights.directions
    tokens = inputs.x.shape[0]
    packing = Packing.of(inputs.cu_seqlens, tokens, directions)
    x = inputs.x.to(storage)
    cell = accumulate_dtype(x.dtype)

    gates, cells, *candidates = _saved_by_steps(inputs, return_cells)
    for d, rows in enumerate(packing.rows):
        torch.mm(x[rows], weights.w_ih[d].to(storage).t(), out=gates[d])
        if weights.b_ih:
            gates[d] += weights.b_ih[d] + weights.b_hh[d]
    w_hh = torch.stack(weights.w_hh).to(storage).transpose(1, 2)
    w_hr = torch.stack(weights.w_hr).to(storage).transpose(1, 2) if weights.w_hr else None
    zone_h, zone_c = _packed(packing, inputs.zone_h, storage), _packed(packing, inputs.zone_c, cell)
    h0 = _sorted(packing, inputs.h0, storage)
    c0 = _sorted(packing, inputs.c0, cell)
    y = x.new_empty(directions, tokens, output)
    activations = x.new_empty(directions, packing.nonempty, 4 * hidden, dtype=cell)
    h_before, c_before = h0, c0
    for t, n in enumerate(packing.sizes):
        step = slice(packing.bounds[t], packing.bounds[t] + n)
        if h_before is not None:
            gates[:, step].baddbmm_(h_before[:, :n], w_hh)
        i, f, g, o = _activate(gates[:, step], activations[:, :n])
        c = torch.mul(i, g, out=cells[:, step])
        if c_before is not None:
            c.addcmul_(f, c_before[:, :n])
        h = o.mul_(torch.tanh(c)).to(storage)
        h = h if w_hr is None else torch.bmm(h, w_hr)
        if zone_c is not None:
            candidates[0][:, step] = c
            c.lerp_(_or_zero(c_before, c, n), zone_c[:, step])
        if zone_h is not None:
            h = torch.lerp(h, _or_zero(h_before, h, n), zone_h[:, step])
        y[:, step] = h
        h_before, c_before = y[:, step], c
    return LayerOutputs(
        packing.unpack(y).to(inputs.x.dtype),
        packing.final(y, h0).to(inputs.x.dtype),
        packing.final(cells, c0),
        packing.unpack(cells) if return_cells else cells.new_empty(0),
        [gates, cells, *candidates] if save else [],
    )


def _backward_by_steps(
    grads: OutputGrads, inputs: LayerInputs, y: Tensor, saved: list[Tensor], need_x: bool, need_weights: bool
) -> InputGrads:
    weights, storage = inputs.weights, _storage_dtype(inputs.x)
    hidden, output, directions = weights.hidden_size, weights.output_size, weights.directions
    batch, tokens = inputs.batch_size, inputs.x.shape[0]
    packing = Packing.of(inputs.cu_seqlens, tokens, directions)
    gates, cells, *candidates = saved
    cell = cells.dtype

    dy, dcells = _packed(packing, grads.y, cell), _packed(packing, grads.cells, cell)
    w_hh = torch.stack(weights.w_hh).to(storage)
    w_hr = torch.stack(weights.w_hr).to(storage) if weights.w_hr else None
    zone_h, zone_c = _packed(packing, inputs.zone_h, cell), _packed(packing, inputs.zone_c, cell)
    c0 = _sorted(packing, inputs.c0, cell)

    # dgates starts as the factors that each token's own activations contribute; the loop multiplies the gradients in
    dgates = torch.empty_like(gates, dtype=cell)
    i, f, g, o = _activate(gates, dgates)
    tanh_c = torch.tanh(candidates[0] if candidates else cells)
    forget = f.clone()
    through_h = torch.ops.aten.tanh_backward(o, tanh_c)  # dc / dh = o (1 - tanh(c)^2)
    unprojected = o * tanh_c if w_hr is not None else None
    torch.ops.aten.sigmoid_backward.grad_input(tanh_c, o, grad_input=o)
    factor_i = torch.ops.aten.sigmoid_backward(g, i)
    torch.ops.aten.tanh_backward.grad_input(i, g, grad_input=g)
    i.copy_(factor_i)
    f.addcmul_(f, f, value=-1)
    del tanh_c, factor_i
    stored = dgates if storage == cell else torch.empty_like(gates)
    dprojected = gates.new_empty(directions, tokens, output) if w_hr is not None else None

    dh = _sorted(packing, grads.h_n, cell)
    dh = gates.new_zeros(directions, batch, output, dtype=cell) if dh is None else dh
    dc = _sorted(packing, grads.c_n, cell)
    dc = gates.new_zeros(directions, batch, hidden, dtype=cell) if dc is None else dc
    for t in reversed(range(len(packing.sizes))):
        n = packing.sizes[t]
        step = slice(packing.bounds[t], packing.bounds[t] + n)
        dh_t, dc_t, dgates_t = dh[:, :n], dc[:, :n], dgates[:, step]
        if dy is not None:
            dh_t += dy[:, step]
        if dcells is not None:
            dc_t += dcells[:, step]
        dh_old = None if zone_h is None else dh_t * zone_h[:, step]
        dc_old = None if zone_c is None else dc_t * zone_c[:, step]
        if dh_old is not None:
            dh_t -= dh_old
        if dc_old is not None:
            dc_t -= dc_old
        dhidden = dh_t
        if dprojected is not None and w_hr is not None:
            dprojected[:, step] = dh_t
            dhidden = torch.bmm(dprojected[:, step], w_hr).to(cell)
        dc_t.addcmul_(dhidden, through_h[:, step])
        dgates_t[..., 3 * hidden :] *= dhidden
        dgates_t[..., : 3 * hidden].unflatten(2, (3, hidden)).mul_(dc_t.unsqueeze(2))
        previous = packing.bounds[t - 1]
        c_before = cells[:, previous : previous + n] if t else c0 if c0 is None else c0[:, :n]
        df = dgates_t[..., hidden : 2 * hidden]
        df.zero_() if c_before is None else df.mul_(c_before)
        dc_t *= forget[:, step]
        if dc_old is not None:
            dc_t += dc_old
        if stored is not dgates:
            stored[:, step] = dgates_t
        if t or inputs.h0 is not None:
            dh_t.copy_(torch.bmm(stored[:, step], w_hh))
            if dh_old is not None:
                dh_t += dh_old

    dx = None
    if need_x:
        dx = inputs.x.new_zeros(inputs.x.shape, dtype=storage)
        for d, rows in enumerate(packing.rows):
            dx.index_add_(0, rows, stored[d] @ weights.w_ih[d].to(storage))
        dx = dx.to(inputs.x.dtype)
    kinds: list[list[Tensor]] = [[], [], [], []]
    if need_weights:
        first = packing.nonempty
        h0 = _sorted(packing, inputs.h0, storage)
        for d, rows in enumerate(packing.rows):
            before = rows[first:] + (1 if d else -1)
            h_before = y[:, d * output : (d + 1) * output][before].to(storage)
            recurrent = stored[d, first:]
            if h0 is not None:
                h_before, recurrent = torch.cat([h0[d, :first], h_before]), stored[d]
            kinds[0].append(stored[d].t() @ inputs.x[rows].to(storage))
            kinds[1].append(recurrent.t() @ h_before)
            if weights.b_ih:
                kinds[2].append(dgates[d].sum(0))
            if unprojected is not None and dprojected is not None:
                kinds[3].append(dprojected[d].t() @ unprojected[d].to(storage))
    dw_ih, dw_hh, db, dw_hr = ([grad.to(inputs.x.dtype) for grad in kind] for kind in kinds)
    dh0 = None if inputs.h0 is None else packing.unsort(dh).to(inputs.h0.dtype)
    dc0 = None if inputs.c0 is None else packing.unsort(dc).to(inputs.c0.dtype)
    return InputGrads(dx, dw_ih, dw_hh, db, dw_hr, dh0, dc0)


def _activate(gates: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    """sigmoid of i, f and o, tanh of g, computed and stored in `out`'s dtype: four views of it."""
    hidden = gates.shape[-1] // 4
    if gates.dtype != out.dtype:
        gates = out.copy_(gates)
    torch.sigmoid(gates[..., : 2 * hidden], out=out[..., : 2 * hidden])
    torch.tanh(gates[..., 2 * hidden : 3 * hidden], out=out[..., 2 * hidden : 3 * hidden])
    torch.sigmoid(gates[..., 3 * hidden :], out=out[..., 3 * hidden :])
    return out.chunk(4, dim=-1)


def _or_zero(state: Tensor | None, like: Tensor, n: int) -> Tensor:
    return torch.zeros_like(like) if state is None else state[:, :n].to(like.dtype)


def _packed(packing: Packing, values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if values is None or values.numel() != 1:
        return None if values is None else packing.pack(values, dtype)
    return values.to(dtype).view(1, 1, 1).expand(1, packing.bounds[-1], 1)  # one number for all


def _sorted(packing: Packing, state: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if state is None else packing.sort(state, dtype)
