"""The torch operations: `penstock::lstm_layer`, one layer with both directions, and its backward."""

from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from penstock.kernels import dispatch, transforms, triton_support
from penstock.kernels.autocast import without_autocast
from penstock.kernels.lstm import cpu, cuda, reference
from penstock.kernels.lstm import torch as torch_backend
from penstock.kernels.lstm.protocol import (
    InputGrads,
    LayerInputs,
    LayerWeights,
    OutputGrads,
    why_no_kernel,
)
from penstock.kernels.lstm.wrappers import EmbedAndPool, SplitAtResets
from penstock.kernels.precision import accumulate_dtype
from penstock.kernels.ragged import check_cu_seqlens

dispatch.register("lstm", "cuda", cuda, cuda.why_not, cuda.available, cuda.UNVERIFIED)
dispatch.register(
    "lstm",
    "triton",
    "penstock.kernels.lstm.triton",
    partial(
        why_no_kernel, "cpu" if triton_support.INTERPRETED else "cuda", (torch.float32, torch.bfloat16, torch.float16)
    ),
)
dispatch.register("lstm", "cpu", cpu, cpu.why_not)
dispatch.register("lstm", "torch", torch_backend)
dispatch.register("lstm", "reference", reference)

# LayerInputs in a schema's words; `_flat` and `_inputs` translate
_LAYER = (
    "Tensor x, Tensor cu_seqlens, SymInt max_seqlen, "
    "Tensor[] w_ih, Tensor[] w_hh, Tensor[] b_ih, Tensor[] b_hh, Tensor[] w_hr, "
    "Tensor? h0, Tensor? c0, Tensor? zone_h, Tensor? zone_c, Tensor? resets, Tensor? ids, str pool"
)
torch.library.define(
    "penstock::lstm_layer",
    f"({_LAYER}, bool return_cells, bool save, str backend)"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells, Tensor[] saved, Tensor pooled)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::lstm_layer_backward",
    "(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor? dpooled, "
    f"{_LAYER}, Tensor y, Tensor[] saved, bool need_x, bool need_weights, str backend)"
    " -> (Tensor dx, Tensor[] dw_ih, Tensor[] dw_hh, Tensor[] db, Tensor[] dw_hr, Tensor dh0, Tensor dc0)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def lstm_layer(inputs: LayerInputs, return_cells: bool, save: bool, backend: str) -> tuple[Tensor, ...]:
    """Calls the operation: y (or, with pooling, pooled), h_n, c_n, cells, as in LayerOutputs."""
    if transforms.is_seen() or not _are_plain(inputs):
        y, h_n, c_n, cells, _, pooled = _operation(*_flat(inputs), return_cells, save, backend)
    elif transforms.wants_gradient(inputs):
        y, h_n, c_n, cells, pooled, *_ = _differentiable(inputs, (return_cells, save, backend), None)
    else:
        y, h_n, c_n, cells, _, pooled = _compute(inputs, return_cells, save, backend)
    return pooled if inputs.pool else y, h_n, c_n, cells


def packed_layer(inputs: LayerInputs, return_cells: bool, packed: Any) -> tuple[Tensor, ...]:
    """As `lstm_layer`, with weights that `cpu.pack` returned: for inference, where nobody sees torch's operations."""
    y, h_n, c_n, cells, _, pooled = _compute(inputs, return_cells, False, cpu.WithPacked(packed))
    return pooled if inputs.pool else y, h_n, c_n, cells


def _are_plain(inputs: LayerInputs) -> bool:
    """Whether no tensor is of a subclass, which watches what is called with it, without memory or a negative view."""
    x, cu_seqlens, _, weights, *rest, _ = inputs
    plain = transforms.PLAIN
    for kind in ((x, cu_seqlens, *rest), *weights):
        for each in kind:
            if each is not None and (type(each) not in plain or each.is_neg()):
                return False
    return not x.is_meta


def _flat(inputs: LayerInputs) -> tuple[Any, ...]:
    x, cu_seqlens, max_seqlen, weights, *rest = inputs
    return x, cu_seqlens, max_seqlen, *weights, *rest


def _inputs(
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    w_ih: list[Tensor],
    w_hh: list[Tensor],
    b_ih: list[Tensor],
    b_hh: list[Tensor],
    w_hr: list[Tensor],
    *rest: Any,
) -> LayerInputs:
    return LayerInputs(x, cu_seqlens, max_seqlen, LayerWeights(w_ih, w_hh, b_ih, b_hh, w_hr), *rest)


def _implementation(inputs: LayerInputs, backend: Any) -> Any:
    """The backend, or the one of that name, helped out with what it does not do itself."""
    found: Any = dispatch.implementation("lstm", backend) if isinstance(backend, str) else backend
    if inputs.resets is not None and found is not reference:
        found = SplitAtResets(found)
    if (inputs.ids is not None or inputs.pool) and not getattr(found, "FUSES", False):
        found = EmbedAndPool(found)
    return found


@torch.library.impl("penstock::lstm_layer", "default")
def _forward(*args: Any) -> tuple[Any, ...]:
    *layer, return_cells, save, backend = args
    return _compute(_inputs(*layer), return_cells, save, backend)


def _compute(inputs: LayerInputs, return_cells: bool, save: bool, backend: Any) -> tuple[Any, ...]:
    check_cu_seqlens("cu_seqlens", inputs.cu_seqlens, inputs.tokens, inputs.max_seqlen)
    with without_autocast(inputs.x.device.type):
        out = _implementation(inputs, backend).forward(inputs, return_cells, save)
    return *out[:-1], out.y.new_empty(0) if out.pooled is None else out.pooled


@torch.library.register_fake("penstock::lstm_layer")
def _fake_forward(*args: Any) -> tuple[Any, ...]:
    *layer, return_cells, save, backend = args
    inputs = _inputs(*layer)
    x, weights, tokens, batch, dtype = inputs.x, inputs.weights, inputs.tokens, inputs.batch_size, inputs.dtype
    wide = accumulate_dtype(dtype)
    directions, hidden, output = weights.directions, weights.hidden_size, weights.output_size
    return (
        x.new_empty((0,) if inputs.pool else (tokens, directions * output), dtype=dtype),
        x.new_empty(directions, batch, output, dtype=dtype),
        x.new_empty(directions, batch, hidden, dtype=wide),
        x.new_empty((tokens, directions * hidden) if return_cells else (0,), dtype=wide),
        _implementation(inputs, backend).saved_like(inputs, return_cells) if save else [],
        x.new_empty((batch, directions * output) if inputs.pool else (0,), dtype=dtype),
    )


def _plain_forward(*args: Any) -> tuple[Any, ...]:
    *layer, return_cells, _, _ = args
    inputs = _inputs(*layer)
    transforms.check_readable("cu_seqlens", inputs.cu_seqlens)
    check_cu_seqlens("cu_seqlens", inputs.cu_seqlens, inputs.tokens, inputs.max_seqlen)
    with without_autocast(inputs.x.device.type):
        y, h_n, c_n, cells = reference.lstm_layer(inputs)
    cells = cells if return_cells else cells.new_empty(0)
    y, pooled = (y.new_empty(0), y) if inputs.pool else (y, y.new_empty(0))
    return y, h_n, c_n, cells, [], pooled


@torch.library.impl("penstock::lstm_layer_backward", "default")
def _backward(dy: Any, dh_n: Any, dc_n: Any, dcells: Any, dpooled: Any, *args: Any) -> InputGrads:
    *layer, y, saved, need_x, need_weights, backend = args
    grads = OutputGrads(dy, dh_n, dc_n, dcells, dpooled)
    return _gradients(grads, _inputs(*layer), y, saved, need_x, need_weights, backend)


def _gradients(
    grads: OutputGrads,
    inputs: LayerInputs,
    y: Tensor,
    saved: list[Tensor],
    need_x: bool,
    need_weights: bool,
    backend: str,
) -> InputGrads:
    with without_autocast(inputs.x.device.type):
        found = _implementation(inputs, backend).backward(grads, inputs, y, saved, need_x, need_weights)
    return _without_none(found, inputs)


@torch.library.register_fake("penstock::lstm_layer_backward")
def _fake_backward(dy: Any, dh_n: Any, dc_n: Any, dcells: Any, dpooled: Any, *args: Any) -> InputGrads:
    *layer, _, _, need_x, need_weights, _ = args
    inputs = _inputs(*layer)

    def like(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor).contiguous()

    of = inputs.x if need_x else None, inputs.h0, inputs.c0
    x, h0, c0 = (None if tensor is None else like(tensor) for tensor in of)
    w_ih, w_hh, bias, _, w_hr = ([like(weight) for weight in kind if need_weights] for kind in inputs.weights)
    return _without_none(InputGrads(x, w_ih, w_hh, bias, w_hr, h0, c0), inputs)


def _plain_backward(dy: Any, dh_n: Any, dc_n: Any, dcells: Any, dpooled: Any, *args: Any) -> InputGrads:
    *layer, _, _, need_x, need_weights, _ = args
    inputs, grads = _inputs(*layer), OutputGrads(dy, dh_n, dc_n, dcells, dpooled)
    with without_autocast(inputs.x.device.type):
        found = reference.gradients(grads, inputs)
    if not need_x:
        found = found._replace(x=None)
    if not need_weights:
        found = found._replace(w_ih=[], w_hh=[], bias=[], w_hr=[])
    return _without_none(found, inputs)


def _without_none(found: InputGrads, inputs: LayerInputs) -> InputGrads:
    """An operation returns tensors: an empty one each where there is nothing."""
    x, h0, c0 = (inputs.x.new_empty(0) if grad is None else grad for grad in (found.x, found.h0, found.c0))
    return InputGrads(x, found.w_ih, found.w_hh, found.bias, found.w_hr, h0, c0)


class _Layer(torch.autograd.Function):
    """The operation with its gradient: of x, h0, c0 and the weights, which it takes once more beside `inputs`.

    With `args`, all of the operation's arguments, it goes through torch's dispatcher.

    torch.library.register_autograd would do, but what it does for lists of tensors takes longer than a small layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: LayerInputs,
        options: tuple[bool, bool, str],
        args: tuple[Any, ...] | None,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        if args is None:
            y, h_n, c_n, cells, saved, pooled = _compute(inputs, *options)
        else:
            y, h_n, c_n, cells, saved, pooled = transforms.below_autograd(torch.ops.penstock.lstm_layer.default, *args)
        ctx.max_seqlen, ctx.pool, ctx.backend = inputs.max_seqlen, inputs.pool, options[-1]
        ctx.set_materialize_grads(False)
        absent = [y if inputs.pool else pooled, *([] if cells.numel() else [cells])]
        ctx.mark_non_differentiable(*saved, *absent)
        ctx.counts = [len(kind) for kind in inputs.weights] + [len(saved)]
        rest = inputs.cu_seqlens, inputs.zone_h, inputs.zone_c, inputs.resets, inputs.ids, y
        ctx.save_for_backward(x, h0, c0, *rest, *weights, *saved)
        return y, h_n, c_n, cells, pooled, *saved

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, dcells: Any, dpooled: Any, *_: Any) -> Any:
        x, h0, c0, cu_seqlens, zone_h, zone_c, resets, ids, y, *lists = ctx.saved_tensors
        each = iter(lists)
        *weights, saved = [list(islice(each, count)) for count in ctx.counts]
        layer = (x, cu_seqlens, ctx.max_seqlen, *weights, h0, c0, zone_h, zone_c, resets, ids, ctx.pool)
        _, _, _, need_x, _, _, *need_each_weight = ctx.needs_input_grad
        need_weights = any(need_each_weight)
        grads = OutputGrads(dy, dh_n, dc_n, dcells, dpooled)
        if torch.is_grad_enabled() or transforms.is_batched(*grads):  # to be differentiated again, or is_grads_batched
            with torch.enable_grad(), without_autocast(x.device.type):
                found = reference.differentiate(grads, _inputs(*layer))
        elif (
            not transforms.is_seen()
            and _are_plain(inputs := _inputs(*layer))
            and all(g is None or (type(g) in transforms.PLAIN and not g.is_neg()) for g in grads)
        ):
            found = _gradients(grads, inputs, y, saved, need_x, need_weights, ctx.backend)
        else:
            operation = torch.ops.penstock.lstm_layer_backward.default
            options = need_x, need_weights, ctx.backend
            found = InputGrads(*transforms.call(operation, *grads, *layer, y, saved, *options))
        of_weights: list[Tensor | None] = [None] * len(need_each_weight)
        if need_weights:
            # whoever changes one gradient in place must not change the other
            biases = [*found.bias, *(bias.clone() for bias in found.bias)] if LayerWeights(*weights).b_ih else []
            of_weights = [*found.w_ih, *found.w_hh, *biases, *found.w_hr]
        dx, dh0, dc0 = found.x if need_x else None, found.h0, found.c0
        return None, None, None, dx, None if h0 is None else dh0, None if c0 is None else dc0, *of_weights


def _record(*args: Any) -> tuple[Any, ...]:
    *layer, return_cells, save, backend = args
    y, h_n, c_n, cells, pooled, *saved = _differentiable(_inputs(*layer), (return_cells, save, backend), args)
    return y, h_n, c_n, cells, saved, pooled


def _differentiable(
    inputs: LayerInputs, options: tuple[bool, bool, str], args: tuple[Any, ...] | None
) -> tuple[Tensor, ...]:
    weights = [weight for kind in inputs.weights for weight in kind]
    apply = _apply_directly if args is None else _Layer.apply
    return apply(inputs, options, args, inputs.x, inputs.h0, inputs.c0, *weights)


# without the frame in Python that unwraps what torch.func has left, of which nothing is active then
_apply_directly = super(torch.autograd.Function, _Layer).apply


_operation = transforms.register("lstm_layer", _plain_forward, record=_record)
transforms.register("lstm_layer_backward", _plain_backward)
