"""The cuda backend: torch's large products around the recurrent kernels of csrc/lstm/cuda.

It saves the gates' pre-activations less the biases in bfloat16, (tokens, D * 4H) unit by unit (i, f, g, o of unit 0, of
unit 1, ...), written over the input projections where tokens have projections of their own, and the cell states in
float32, (tokens, D * H). The host reads no length and no id: launches follow from shapes and `max_seqlen` alone.
"""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels import compiled
from penstock.kernels.lstm.protocol import (
    InputGrads,
    LayerInputs,
    LayerOutputs,
    OutputGrads,
    fed_back,
    initial_state,
    into_h0,
    saved_like,
    why_no_kernel,
)

__all__ = ["available", "backward", "forward", "saved_like", "why_not"]

native: Any = getattr(compiled.native, "lstm_cuda", None)

FUSES = True

UNVERIFIED = "it has run on an emulated machine only, not yet on a GPU; use_backend('cuda') asks for it"
HIDDEN_SIZES = (128, 256, 384, 512, 768, 1024)


def available() -> str | None:
    """None if this backend can run here, else the reason."""
    if native is None:
        # the reason that cmake/cuda.cmake found
        return compiled.available() or f"penstock was built without it: {compiled.native.without_cuda}"
    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return "it needs compute capability 8.0"
    return None


def why_not(*, hidden_size: int, needs: tuple[str, ...] = (), **facts: Any) -> str | None:
    """None if this backend can serve such a call, else the reason."""
    reason = why_no_kernel("cuda", (torch.bfloat16,), needs=needs, **facts)
    if reason:
        return reason
    if hidden_size not in HIDDEN_SIZES:
        return f"the hidden size is {hidden_size}, not {', '.join(map(str, HIDDEN_SIZES))}"
    if "cells" in needs:
        return "it does not differentiate cell states"
    return native.why_not(hidden_size) if torch.cuda.is_available() else None


def forward(inputs: LayerInputs, return_cells: bool, save: bool) -> LayerOutputs:
    weights, tokens, batch, pool = inputs.weights, inputs.tokens, inputs.batch_size, inputs.pool
    width = weights.directions * weights.hidden_size
    x, ids = _to_project(inputs)
    if ids is not None:  # as F.embedding does: on a GPU it fails when the GPU comes to it
        valid = (ids >= 0) & (ids < x.shape[0])
        torch._assert_async(valid.all(), f"an id is not a row of the embeddings, 0 to {x.shape[0] - 1}")
    projections = x @ torch.cat([_by_unit(weight) for weight in weights.w_ih]).t()
    gates = None if not save else projections if ids is None else x.new_empty(tokens, 4 * width)
    # pooled as it arises, y is only kept for the gradient of W_hh
    y = x.new_empty(tokens, width) if save or not pool else None
    cells = x.new_empty(tokens, width, dtype=torch.float32) if save else None
    # of sequences without tokens the kernel writes nothing
    pooled = x.new_zeros(batch, width) if pool else None
    maximum = x.new_zeros(batch, width, dtype=torch.int32) if pool == "max" and save else None
    h_n, c_n = initial_state(inputs.h0, inputs, x.dtype), initial_state(inputs.c0, inputs, torch.float32)
    if tokens:
        call = _Call(inputs, backward=False)
        call.run(
            native.forward,
            projections=projections,
            ids=ids,
            gates=gates,
            w_hh=torch.stack(weights.w_hh),
            h0=inputs.h0,
            c0=inputs.c0,
            y=y,
            cells=cells,
            h_n=h_n,
            c_n=c_n,
            pooled=pooled,
            shares=_shares(inputs) if pool == "mean" else None,
            maximum=maximum,
        )
    saved = [tensor for tensor in (gates, cells, y if pool else None, maximum) if tensor is not None] if save else []
    no_cells = x.new_empty(0, dtype=torch.float32)
    return LayerOutputs(x.new_empty(0) if pool or y is None else y, h_n, c_n, no_cells, saved, pooled)


def backward(
    grads: OutputGrads, inputs: LayerInputs, y: Tensor, saved: list[Tensor], need_x: bool, need_weights: bool
) -> InputGrads:
    weights, tokens, pool = inputs.weights, inputs.tokens, inputs.pool
    directions, hidden = weights.directions, weights.hidden_size
    gates, cells, *of_pool = saved
    dy, maximum = grads.y, None
    if pool:
        y, dy, maximum = of_pool[0], grads.pooled, of_pool[1] if pool == "max" else None
        if pool == "mean" and dy is not None:
            dy = (dy.float() * _shares(inputs)[:, None]).to(dy.dtype)
    dgates = torch.empty_like(gates)  # not in place: what was saved may be needed for another backward
    w_hh = torch.stack(weights.w_hh).view(directions, 4, hidden, hidden)
    transposed = w_hh.permute(0, 3, 2, 1).reshape(directions, hidden, 4 * hidden)
    dc0 = None if inputs.c0 is None else initial_state(grads.c_n, inputs, torch.float32)
    if tokens:
        call = _Call(inputs, backward=True)
        call.run(
            native.backward,
            dgates=dgates,
            gates=gates,
            transposed=transposed,
            cells=cells,
            c0=inputs.c0,
            dy=dy,
            pooled=bool(pool),
            maximum=maximum,
            dh_n=None if grads.h_n is None else grads.h_n.float(),
            dc_n=grads.c_n,
            dc0=dc0,
        )

    x, ids = _to_project(inputs)
    of_rows = dgates if ids is None else _sum_by_id(dgates, ids, x.shape[0])
    dx = None
    if need_x:
        dx = (of_rows @ torch.cat([_by_unit(weight) for weight in weights.w_ih])).to(inputs.x.dtype)
        if inputs.ids is not None and ids is None:
            dx = _sum_by_id(dx, inputs.ids, inputs.x.shape[0])
    dw_ih: list[Tensor] = []
    dw_hh: list[Tensor] = []
    db: list[Tensor] = []
    if need_weights:
        of_direction = dgates.chunk(directions, dim=1)
        dw_ih = [_by_gate(part) for part in (of_rows.t() @ x).chunk(directions)]
        dw_hh = [_by_gate(part.t() @ before) for part, before in zip(of_direction, fed_back(y, inputs), strict=True)]
        if weights.b_ih:
            db = [_by_gate(part.sum(0, dtype=torch.float32).to(x.dtype)) for part in of_direction]
    dh0 = None
    if inputs.h0 is not None:
        dh0 = initial_state(grads.h_n, inputs, torch.float32)
        if tokens:
            dh0 = into_h0(dgates, transposed.transpose(1, 2), dh0, inputs)
        dh0 = dh0.to(inputs.h0.dtype)
    return InputGrads(dx, dw_ih, dw_hh, db, [], dh0, dc0)


class _Call:
    """One launch: how the batch is shared out, and the order of its sequences."""

    def __init__(self, inputs: LayerInputs, backward: bool) -> None:
        self.device = inputs.x.device
        self.tokens, self.batch, self.directions = inputs.tokens, inputs.batch_size, inputs.weights.directions
        self.cu_seqlens = inputs.cu_seqlens.contiguous()
        pairs = zip(inputs.weights.b_ih, inputs.weights.b_hh, strict=True)
        biases = [_by_unit(a.float() + b.float()) for a, b in pairs]
        self.biases = torch.cat(biases) if biases else None
        self.ranked = inputs.x.new_empty(self.batch, 4, dtype=torch.int32)
        with self._on_device() as stream:
            self.plan = native.plan(
                hidden_size=inputs.weights.hidden_size,
                directions=self.directions,
                batch=self.batch,
                tokens=self.tokens,
                max_seqlen=inputs.steps,
                backward=backward,
            )
            native.rank(stream, self.cu_seqlens.data_ptr(), self.batch, self.tokens, self.ranked.data_ptr())

    def run(self, launch: Any, **arguments: Any) -> None:
        arguments["biases"] = self.biases
        exchange = self.ranked.new_zeros(self.plan.exchange_words, dtype=torch.int64)
        kept = {name: _aligned(value) for name, value in arguments.items() if isinstance(value, Tensor)}
        addresses = {name: kept[name].data_ptr() if name in kept else value or 0 for name, value in arguments.items()}
        with self._on_device() as stream:
            launch(
                self.plan,
                stream,
                ranked=self.ranked.data_ptr(),
                batch=self.batch,
                directions=self.directions,
                exchange=exchange.data_ptr(),
                **addresses,
            )

    @contextlib.contextmanager
    def _on_device(self) -> Any:
        if self.device.type != "cuda":  # emulated
            yield 0
            return
        with torch.cuda.device(self.device):
            yield torch.cuda.current_stream().cuda_stream


def _to_project(inputs: LayerInputs) -> tuple[Tensor, Tensor | None]:
    """What W_ih is multiplied with, and which row of it each token reads, None for its own.

    That is the table of embeddings as a whole if it has no more rows than there are tokens: finding those that occur
    would make the host wait. Sums by id count their elements in 32 bits.
    """
    weights, ids = inputs.weights, inputs.ids
    if ids is None:
        return inputs.x, None
    rows, elements = inputs.x.shape[0], inputs.tokens * weights.directions * 4 * weights.hidden_size
    if rows > inputs.tokens or elements >= 1 << 31:
        return F.embedding(ids, inputs.x).to(inputs.dtype), None
    return inputs.x.to(inputs.dtype), ids


def _shares(inputs: LayerInputs) -> Tensor:
    """The weight of a token in the mean over its sequence, float32, (B,)."""
    return 1.0 / inputs.cu_seqlens.diff().clamp(min=1)


def _sum_by_id(of_tokens: Tensor, ids: Tensor, rows: int) -> Tensor:
    """(tokens, ...) to (rows, ...), in an order that is always the same."""
    # up to 3072 tokens torch adds up in the dtype it is given, beyond in float
    wide = of_tokens.float() if of_tokens.shape[0] <= 3072 else of_tokens
    return torch.ops.aten.embedding_dense_backward(wide, ids, rows, -1, False).to(of_tokens.dtype)


def _aligned(tensor: Tensor) -> Tensor:
    """The kernels read several elements at once; a contiguous view may still begin anywhere."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _by_unit(of_gates: Tensor) -> Tensor:
    """(4H, ...), gate by gate, to (4H, ...), unit by unit."""
    return of_gates.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)


def _by_gate(of_units: Tensor) -> Tensor:
    """(4H, ...), unit by unit, to (4H, ...), gate by gate."""
    return of_units.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)
