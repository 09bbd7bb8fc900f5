"""The LSTM's cell alone, as one operation: what remains of a step once its products are made."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import checks, dispatch, transforms
from penstock.kernels.precision import accumulate_dtype

torch.library.define(
    "penstock::lstm_cell",
    "(Tensor gates, Tensor c, str backend) -> (Tensor h, Tensor c_next)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::lstm_cell_backward",
    "(Tensor? dh, Tensor? dc_next, Tensor gates, Tensor c, str backend) -> (Tensor dgates, Tensor dc)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def lstm_cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the cell: c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c').

    Args:
        gates: (N, 4H), the pre-activations i, f, g, o, biases included.
        c: (N, H), the cell state, float32 (float64 if gates is); another dtype is converted.

    Returns:
        h' (N, H) in gates' dtype, and c' (N, H) in the cell state's.

    Raises:
        ValueError: the shapes or devices disagree. TypeError: gates or c is not floating point.
    """
    checks.floating("gates", gates)
    checks.floating("c", c)
    if c.ndim != 2 or gates.shape != (c.shape[0], 4 * c.shape[1]):
        raise ValueError(f"gates must be (N, 4H) for c of (N, H), got {tuple(gates.shape)} and {tuple(c.shape)}")
    if c.device != gates.device:
        raise ValueError(f"c is on {c.device}, gates on {gates.device}")
    backend = dispatch.choose("lstm_cell", device_type=gates.device.type, dtype=gates.dtype, hidden_size=c.shape[1])
    return _operation(gates, c.to(accumulate_dtype(gates.dtype)), backend)


class PlainCell:
    """The reference, differentiable to any order, and the backend that runs everywhere."""

    @staticmethod
    def forward(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = gates.to(c.dtype).chunk(4, dim=1)
        c_next = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return (torch.sigmoid(o) * torch.tanh(c_next)).to(gates.dtype), c_next

    @staticmethod
    def backward(dh: Tensor | None, dc_next: Tensor | None, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = gates.to(c.dtype).chunk(4, dim=1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        tanh_c = torch.tanh(f * c + i * g)
        dh = torch.zeros_like(c) if dh is None else dh.to(c.dtype)
        dc = dh * o * (1 - tanh_c * tanh_c)
        dc = dc if dc_next is None else dc + dc_next
        of_gates = (dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * tanh_c * o * (1 - o))
        return torch.cat(of_gates, dim=1).to(gates.dtype), dc * f


dispatch.register("lstm_cell", "triton", "penstock.kernels.lstm.triton:Cell")
dispatch.register("lstm_cell", "torch", PlainCell)
dispatch.register("lstm_cell", "reference", PlainCell)


@torch.library.impl("penstock::lstm_cell", "default")
def _forward(gates: Tensor, c: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return dispatch.implementation("lstm_cell", backend).forward(gates.contiguous(), c.contiguous())


@torch.library.register_fake("penstock::lstm_cell")
def _fake_forward(gates: Tensor, c: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return gates.new_empty(c.shape), c.new_empty(c.shape)


@torch.library.impl("penstock::lstm_cell_backward", "default")
def _backward(
    dh: Tensor | None, dc_next: Tensor | None, gates: Tensor, c: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    dense = (None if each is None else each.contiguous() for each in (dh, dc_next, gates, c))
    return dispatch.implementation("lstm_cell", backend).backward(*dense)


@torch.library.register_fake("penstock::lstm_cell_backward")
def _fake_backward(
    dh: Tensor | None, dc_next: Tensor | None, gates: Tensor, c: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return gates.new_empty(gates.shape), c.new_empty(c.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    gates, c, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(gates, c)


def _differentiate(ctx: Any, dh: Tensor | None, dc_next: Tensor | None) -> tuple[Tensor, Tensor, None]:
    gates, c = ctx.saved_tensors
    return *transforms.call(torch.ops.penstock.lstm_cell_backward.default, dh, dc_next, gates, c, ctx.backend), None


_operation = transforms.register(
    "lstm_cell", lambda gates, c, backend: PlainCell.forward(gates, c), _setup_context, _differentiate
)
transforms.register("lstm_cell_backward", lambda *arguments: PlainCell.backward(*arguments[:-1]))
