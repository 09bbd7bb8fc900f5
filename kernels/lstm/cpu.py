"""The cpu backend: one layer in C++ (csrc/lstm/cpu), ragged throughout, on torch's own threads.

It saves the gates' pre-activations in the input's dtype, (tokens, D * 4H) in an order of its own, and the cell states
in float32, (tokens, D * H).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penstock.kernels import compiled
from penstock.kernels.compiled import address
from penstock.kernels.lstm.protocol import (
    InputGrads,
    LayerInputs,
    LayerOutputs,
    LayerWeights,
    OutputGrads,
    saved_like,
    why_no_kernel,
)

__all__ = ["backward", "forward", "saved_like", "why_not"]

_CPU = torch.device("cpu")  # made once: torch reads the name at each call

native: Any = getattr(compiled.native, "lstm_cpu", None)

FUSES = True

# smaller tensors come from torch's allocator: a kept piece of memory is worth its bookkeeping from about here
_POOLED_BYTES = 1 << 20

# a forward pass of fewer operations takes longer on several threads than on one (measured on two cores)
worth_threads = 12_000_000


def why_not(**facts: Any) -> str | None:
    """None if this backend can serve such a call, else the reason."""
    return why_no_kernel("cpu", (torch.float32, torch.bfloat16), **facts)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor; a large one lies in the kept workspace and goes back there when it dies."""
    size = math.prod(shape) * dtype.itemsize
    if size < _POOLED_BYTES:
        return torch.empty(*shape, dtype=dtype, device=_CPU)
    return torch.frombuffer(native.Buffer(size), dtype=dtype).view(shape)


def pack(weights: LayerWeights, quantised: bool = False) -> Any:
    """One layer's weights as `forward` takes them packed, by the instruction set of now; in int8 if quantised."""
    kinds = _contiguous(weights)
    return compiled.call(
        native.pack,
        {
            "dtype": _name(weights.w_ih[0].dtype),
            "input_size": weights.input_size,
            "hidden_size": weights.hidden_size,
            "weights": _addresses(kinds),
            "quantised": quantised,
        },
    )


@dataclass(frozen=True)
class WithPacked:
    """This backend on weights that `pack` returned; of the tensors in their place it reads the shapes alone."""

    packed: Any
    FUSES = True

    def forward(self, inputs: LayerInputs, return_cells: bool, save: bool) -> LayerOutputs:
        return forward(inputs, return_cells, save, self.packed)


def forward(inputs: LayerInputs, return_cells: bool, save: bool, packed: Any = None) -> LayerOutputs:
    call = _Call(inputs, packed is not None)
    tokens, batch, directions, hidden = call.tokens, inputs.batch_size, call.directions, call.hidden
    dtype, pool = inputs.dtype, inputs.pool
    # pooled as it arises, y is only kept for the gradient of W_hh
    y = empty((tokens, directions * hidden), dtype) if save or not pool else None
    h_n = torch.empty(directions, batch, hidden, dtype=dtype, device=_CPU)
    c_n = torch.empty(directions, batch, hidden, dtype=torch.float32, device=_CPU)
    gates = empty((tokens, directions * 4 * hidden), dtype) if save else None
    c = empty((tokens, directions * hidden), torch.float32) if save or return_cells else None
    pooled = h_n.new_empty(batch, directions * hidden) if pool else None
    maximum = h_n.new_empty(batch, directions * hidden, dtype=torch.int32) if pool == "max" and save else None
    native.forward(
        **call.arguments,
        packed=packed,
        y=address(y),
        h_n=h_n.data_ptr(),
        c_n=c_n.data_ptr(),
        gates=address(gates),
        c=address(c),
        pooled=address(pooled),
        maximum=address(maximum),
    )
    saved = [tensor for tensor in (gates, c, y if pool else None, maximum) if tensor is not None] if save else []
    cells = c_n.new_empty(0)
    if return_cells and c is not None:
        cells = c.clone() if save else c  # an operation's results must not share memory
    return LayerOutputs(h_n.new_empty(0) if pool or y is None else y, h_n, c_n, cells, saved, pooled)


def backward(
    grads: OutputGrads, inputs: LayerInputs, y: Tensor, saved: list[Tensor], need_x: bool, need_weights: bool
) -> InputGrads:
    call = _Call(inputs)
    gates, c, *of_pool = saved
    if inputs.pool:
        y = of_pool[0]
    dy, dh_n, dc_n, dc, dpooled = (None if grad is None else grad.contiguous() for grad in grads)
    dx = empty(tuple(inputs.x.shape), inputs.x.dtype) if need_x else None
    dw_ih, dw_hh, db = (
        [weight.new_empty(weight.shape) for weight in kind] if need_weights else []
        for kind in (inputs.weights.w_ih, inputs.weights.w_hh, inputs.weights.b_ih)
    )
    dh0, dc0 = (None if state is None else state.new_empty(state.shape) for state in call.states)
    bias = [grad.data_ptr() for grad in db] or [0] * len(dw_ih)
    native.backward(
        **call.arguments,
        y=y.data_ptr(),
        gates=gates.data_ptr(),
        c=c.data_ptr(),
        maximum=address(of_pool[1]) if inputs.pool == "max" else None,
        dy=address(dy),
        dpooled=address(dpooled),
        dc=address(dc),
        dh_n=address(dh_n),
        dc_n=address(dc_n),
        dx=address(dx),
        weight_gradients=[(w.data_ptr(), r.data_ptr(), b) for w, r, b in zip(dw_ih, dw_hh, bias, strict=True)],
        dh0=address(dh0),
        dc0=address(dc0),
    )
    return InputGrads(dx, dw_ih, dw_hh, db, [], dh0, dc0)


class _Call:
    """The arguments that forward and backward share, and the contiguous tensors that their addresses point into."""

    def __init__(self, inputs: LayerInputs, packed: bool = False) -> None:
        weights = inputs.weights
        self.tokens, self.directions, self.hidden = inputs.tokens, weights.directions, weights.hidden_size
        self.x, self.cu_seqlens = _dense(inputs.x), inputs.cu_seqlens.contiguous()
        self.ids = None if inputs.ids is None else inputs.ids.contiguous()
        self.weights = [] if packed else _contiguous(weights)
        self.states = [None if state is None else _dense(state) for state in (inputs.h0, inputs.c0)]
        operations = 8 * self.tokens * self.directions * self.hidden * (weights.input_size + self.hidden)
        self.arguments = {
            "isa": compiled.isa(),
            "dtype": _name(inputs.dtype),
            "tokens": self.tokens,
            "batch": inputs.batch_size,
            "input_size": weights.input_size,
            "hidden_size": self.hidden,
            "threads": torch.get_num_threads() if operations >= worth_threads else 1,
            "x": self.x.data_ptr() if self.ids is None else None,
            "embeddings": None
            if self.ids is None
            else (self.ids.data_ptr(), self.x.data_ptr(), _name(self.x.dtype), self.x.shape[0]),
            "cu_seqlens": self.cu_seqlens.data_ptr(),
            "weights": [(0, 0, 0, 0)] * self.directions if packed else _addresses(self.weights),
            "h0": address(self.states[0]),
            "c0": address(self.states[1]),
            "pool": inputs.pool,
        }


def _dense(tensor: Tensor) -> Tensor:
    """With packed weights nobody else resolves a view that negates, as torch's dispatcher does."""
    return tensor.resolve_neg().contiguous()


def _contiguous(weights: LayerWeights) -> list[list[Any]]:
    kinds = [weights.w_ih, weights.w_hh, weights.b_ih, weights.b_hh]
    return [[weight.contiguous() for weight in kind] or [None] * weights.directions for kind in kinds]


def _addresses(kinds: list[list[Any]]) -> list[tuple[int, ...]]:
    return [tuple(address(weight) or 0 for weight in each) for each in zip(*kinds, strict=True)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
