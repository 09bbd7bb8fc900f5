"""The triton backend: torch's large products around recurrent kernels.

Rows are ragged and lengths read on the device; there are no atomics, and every sum has one fixed order. The host reads
no length: launches follow from shapes and `max_seqlen` alone, so that calls neither wait for the device nor differ
under CUDA graph capture.

Two tiers of kernels share the arithmetic. The persistent one runs all steps of a tile of sequences in one program, with
W_hh kept on the chip; the stepwise one is launched once per step, and W_hh streams through the cache. Sequences come in
`order`, by descending length, so that a tile's sequences end close together and tiles that have ended cost nothing.

Layouts: gates (tokens, D * 4H) pre-activations i, f, g, o; cells (tokens, D * H) float32; y (tokens, D * H);
w_hh (D, 4H, H); states (D, B, H). Step s of sequence b is row start + s forward and end - 1 - s in reverse.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.lstm.protocol import (
    InputGrads,
    LayerInputs,
    LayerOutputs,
    LayerWeights,
    OutputGrads,
    fed_back,
    initial_state,
    into_h0,
    saved_like,
)
from penstock.kernels.triton_support import on_device

# W_hh's four blocks, padded, stay on the chip up to this many bytes: H <= 128 in 16 bits, 64 in float32
_RESIDENT_BYTES = 128 * 1024
_PERSISTENT_ROWS = 16  # sequences per program: the least a tensor core's tile takes
_STEP_TILE = {"BLOCK_B": 32, "BLOCK_H": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
_STEP_TILE_32 = {**_STEP_TILE, "BLOCK_K": 32, "num_warps": 8}  # of float32
_CELL_BLOCK = 1024
_RUNTIME_SIZES = ["tokens", "batch"]

__all__ = ["Cell", "backward", "forward", "saved_like"]


def forward(inputs: LayerInputs, return_cells: bool, save: bool) -> LayerOutputs:
    x, weights, batch, tokens = inputs.x, inputs.weights, inputs.batch_size, inputs.x.shape[0]
    directions, hidden = weights.directions, weights.hidden_size
    gates = x @ torch.cat(weights.w_ih).t()
    if weights.b_ih:
        gates += torch.cat(weights.b_ih) + torch.cat(weights.b_hh)
    y = x.new_empty(tokens, directions * hidden)
    h_n, c_n = initial_state(inputs.h0, inputs, x.dtype), initial_state(inputs.c0, inputs, torch.float32)
    cells = x.new_empty((tokens, directions * hidden) if save or return_cells else (0,), dtype=torch.float32)
    h0 = h_n if inputs.h0 is None else inputs.h0.contiguous()
    shared = {
        "H": hidden,
        "D": directions,
        "HAS_H0": inputs.h0 is not None,
        "SAVE_GATES": save,
        "SAVE_CELLS": save or return_cells,
        "PRECISION": _precision(x.dtype),
    }
    if tokens:
        first = gates, torch.stack(weights.w_hh), inputs.cu_seqlens.contiguous(), _longest_first(inputs), h0
        with on_device(x):
            if _persistent(weights):
                c0 = c_n if inputs.c0 is None else inputs.c0.contiguous()
                launch, options = _persistent_launch(inputs)
                persistent_forward[launch](
                    *first, c0, y, cells, h_n, c_n, tokens, batch, HAS_C0=inputs.c0 is not None, **shared, **options
                )
            else:
                grid, options = _step_launch(inputs)
                for step in range(inputs.steps):
                    step_forward[grid](
                        *first, y, cells, h_n, c_n, step, tokens, batch, FIRST=step == 0, **shared, **options
                    )
    saved = [gates, cells] if save else []
    returned = cells.clone() if save else cells  # an operation's results must not share memory
    return LayerOutputs(y, h_n, c_n, returned if return_cells else x.new_empty(0, dtype=torch.float32), saved)


def backward(
    grads: OutputGrads, inputs: LayerInputs, y: Tensor, saved: list[Tensor], need_x: bool, need_weights: bool
) -> InputGrads:
    x, weights, batch, tokens = inputs.x, inputs.weights, inputs.batch_size, inputs.x.shape[0]
    directions, hidden = weights.directions, weights.hidden_size
    gates, cells = saved
    dgates = torch.empty_like(gates)
    dh = initial_state(grads.h_n, inputs, torch.float32)
    dc = initial_state(grads.c_n, inputs, torch.float32)
    dy, dcells = (gates if grad is None else grad.contiguous() for grad in (grads.y, grads.cells))
    c0 = dc if inputs.c0 is None else inputs.c0.contiguous()
    w_hh = torch.stack(weights.w_hh)
    shared = {
        "H": hidden,
        "D": directions,
        "HAS_C0": inputs.c0 is not None,
        "HAS_DY": grads.y is not None,
        "HAS_DCELLS": grads.cells is not None,
        "PRECISION": _precision(x.dtype),
    }
    persistent = _persistent(weights)
    if tokens:
        first = dgates, gates, w_hh, inputs.cu_seqlens.contiguous(), _longest_first(inputs), c0, cells, dy, dcells
        with on_device(x):
            if persistent:
                launch, options = _persistent_launch(inputs)
                persistent_backward[launch](*first, dh, dc, tokens, batch, **shared, **options)
            else:
                grid, options = _step_launch(inputs)
                for step in reversed(range(inputs.steps)):
                    step_backward[grid](
                        *first, dh, dc, step, tokens, batch,
                        FIRST=step == 0, HAS_DH_N=grads.h_n is not None, **shared, **options,
                    )  # fmt: skip

    dx = dgates @ torch.cat(weights.w_ih) if need_x else None
    dw_ih: list[Tensor] = []
    dw_hh: list[Tensor] = []
    db: list[Tensor] = []
    if need_weights:
        of_direction = dgates.chunk(directions, dim=1)
        dw_ih = [part.contiguous() for part in (dgates.t() @ x).chunk(directions)]
        dw_hh = [part.t() @ before for part, before in zip(of_direction, fed_back(y, inputs), strict=True)]
        if weights.b_ih:
            db = [part.sum(0, dtype=torch.float32).to(x.dtype) for part in of_direction]
    dh0 = None
    if inputs.h0 is not None:
        dh0 = dh if persistent or not tokens else into_h0(dgates, w_hh, dh, inputs)
        dh0 = dh0.to(inputs.h0.dtype)
    return InputGrads(dx, dw_ih, dw_hh, db, [], dh0, None if inputs.c0 is None else dc)


class Cell:
    """`penstock::lstm_cell` in one kernel each way."""

    @staticmethod
    def forward(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates, c = gates.contiguous(), c.contiguous()
        h, c_next = gates.new_empty(c.shape), torch.empty_like(c)
        if c.numel():
            grid = (triton.cdiv(c.numel(), _CELL_BLOCK),)
            with on_device(c):
                fused_cell_forward[grid](gates, c, h, c_next, c.shape[0], H=c.shape[1], BLOCK=_CELL_BLOCK)
        return h, c_next

    @staticmethod
    def backward(dh: Tensor | None, dc_next: Tensor | None, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates, c = gates.contiguous(), c.contiguous()
        dgates, dc = torch.empty_like(gates), torch.empty_like(c)
        if c.numel():
            grid = (triton.cdiv(c.numel(), _CELL_BLOCK),)
            dh_at, dc_at = (c if grad is None else grad.contiguous() for grad in (dh, dc_next))
            with on_device(c):
                fused_cell_backward[grid](
                    dh_at, dc_at, gates, c, dgates, dc, c.shape[0],
                    H=c.shape[1], HAS_DH=dh is not None, HAS_DC=dc_next is not None, BLOCK=_CELL_BLOCK,
                )  # fmt: skip
        return dgates, dc


def _precision(dtype: torch.dtype) -> str:
    # three products of tf32 parts are as exact as float32, and run on the tensor cores; "ieee" takes thousands of
    # instructions a step, and some versions of Triton cannot compile them
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if tf32 else "tf32x3"


def _padded(hidden: int) -> int:
    return max(16, 1 << (hidden - 1).bit_length())


def _persistent(weights: LayerWeights) -> bool:
    return 4 * _padded(weights.hidden_size) ** 2 * weights.w_hh[0].element_size() <= _RESIDENT_BYTES


def _persistent_launch(inputs: LayerInputs) -> tuple[tuple[int, int], dict[str, int]]:
    grid = triton.cdiv(inputs.batch_size, _PERSISTENT_ROWS), inputs.weights.directions
    padded = _padded(inputs.weights.hidden_size)
    # W_hh fills the shared memory: the compiler must not buffer loads there ahead of time (num_stages)
    warps = 4 if padded * inputs.dtype.itemsize <= 128 else 8
    return grid, {"BLOCK_B": _PERSISTENT_ROWS, "BLOCK_H": padded, "num_warps": warps, "num_stages": 1}


def _step_launch(inputs: LayerInputs) -> tuple[tuple[int, int, int], dict[str, int]]:
    tile, weights = _STEP_TILE if inputs.dtype.itemsize == 2 else _STEP_TILE_32, inputs.weights
    blocks = triton.cdiv(inputs.batch_size, tile["BLOCK_B"]), triton.cdiv(weights.hidden_size, tile["BLOCK_H"])
    return (*blocks, weights.directions), tile


def _longest_first(inputs: LayerInputs) -> Tensor:
    return torch.argsort(inputs.cu_seqlens.diff(), descending=True, stable=True)


@triton.jit
def tanh(x):
    # e^-2|x| cannot overflow; near zero 1 - e^-2|x| would cancel, and a series takes over
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    square = x * x
    near = x * (1.0 - square * (0.333333333 - square * 0.133333333))
    return tl.where(tl.abs(x) < 0.1, near, tl.where(x < 0, -far, far))


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def cell_forward(i, f, g, o, c):
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


@triton.jit
def cell_backward(i, f, g, o, c_before, c, dh, dc):
    """The gradients of the four pre-activations and of the cell state before."""
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    tanh_c = tanh(c)
    dc += dh * o * (1.0 - tanh_c * tanh_c)
    di = dc * g * i * (1.0 - i)
    df = dc * c_before * f * (1.0 - f)
    dg = dc * i * (1.0 - g * g)
    do = dh * tanh_c * o * (1.0 - o)
    return di, df, dg, do, dc * f


@triton.jit
def sequences_of_tile(cu_seqlens, order, tile, tokens, batch, BLOCK_B: tl.constexpr):
    """Each row's sequence, whether it has one, and its bounds, kept inside the tokens whatever cu_seqlens holds."""
    rows = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    valid = rows < batch
    sequence = tl.load(order + rows, mask=valid, other=0).to(tl.int64)
    start = tl.load(cu_seqlens + sequence, mask=valid, other=0).to(tl.int64)
    end = tl.load(cu_seqlens + sequence + 1, mask=valid, other=0).to(tl.int64)
    start = tl.minimum(tl.maximum(start, 0), tokens)
    end = tl.minimum(tl.maximum(end, start), tokens)
    return sequence, valid, start, end


@triton.jit
def row_of_step(start, end, step, direction):
    return tl.where(direction == 0, start + step, end - 1 - step)


@triton.jit
def load_four(at, step: tl.constexpr, mask):
    """What lies at `at` for gate i and, each `step` further on, for f, g and o."""
    i = tl.load(at, mask=mask, other=0.0)
    f = tl.load(at + step, mask=mask, other=0.0)
    g = tl.load(at + 2 * step, mask=mask, other=0.0)
    o = tl.load(at + 3 * step, mask=mask, other=0.0)
    return i, f, g, o


@triton.jit
def load_gates(at, H: tl.constexpr, mask):
    i, f, g, o = load_four(at, H, mask)
    return i.to(tl.float32), f.to(tl.float32), g.to(tl.float32), o.to(tl.float32)


@triton.jit
def store_gates(at, H: tl.constexpr, i, f, g, o, mask):
    storage = at.dtype.element_ty
    tl.store(at, i.to(storage), mask=mask)
    tl.store(at + H, f.to(storage), mask=mask)
    tl.store(at + 2 * H, g.to(storage), mask=mask)
    tl.store(at + 3 * H, o.to(storage), mask=mask)


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def persistent_forward(
    gates, w_hh, cu_seqlens, order, h0, c0, y, cells, h_n, c_n, tokens, batch,
    H: tl.constexpr, D: tl.constexpr, HAS_H0: tl.constexpr, HAS_C0: tl.constexpr, SAVE_GATES: tl.constexpr,
    SAVE_CELLS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    direction = tl.program_id(1)
    sequence, valid, start, end = sequences_of_tile(cu_seqlens, order, tl.program_id(0), tokens, batch, BLOCK_B)
    units = tl.arange(0, BLOCK_H)
    in_hidden = units < H

    # W_hh's four blocks, transposed to (unit before, unit)
    at = w_hh + direction * 4 * H * H + units[None, :] * H + units[:, None]
    square = in_hidden[:, None] & in_hidden[None, :]
    w_i, w_f, w_g, w_o = load_four(at, H * H, square)

    state_at = (direction * batch + sequence)[:, None] * H + units[None, :]
    in_state = valid[:, None] & in_hidden[None, :]
    h = tl.zeros([BLOCK_B, BLOCK_H], dtype=tl.float32)
    c = tl.zeros([BLOCK_B, BLOCK_H], dtype=tl.float32)
    if HAS_H0:
        h = tl.load(h0 + state_at, mask=in_state, other=0.0).to(tl.float32)
    if HAS_C0:
        c = tl.load(c0 + state_at, mask=in_state, other=0.0)

    longest = tl.max(end - start)
    for step in range(0, longest):
        active = step < end - start
        row = row_of_step(start, end, step, direction)
        mask = active[:, None] & in_hidden[None, :]
        gates_at = gates + row[:, None] * (D * 4 * H) + direction * 4 * H + units[None, :]
        operand = h.to(w_hh.dtype.element_ty)
        i, f, g, o = load_gates(gates_at, H, mask)
        i = tl.dot(operand, w_i, i, input_precision=PRECISION)
        f = tl.dot(operand, w_f, f, input_precision=PRECISION)
        g = tl.dot(operand, w_g, g, input_precision=PRECISION)
        o = tl.dot(operand, w_o, o, input_precision=PRECISION)
        h_new, c_new = cell_forward(i, f, g, o, c)
        # what is fed back is what is stored
        h = tl.where(active[:, None], h_new.to(y.dtype.element_ty).to(tl.float32), h)
        c = tl.where(active[:, None], c_new, c)
        if SAVE_GATES:
            store_gates(gates_at, H, i, f, g, o, mask)
        out_at = row[:, None] * (D * H) + direction * H + units[None, :]
        if SAVE_CELLS:
            tl.store(cells + out_at, c, mask=mask)
        tl.store(y + out_at, h.to(y.dtype.element_ty), mask=mask)
    tl.store(h_n + state_at, h.to(h_n.dtype.element_ty), mask=in_state)
    tl.store(c_n + state_at, c, mask=in_state)


@triton.jit(do_not_specialize=_RUNTIME_SIZES)
def persistent_backward(
    dgates, gates, w_hh, cu_seqlens, order, c0, cells, dy, dcells, dh, dc, tokens, batch,
    H: tl.constexpr, D: tl.constexpr, HAS_C0: tl.constexpr, HAS_DY: tl.constexpr, HAS_DCELLS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dh and dc, (D, B, H) float32, hold the gradients of h_n and c_n, then those of h0 and c0."""
    direction = tl.program_id(1)
    sequence, valid, start, end = sequences_of_tile(cu_seqlens, order, tl.program_id(0), tokens, batch, BLOCK_B)
    units = tl.arange(0, BLOCK_H)
    in_hidden = units < H

    # W_hh's four blocks as they lie: (unit, unit before)
    at = w_hh + direction * 4 * H * H + units[:, None] * H + units[None, :]
    square = in_hidden[:, None] & in_hidden[None, :]
    w_i, w_f, w_g, w_o = load_four(at, H * H, square)

    state_at = (direction * batch + sequence)[:, None] * H + units[None, :]
    in_state = valid[:, None] & in_hidden[None, :]
    dh_next = tl.load(dh + state_at, mask=in_state, other=0.0)
    dc_next = tl.load(dc + state_at, mask=in_state, other=0.0)
    c_first = tl.zeros([BLOCK_B, BLOCK_H], dtype=tl.float32)
    if HAS_C0:
        c_first = tl.load(c0 + state_at, mask=in_state, other=0.0)

    longest = tl.max(end - start)
    for back in range(0, longest):
        step = longest - 1 - back
        active = step < end - start
        row = row_of_step(start, end, step, direction)
        before = tl.where(direction == 0, row - 1, row + 1)
        mask = active[:, None] & in_hidden[None, :]
        gates_at = row[:, None] * (D * 4 * H) + direction * 4 * H + units[None, :]
        i, f, g, o = load_gates(gates + gates_at, H, mask)
        out_at = row[:, None] * (D * H) + direction * H + units[None, :]
        c = tl.load(cells + out_at, mask=mask, other=0.0)
        before_at = before[:, None] * (D * H) + direction * H + units[None, :]
        has_before = (active & (start + step > start))[:, None] & in_hidden[None, :]
        c_before = tl.load(cells + before_at, mask=has_before, other=0.0)
        c_before = tl.where(has_before, c_before, c_first)
        dh_now, dc_now = dh_next, dc_next
        if HAS_DY:
            dh_now += tl.load(dy + out_at, mask=mask, other=0.0).to(tl.float32)
        if HAS_DCELLS:
            dc_now += tl.load(dcells + out_at, mask=mask, other=0.0)
        di, df, dg, do, dc_now = cell_backward(i, f, g, o, c_before, c, dh_now, dc_now)
        di = di.to(dgates.dtype.element_ty)
        df = df.to(dgates.dtype.element_ty)
        dg = dg.to(dgates.dtype.element_ty)
        do = do.to(dgates.dtype.element_ty)
        store_gates(dgates + gates_at, H, di, df, dg, do, mask)
        acc = tl.dot(di, w_i, input_precision=PRECISION)
        acc = tl.dot(df, w_f, acc, input_precision=PRECISION)
        acc = tl.dot(dg, w_g, acc, input_precision=PRECISION)
        acc = tl.dot(do, w_o, acc, input_precision=PRECISION)
        dh_next = tl.where(active[:, None], acc, dh_next)
        dc_next = tl.where(active[:, None], dc_now, dc_next)
    tl.store(dh + state_at, dh_next, mask=in_state)
    tl.store(dc + state_at, dc_next, mask=in_state)


@triton.jit(do_not_specialize=[*_RUNTIME_SIZES, "step"])
def step_forward(
    gates, w_hh, cu_seqlens, order, h0, y, cells, h_n, c_n, step, tokens, batch,
    H: tl.constexpr, D: tl.constexpr, FIRST: tl.constexpr, HAS_H0: tl.constexpr, SAVE_GATES: tl.constexpr,
    SAVE_CELLS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of BLOCK_H units of a tile of sequences. c_n carries the cell state; h_n starts as h0."""
    direction = tl.program_id(2)
    sequence, _, start, end = sequences_of_tile(cu_seqlens, order, tl.program_id(0), tokens, batch, BLOCK_B)
    active = step < end - start
    if tl.max(active.to(tl.int32)) > 0:
        units = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
        in_hidden = units < H
        row = row_of_step(start, end, step, direction)
        mask = active[:, None] & in_hidden[None, :]
        gates_at = gates + row[:, None] * (D * 4 * H) + direction * 4 * H + units[None, :]
        i, f, g, o = load_gates(gates_at, H, mask)
        if HAS_H0 or not FIRST:
            if FIRST:
                h_at = h0 + (direction * batch + sequence) * H
            else:
                h_at = y + tl.where(direction == 0, row - 1, row + 1) * (D * H) + direction * H
            for k in range(0, H, BLOCK_K):
                ks = k + tl.arange(0, BLOCK_K)
                h = tl.load(h_at[:, None] + ks[None, :], mask=active[:, None] & (ks < H)[None, :], other=0.0)
                w_at = w_hh + direction * 4 * H * H + units[None, :] * H + ks[:, None]
                in_w = (ks < H)[:, None] & in_hidden[None, :]
                i = tl.dot(h, tl.load(w_at, mask=in_w, other=0.0), i, input_precision=PRECISION)
                f = tl.dot(h, tl.load(w_at + H * H, mask=in_w, other=0.0), f, input_precision=PRECISION)
                g = tl.dot(h, tl.load(w_at + 2 * H * H, mask=in_w, other=0.0), g, input_precision=PRECISION)
                o = tl.dot(h, tl.load(w_at + 3 * H * H, mask=in_w, other=0.0), o, input_precision=PRECISION)
        state_at = (direction * batch + sequence)[:, None] * H + units[None, :]
        h_new, c = cell_forward(i, f, g, o, tl.load(c_n + state_at, mask=mask, other=0.0))
        tl.store(c_n + state_at, c, mask=mask)
        if SAVE_GATES:
            store_gates(gates_at, H, i, f, g, o, mask)
        out_at = row[:, None] * (D * H) + direction * H + units[None, :]
        if SAVE_CELLS:
            tl.store(cells + out_at, c, mask=mask)
        h_new = h_new.to(y.dtype.element_ty)
        tl.store(y + out_at, h_new, mask=mask)
        last = step + 1 == end - start
        tl.store(h_n + state_at, h_new, mask=mask & last[:, None])


@triton.jit(do_not_specialize=[*_RUNTIME_SIZES, "step"])
def step_backward(
    dgates, gates, w_hh, cu_seqlens, order, c0, cells, dy, dcells, dh_n, dc, step, tokens, batch,
    H: tl.constexpr, D: tl.constexpr, FIRST: tl.constexpr, HAS_C0: tl.constexpr, HAS_DY: tl.constexpr,
    HAS_DCELLS: tl.constexpr, HAS_DH_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of BLOCK_H units: dh from the next step's dgates, then this step's. dc carries the cell's gradient."""
    direction = tl.program_id(2)
    sequence, _, start, end = sequences_of_tile(cu_seqlens, order, tl.program_id(0), tokens, batch, BLOCK_B)
    active = step < end - start
    if tl.max(active.to(tl.int32)) > 0:
        units = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
        in_hidden = units < H
        row = row_of_step(start, end, step, direction)
        before = tl.where(direction == 0, row - 1, row + 1)
        after = tl.where(direction == 0, row + 1, row - 1)
        continues = step + 1 < end - start
        mask = active[:, None] & in_hidden[None, :]
        state_at = (direction * batch + sequence)[:, None] * H + units[None, :]

        dh = tl.zeros([BLOCK_B, BLOCK_H], dtype=tl.float32)
        if tl.max(continues.to(tl.int32)) > 0:
            after_at = dgates + after * (D * 4 * H) + direction * 4 * H
            for gate in tl.static_range(4):
                for k in range(0, H, BLOCK_K):
                    ks = k + tl.arange(0, BLOCK_K)
                    in_next = continues[:, None] & (ks < H)[None, :]
                    d_next = tl.load(after_at[:, None] + gate * H + ks[None, :], mask=in_next, other=0.0)
                    w_at = w_hh + direction * 4 * H * H + (gate * H + ks)[:, None] * H + units[None, :]
                    w = tl.load(w_at, mask=(ks < H)[:, None] & in_hidden[None, :], other=0.0)
                    dh = tl.dot(d_next, w, dh, input_precision=PRECISION)
        if HAS_DH_N:
            ends_here = mask & (step + 1 == end - start)[:, None]
            dh += tl.load(dh_n + state_at, mask=ends_here, other=0.0).to(tl.float32)

        gates_at = row[:, None] * (D * 4 * H) + direction * 4 * H + units[None, :]
        i, f, g, o = load_gates(gates + gates_at, H, mask)
        out_at = row[:, None] * (D * H) + direction * H + units[None, :]
        c = tl.load(cells + out_at, mask=mask, other=0.0)
        if FIRST:
            c_before = tl.zeros([BLOCK_B, BLOCK_H], dtype=tl.float32)
            if HAS_C0:
                c_before = tl.load(c0 + state_at, mask=mask, other=0.0)
        else:
            c_before = tl.load(cells + before[:, None] * (D * H) + direction * H + units[None, :], mask=mask, other=0.0)
        dc_now = tl.load(dc + state_at, mask=mask, other=0.0)
        if HAS_DY:
            dh += tl.load(dy + out_at, mask=mask, other=0.0).to(tl.float32)
        if HAS_DCELLS:
            dc_now += tl.load(dcells + out_at, mask=mask, other=0.0)
        di, df, dg, do, dc_now = cell_backward(i, f, g, o, c_before, c, dh, dc_now)
        store_gates(dgates + gates_at, H, di, df, dg, do, mask)
        tl.store(dc + state_at, dc_now, mask=mask)


@triton.jit(do_not_specialize=["batch"])
def fused_cell_forward(gates, c, h, c_next, batch, H: tl.constexpr, BLOCK: tl.constexpr):
    """gates (N, 4H), c and c_next (N, H) float32, h (N, H); batch = N."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < tl.cast(batch, tl.int64) * H  # multiplied here, the compiler knows what divides it: wide accesses
    gates_at = gates + at // H * (4 * H) + at % H
    i, f, g, o = load_gates(gates_at, H, mask)
    h_new, c_new = cell_forward(i, f, g, o, tl.load(c + at, mask=mask, other=0.0))
    tl.store(h + at, h_new.to(h.dtype.element_ty), mask=mask)
    tl.store(c_next + at, c_new, mask=mask)


@triton.jit(do_not_specialize=["batch"])
def fused_cell_backward(
    dh, dc_next, gates, c, dgates, dc, batch,
    H: tl.constexpr, HAS_DH: tl.constexpr, HAS_DC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < tl.cast(batch, tl.int64) * H  # multiplied here, the compiler knows what divides it: wide accesses
    gates_at = at // H * (4 * H) + at % H
    i, f, g, o = load_gates(gates + gates_at, H, mask)
    before = tl.load(c + at, mask=mask, other=0.0)
    dh_now = tl.zeros([BLOCK], dtype=tl.float32)
    dc_now = tl.zeros([BLOCK], dtype=tl.float32)
    if HAS_DH:
        dh_now = tl.load(dh + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_DC:
        dc_now = tl.load(dc_next + at, mask=mask, other=0.0)
    _, after = cell_forward(i, f, g, o, before)
    di, df, dg, do, dc_now = cell_backward(i, f, g, o, before, after, dh_now, dc_now)
    store_gates(dgates + gates_at, H, di, df, dg, do, mask)
    tl.store(dc + at, dc_now, mask=mask)
