"""The torch operations: `penstock::lstm_layer`, one layer with both directions, and its backward."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import dispatch, transforms, triton_support
from penstock.kernels.autocast import without_autocast
from penstock.kernels.lstm import cpu, cuda, reference
from penstock.kernels.lstm import torch as torch_backend
from penstock.kernels.lstm import triton as triton_backend
from penstock.kernels.lstm.composed import Composed
from penstock.kernels.lstm.protocol import Implementation, LayerInputs, LayerWeights, OutputGrads, cell_dtype
from penstock.kernels.lstm.segments import SplitAtResets
from penstock.kernels.ragged import check_cu_seqlens

dispatch.register("lstm", "cuda", cuda, cuda.why_not, cuda.available, on_request=cuda.UNVERIFIED)
dispatch.register(
    "lstm",
    "triton",
    triton_backend,
    triton_backend.why_not,
    triton_support.available,
    on_request=triton_support.UNVERIFIED,
)
dispatch.register("lstm", "cpu", cpu, cpu.why_not, cpu.available)
dispatch.register("lstm", "torch", torch_backend)
dispatch.register("lstm", "reference", reference)

_INPUTS = (
    "Tensor x, Tensor cu_seqlens, SymInt max_seqlen, "
    "Tensor[] w_ih, Tensor[] w_hh, Tensor[] b_ih, Tensor[] b_hh, Tensor[] w_hr, "
    "Tensor? h0, Tensor? c0, Tensor? zone_h, Tensor? zone_c, Tensor? resets, Tensor? ids, str pool"
)
_NUM_INPUTS, _NUM_GRADS = 15, 5

torch.library.define(
    "penstock::lstm_layer",
    f"({_INPUTS}, bool return_cells, bool save, str backend)"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells, Tensor[] saved, Tensor pooled)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::lstm_layer_backward",
    "(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor? dpooled, "
    f"{_INPUTS}, Tensor y, Tensor[] saved, bool need_x, bool need_weights, str backend)"
    " -> (Tensor dx, Tensor[] dw_ih, Tensor[] dw_hh, Tensor[] db, Tensor[] dw_hr, Tensor dh0, Tensor dc0)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _inputs(args: tuple) -> LayerInputs:
    x, cu_seqlens, max_seqlen, *weights_and_states = args
    return LayerInputs(x, cu_seqlens, max_seqlen, LayerWeights(*weights_and_states[:5]), *weights_and_states[5:])


def _implementation(inputs: LayerInputs, backend: str) -> Implementation:
    """The backend, helped out with what it does not do itself."""
    found = dispatch.implementation("lstm", backend)
    if inputs.resets is not None and found is not reference:
        found = SplitAtResets(found)
    if (inputs.ids is not None or inputs.pool) and not getattr(found, "FUSES", False):
        found = Composed(found)
    return found


@torch.library.impl("penstock::lstm_layer", "default")
def _forward(*args: Any) -> Any:
    inputs = _inputs(args[:_NUM_INPUTS])
    return_cells, save, backend = args[_NUM_INPUTS:]
    check_cu_seqlens("cu_seqlens", inputs.cu_seqlens, inputs.tokens, inputs.max_seqlen)
    with without_autocast(inputs.x.device.type):
        out = _implementation(inputs, backend).forward(inputs, return_cells, save)
    return *out[:-1], out.y.new_empty(0) if out.pooled is None else out.pooled


@torch.library.register_fake("penstock::lstm_layer")
def _fake_forward(*args: Any) -> Any:
    inputs = _inputs(args[:_NUM_INPUTS])
    return_cells, save, backend = args[_NUM_INPUTS:]
    x, weights = inputs.x, inputs.weights
    tokens, directions, batch, dtype = inputs.tokens, weights.directions, inputs.batch_size, inputs.dtype
    width, cell = directions * weights.output_size, cell_dtype(dtype)
    return (
        x.new_empty((0,) if inputs.pool else (tokens, width), dtype=dtype),
        x.new_empty(directions, batch, weights.output_size, dtype=dtype),
        x.new_empty(directions, batch, weights.hidden_size, dtype=cell),
        x.new_empty((tokens, directions * weights.hidden_size) if return_cells else (0,), dtype=cell),
        _implementation(inputs, backend).saved_like(inputs, return_cells) if save else [],
        x.new_empty((batch, width) if inputs.pool else (0,), dtype=dtype),
    )


@torch.library.impl("penstock::lstm_layer_backward", "default")
def _backward(*args: Any) -> Any:
    inputs = _inputs(args[_NUM_GRADS : _NUM_GRADS + _NUM_INPUTS])
    y, saved, need_x, need_weights, backend = args[_NUM_GRADS + _NUM_INPUTS :]
    grads = OutputGrads(*args[:_NUM_GRADS])
    with without_autocast(inputs.x.device.type):
        found = _implementation(inputs, backend).backward(grads, inputs, y, saved, need_x, need_weights)
    nothing = inputs.x.new_empty(0)
    dx, dh0, dc0 = (grad if grad is not None else nothing.clone() for grad in (found.x, found.h0, found.c0))
    return dx, found.w_ih, found.w_hh, found.bias, found.w_hr, dh0, dc0


@torch.library.register_fake("penstock::lstm_layer_backward")
def _fake_backward(*args: Any) -> Any:
    inputs = _inputs(args[_NUM_GRADS : _NUM_GRADS + _NUM_INPUTS])
    _, _, need_x, need_weights, _ = args[_NUM_GRADS + _NUM_INPUTS :]

    def like(tensor: Tensor | None, needed: bool = True) -> Tensor:
        return inputs.x.new_empty(0) if tensor is None or not needed else torch.empty_like(tensor).contiguous()

    weights = [[like(weight) for weight in kind] if need_weights else [] for kind in inputs.weights]
    w_ih, w_hh, bias, _, w_hr = weights
    return like(inputs.x, need_x), w_ih, w_hh, bias, w_hr, like(inputs.h0), like(inputs.c0)


class _Layer(torch.autograd.Function):
    """The operation with its gradient: of x, h0, c0 and the weights, which it takes once more beside `args`.

    torch.library.register_autograd would do, but what it does for lists of tensors takes longer than a small layer.
    """

    @staticmethod
    def forward(ctx: Any, layer: LayerInputs, args: tuple, *differentiable: Tensor | None) -> tuple[Tensor, ...]:
        y, h_n, c_n, cells, saved, pooled = transforms.below_autograd(torch.ops.penstock.lstm_layer.default, *args)
        ctx.backend = args[-1]
        ctx.max_seqlen, ctx.pool = layer.max_seqlen, layer.pool
        ctx.set_materialize_grads(False)
        absent = [y if layer.pool else pooled, *([] if cells.numel() else [cells])]
        ctx.mark_non_differentiable(*saved, *absent)
        ctx.counts = [len(kind) for kind in layer.weights] + [len(saved)]
        weights = [weight for kind in layer.weights for weight in kind]
        states = layer.h0, layer.c0, layer.zone_h, layer.zone_c, layer.resets, layer.ids
        ctx.save_for_backward(layer.x, layer.cu_seqlens, *states, y, *weights, *saved)
        return y, h_n, c_n, cells, pooled, *saved

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, dcells: Any, dpooled: Any, *_: Any) -> Any:
        x, cu_seqlens, h0, c0, zone_h, zone_c, resets, ids, y, *rest = ctx.saved_tensors
        kinds = []
        for count in ctx.counts:
            kinds.append(rest[:count])
            rest = rest[count:]
        *weights, saved = kinds
        _, _, need_x, _, _, *need_each_weight = ctx.needs_input_grad
        need_weights = any(need_each_weight)
        args = (x, cu_seqlens, ctx.max_seqlen, *weights, h0, c0, zone_h, zone_c, resets, ids, ctx.pool)
        grads = OutputGrads(dy, dh_n, dc_n, dcells, dpooled)
        if torch.is_grad_enabled() or transforms.is_batched(*grads):  # to be differentiated again, or is_grads_batched
            with torch.enable_grad():
                found = reference.differentiate(grads, _inputs(args))
        else:
            found = transforms.call(
                torch.ops.penstock.lstm_layer_backward.default,
                *grads,
                *args,
                y,
                saved,
                need_x,
                need_weights,
                ctx.backend,
            )
        dx, dw_ih, dw_hh, db, dw_hr, dh0, dc0 = found
        of_weights: list[Tensor | None] = [None] * len(need_each_weight)
        if need_weights:
            of_weights = [*dw_ih, *dw_hh, *(db if weights[2] else []), *(db if weights[3] else []), *dw_hr]
        states = dh0 if h0 is not None else None, dc0 if c0 is not None else None
        return None, None, dx if need_x else None, *states, *of_weights


def _recorded(*args: Any) -> Any:
    layer = _inputs(args[:_NUM_INPUTS])
    differentiable = [layer.x, layer.h0, layer.c0, *(weight for kind in layer.weights for weight in kind)]
    y, h_n, c_n, cells, pooled, *saved = _Layer.apply(layer, args, *differentiable)
    return y, h_n, c_n, cells, saved, pooled


def _plain(*args: Any) -> Any:
    inputs = _inputs(args[:_NUM_INPUTS])
    return_cells, *_ = args[_NUM_INPUTS:]
    transforms.check_readable("cu_seqlens", inputs.cu_seqlens)
    check_cu_seqlens("cu_seqlens", inputs.cu_seqlens, inputs.tokens, inputs.max_seqlen)
    with without_autocast(inputs.x.device.type):
        y, h_n, c_n, cells = reference.lstm_layer(inputs)
    cells = cells if return_cells else cells.new_empty(0)
    y, pooled = (y.new_empty(0), y) if inputs.pool else (y, y.new_empty(0))
    return y, h_n, c_n, cells, [], pooled


def _plain_backward(*args: Any) -> Any:
    inputs = _inputs(args[_NUM_GRADS : _NUM_GRADS + _NUM_INPUTS])
    _, _, need_x, need_weights, _ = args[_NUM_GRADS + _NUM_INPUTS :]
    with without_autocast(inputs.x.device.type):
        found = reference.gradients(OutputGrads(*args[:_NUM_GRADS]), inputs)
    nothing = inputs.x.new_empty(0)
    dx, dh0, dc0 = (nothing.clone() if grad is None else grad for grad in (found.x, found.h0, found.c0))
    weights = [kind if need_weights else [] for kind in (found.w_ih, found.w_hh, found.bias, found.w_hr)]
    return dx if need_x else nothing.clone(), *weights, dh0, dc0


_operation = transforms.register("lstm_layer", _plain, record=_recorded)
transforms.register("lstm_layer_backward", _plain_backward)


def lstm_layer(inputs: LayerInputs, return_cells: bool, save: bool, backend: str) -> tuple[Tensor, ...]:
    """Calls the operation: y (or, with pooling, pooled), h_n, c_n, cells, as in LayerOutputs."""
    x, cu_seqlens, max_seqlen, weights, *rest = inputs
    y, h_n, c_n, cells, _, pooled = _operation(x, cu_seqlens, max_seqlen, *weights, *rest, return_cells, save, backend)
    return pooled if inputs.pool else y, h_n, c_n, cells
