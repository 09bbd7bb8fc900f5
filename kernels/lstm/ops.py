"""The torch operations: `penstock::lstm_layer`, one layer with both directions, and its backward."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import dispatch, triton_here
from penstock.kernels.lstm import cpu, cuda, reference
from penstock.kernels.lstm import torch as torch_backend
from penstock.kernels.lstm import triton as triton_backend
from penstock.kernels.lstm.protocol import LayerInputs, LayerWeights, OutputGrads, cell_dtype
from penstock.kernels.lstm.segments import Segments
from penstock.kernels.ragged import check_cu_seqlens

dispatch.register("lstm", "cuda", cuda, cuda.why_not, cuda.available, on_request=cuda.UNVERIFIED)
dispatch.register(
    "lstm",
    "triton",
    triton_backend,
    triton_backend.why_not,
    triton_here.available,
    on_request=triton_here.UNVERIFIED,
)
dispatch.register("lstm", "cpu", cpu, cpu.why_not, cpu.available)
dispatch.register("lstm", "torch", torch_backend)
dispatch.register("lstm", "reference", reference)

_INPUTS = (
    "Tensor x, Tensor cu_seqlens, SymInt max_seqlen, "
    "Tensor[] w_ih, Tensor[] w_hh, Tensor[] b_ih, Tensor[] b_hh, Tensor[] w_hr, "
    "Tensor? h0, Tensor? c0, Tensor? zone_h, Tensor? zone_c, Tensor? resets"
)
_NUM_INPUTS = 13

torch.library.define(
    "penstock::lstm_layer",
    f"({_INPUTS}, bool return_cells, bool save, str backend)"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells, Tensor[] saved)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::lstm_layer_backward",
    "(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, "
    f"{_INPUTS}, Tensor y, Tensor[] saved, bool need_x, bool need_weights, str backend)"
    " -> (Tensor dx, Tensor[] dw_ih, Tensor[] dw_hh, Tensor[] db, Tensor[] dw_hr, Tensor dh0, Tensor dc0)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _inputs(args: tuple) -> LayerInputs:
    x, cu_seqlens, max_seqlen, *weights_and_states = args
    return LayerInputs(x, cu_seqlens, max_seqlen, LayerWeights(*weights_and_states[:5]), *weights_and_states[5:])


@torch.library.impl("penstock::lstm_layer", "default")
def _forward(*args: Any) -> Any:
    inputs = _inputs(args[:_NUM_INPUTS])
    return_cells, save, backend = args[_NUM_INPUTS:]
    check_cu_seqlens("cu_seqlens", inputs.cu_seqlens, inputs.x.shape[0], inputs.max_seqlen)
    implementation = dispatch.implementation("lstm", backend)
    with torch.autocast(inputs.x.device.type, enabled=False):
        if inputs.resets is None or implementation is reference:
            return tuple(implementation.forward(inputs, return_cells, save))
        segments = Segments.of(inputs.cu_seqlens, inputs.resets)
        out = implementation.forward(segments.split(inputs), return_cells, save)
        h_n = segments.final(out.h_n, inputs.h0, inputs.batch_size)
        c_n = segments.final(out.c_n, inputs.c0, inputs.batch_size)
        return tuple(out._replace(h_n=h_n, c_n=c_n))


@torch.library.register_fake("penstock::lstm_layer")
def _fake_forward(*args: Any) -> Any:
    inputs = _inputs(args[:_NUM_INPUTS])
    return_cells, save, backend = args[_NUM_INPUTS:]
    x, weights = inputs.x, inputs.weights
    tokens, directions, batch = x.shape[0], weights.directions, inputs.batch_size
    cell = cell_dtype(x.dtype)
    return (
        x.new_empty(tokens, directions * weights.output_size),
        x.new_empty(directions, batch, weights.output_size),
        x.new_empty(directions, batch, weights.hidden_size, dtype=cell),
        x.new_empty((tokens, directions * weights.hidden_size) if return_cells else (0,), dtype=cell),
        dispatch.implementation("lstm", backend).saved_like(inputs, return_cells) if save else [],
    )


@torch.library.impl("penstock::lstm_layer_backward", "default")
def _backward(*args: Any) -> Any:
    inputs = _inputs(args[4 : 4 + _NUM_INPUTS])
    y, saved, need_x, need_weights, backend = args[4 + _NUM_INPUTS :]
    implementation = dispatch.implementation("lstm", backend)
    grads = OutputGrads(*args[:4])
    with torch.autocast(inputs.x.device.type, enabled=False):
        if inputs.resets is None or implementation is reference:
            found = implementation.backward(grads, inputs, y, saved, need_x, need_weights)
        else:
            segments = Segments.of(inputs.cu_seqlens, inputs.resets)
            found = implementation.backward(
                segments.split_grads(grads), segments.split(inputs), y, saved, need_x, need_weights
            )
            dh0 = segments.initial_grad(found.h0, grads.h_n, inputs.batch_size)
            dc0 = segments.initial_grad(found.c0, grads.c_n, inputs.batch_size)
            found = found._replace(h0=dh0, c0=dc0)
    nothing = inputs.x.new_empty(0)
    dx, dh0, dc0 = (grad if grad is not None else nothing.clone() for grad in (found.x, found.h0, found.c0))
    return dx, found.w_ih, found.w_hh, found.bias, found.w_hr, dh0, dc0


@torch.library.register_fake("penstock::lstm_layer_backward")
def _fake_backward(*args: Any) -> Any:
    inputs = _inputs(args[4 : 4 + _NUM_INPUTS])
    _, _, need_x, need_weights, _ = args[4 + _NUM_INPUTS :]

    def like(tensor: Tensor | None, needed: bool = True) -> Tensor:
        return inputs.x.new_empty(0) if tensor is None or not needed else torch.empty_like(tensor).contiguous()

    weights = [[like(weight) for weight in kind] if need_weights else [] for kind in inputs.weights]
    w_ih, w_hh, bias, _, w_hr = weights
    return like(inputs.x, need_x), w_ih, w_hh, bias, w_hr, like(inputs.h0), like(inputs.c0)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    layer = _inputs(inputs[:_NUM_INPUTS])
    y, _, _, cells, saved = output
    ctx.backend = inputs[-1]
    ctx.max_seqlen = layer.max_seqlen
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*saved, *([] if cells.numel() else [cells]))
    ctx.counts = [len(kind) for kind in layer.weights] + [len(saved)]
    weights = [weight for kind in layer.weights for weight in kind]
    states = layer.h0, layer.c0, layer.zone_h, layer.zone_c, layer.resets
    ctx.save_for_backward(layer.x, layer.cu_seqlens, *states, y, *weights, *saved)


def _differentiate(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, dcells: Any, _: Any) -> Any:
    x, cu_seqlens, h0, c0, zone_h, zone_c, resets, y, *rest = ctx.saved_tensors
    kinds = []
    for count in ctx.counts:
        kinds.append(rest[:count])
        rest = rest[count:]
    *weights, saved = kinds
    need_x, need_weights = ctx.needs_input_grad[0], any(any(kind) for kind in ctx.needs_input_grad[3:8])
    args = (x, cu_seqlens, ctx.max_seqlen, *weights, h0, c0, zone_h, zone_c, resets)
    if torch.is_grad_enabled():  # the caller wants to differentiate once more (create_graph=True)
        found = reference.differentiate(OutputGrads(dy, dh_n, dc_n, dcells), _inputs(args))
    else:
        found = torch.ops.penstock.lstm_layer_backward(
            dy, dh_n, dc_n, dcells, *args, y, saved, need_x, need_weights, ctx.backend
        )
    dx, dw_ih, dw_hh, db, dw_hr, dh0, dc0 = found
    return (
        dx if need_x else None,
        None,
        None,
        *(
            grads if need_weights else [None] * len(kind)
            for grads, kind in zip((dw_ih, dw_hh, db, db, dw_hr), weights, strict=True)
        ),
        dh0 if h0 is not None else None,
        dc0 if c0 is not None else None,
        *[None] * 6,
    )


torch.library.register_autograd("penstock::lstm_layer", _differentiate, setup_context=_setup_context)


def lstm_layer(inputs: LayerInputs, return_cells: bool, save: bool, backend: str) -> tuple[Tensor, ...]:
    """Calls the operation: y, h_n, c_n, cells, as in LayerOutputs."""
    x, cu_seqlens, max_seqlen, weights, *states = inputs
    return torch.ops.penstock.lstm_layer(x, cu_seqlens, max_seqlen, *weights, *states, return_cells, save, backend)[:4]
