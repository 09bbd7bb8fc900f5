"""The triton backend: torch's large products around the recurrent kernels of triton_kernels.py.

The host reads no length: launches follow from shapes and `max_seqlen` alone, so that calls neither wait for the device
nor differ under CUDA graph capture.
"""

from typing import Any

import torch
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
    why_no_kernel,
)
from penstock.kernels.triton_support import INTERPRETED, on_device

# W_hh's four blocks, padded, stay on the chip up to this many bytes: H <= 128 in 16 bits, 64 in float32
_RESIDENT_BYTES = 128 * 1024
_PERSISTENT_ROWS = 16  # sequences per program: the least a tensor core's tile takes
_STEP_TILE = {"BLOCK_B": 32, "BLOCK_H": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
_CELL_BLOCK = 1024


def why_not(**facts: Any) -> str | None:
    """None if this backend can serve such a call, else the reason."""
    device = "cpu" if INTERPRETED else "cuda"
    return why_no_kernel(device, (torch.float32, torch.bfloat16, torch.float16), **facts)


def saved_like(inputs: LayerInputs, return_cells: bool) -> list[Tensor]:
    tokens, width = inputs.x.shape[0], inputs.weights.directions * inputs.weights.hidden_size
    return [inputs.x.new_empty(tokens, 4 * width), inputs.x.new_empty(tokens, width, dtype=torch.float32)]


def forward(inputs: LayerInputs, return_cells: bool, save: bool) -> LayerOutputs:
    from penstock.kernels.lstm import triton_kernels

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
                triton_kernels.persistent_forward[launch](
                    *first, c0, y, cells, h_n, c_n, tokens, batch, HAS_C0=inputs.c0 is not None, **shared, **options
                )
            else:
                grid = _step_grid(inputs)
                for step in range(inputs.max_seqlen):
                    triton_kernels.step_forward[grid](
                        *first, y, cells, h_n, c_n, step, tokens, batch, FIRST=step == 0, **shared, **_STEP_TILE
                    )
    saved = [gates, cells] if save else []
    returned = cells.clone() if save else cells  # an operation's results must not share memory
    return LayerOutputs(y, h_n, c_n, returned if return_cells else x.new_empty(0, dtype=torch.float32), saved)


def backward(
    grads: OutputGrads, inputs: LayerInputs, y: Tensor, saved: list[Tensor], need_x: bool, need_weights: bool
) -> InputGrads:
    from penstock.kernels.lstm import triton_kernels

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
                triton_kernels.persistent_backward[launch](*first, dh, dc, tokens, batch, **shared, **options)
            else:
                grid = _step_grid(inputs)
                for step in reversed(range(inputs.max_seqlen)):
                    triton_kernels.step_backward[grid](
                        *first, dh, dc, step, tokens, batch,
                        FIRST=step == 0, HAS_DH_N=grads.h_n is not None, **shared, **_STEP_TILE,
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
        from penstock.kernels.lstm import triton_kernels

        gates, c = gates.contiguous(), c.contiguous()
        h, c_next = gates.new_empty(c.shape), torch.empty_like(c)
        if c.numel():
            grid = (-(-c.numel() // _CELL_BLOCK),)
            with on_device(c):
                triton_kernels.fused_cell_forward[grid](gates, c, h, c_next, c.numel(), H=c.shape[1], BLOCK=_CELL_BLOCK)
        return h, c_next

    @staticmethod
    def backward(dh: Tensor | None, dc_next: Tensor | None, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        from penstock.kernels.lstm import triton_kernels

        gates, c = gates.contiguous(), c.contiguous()
        dgates, dc = torch.empty_like(gates), torch.empty_like(c)
        if c.numel():
            grid = (-(-c.numel() // _CELL_BLOCK),)
            dh_at, dc_at = (c if grad is None else grad.contiguous() for grad in (dh, dc_next))
            with on_device(c):
                triton_kernels.fused_cell_backward[grid](
                    dh_at, dc_at, gates, c, dgates, dc, c.numel(),
                    H=c.shape[1], HAS_DH=dh is not None, HAS_DC=dc_next is not None, BLOCK=_CELL_BLOCK,
                )  # fmt: skip
        return dgates, dc


def _precision(dtype: torch.dtype) -> str:
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if tf32 else "ieee"


def _padded(hidden: int) -> int:
    return max(16, 1 << (hidden - 1).bit_length())


def _persistent(weights: LayerWeights) -> bool:
    return 4 * _padded(weights.hidden_size) ** 2 * weights.w_hh[0].element_size() <= _RESIDENT_BYTES


def _persistent_launch(inputs: LayerInputs) -> tuple[tuple[int, int], dict[str, int]]:
    grid = (-(-inputs.batch_size // _PERSISTENT_ROWS), inputs.weights.directions)
    return grid, _persistent_tile(_padded(inputs.weights.hidden_size))


def _persistent_tile(padded: int) -> dict[str, int]:
    # W_hh fills the shared memory: the compiler must not buffer loads there ahead of time (num_stages)
    warps = 4 if padded <= 64 else 8
    return {"BLOCK_B": _PERSISTENT_ROWS, "BLOCK_H": padded, "num_warps": warps, "num_stages": 1}


def _step_grid(inputs: LayerInputs) -> tuple[int, int, int]:
    rows, units = _STEP_TILE["BLOCK_B"], _STEP_TILE["BLOCK_H"]
    return -(-inputs.batch_size // rows), -(-inputs.weights.hidden_size // units), inputs.weights.directions


def _longest_first(inputs: LayerInputs) -> Tensor:
    return torch.argsort(inputs.cu_seqlens.diff(), descending=True, stable=True)
