"""One bidirectional layer in bf16 against cuDNN's, packed and padded, in fp16 and bf16; input projection included."""

import contextlib
from functools import partial
from typing import Any

import torch
from torch import Tensor

from penstock.benchmarks.gpu import backends, floors
from penstock.benchmarks.gpu.cells import checked, each, in_turn, survive
from penstock.benchmarks.gpu.context import Context, WrongResultError, emit, key, reason
from penstock.benchmarks.gpu.lstm_layer import LONGEST, Contestant, Layer, draw_lengths
from penstock.benchmarks.gpu.timing import graphed, kernels_of

# What is most wanted; what else the targets name is another part, behind attention and training.
FIRST = [(256, 128), (512, 128)]
MORE = [(256, 512), (256, 32), (512, 512), (512, 32), (1024, 128), (1024, 512), (1024, 32)]
GRAPHS = [(256, 32), (512, 32), (1024, 32)]
SMOKE_FIRST, SMOKE_MORE = [(16, 3)], [(16, 2)]
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
BOUND_OUTPUT, BOUND_GRADIENT = 1e-2, 2e-2  # of ||y - r|| / ||r|| in bf16, against float64


def run(context: Context) -> None:
    grid = SMOKE_FIRST if context.smoke else FIRST
    cells = [{"kind": "lstm", "hidden": hidden, "batch": batch} for hidden, batch in grid]
    each(context, cells, partial(_cell, context), spare=1)
    each(context, [cells[0] | {"kind": "lstm kernels"}], partial(_profile, context))


def more(context: Context) -> None:
    grid, graphs = (SMOKE_MORE, SMOKE_MORE) if context.smoke else (MORE, GRAPHS)
    cells = [{"kind": "lstm", "hidden": hidden, "batch": batch} for hidden, batch in grid]
    each(context, cells, partial(_cell, context), spare=2)
    cells = [{"kind": "lstm graph", "hidden": hidden, "batch": batch} for hidden, batch in graphs]
    each(context, cells, partial(_graphs, context))


def _layer(context: Context, hidden: int, batch: int) -> Layer:
    lengths = draw_lengths(batch, 5 if context.smoke else LONGEST)
    return Layer(lengths, hidden, hidden, 2, context.device)


def _ours(context: Context, layer: Layer) -> tuple[dict[str, Contestant], dict[str, Any]]:
    """Ours that may be timed, and {name: {"why": ...}} of the others."""
    chosen, why = {}, {}
    for name, unfit in backends.contestants("lstm", context).items():
        if unfit:
            why[f"penstock {name}"] = {"why": unfit}
        else:
            chosen[f"penstock {name}"] = layer.penstock(name, torch.bfloat16)
    return chosen, why


def _theirs(layer: Layer) -> dict[str, Contestant]:
    out = {f"cudnn packed {name}": layer.packed(dtype) for name, dtype in HALVES.items()}
    return out | {f"cudnn padded {name}": layer.padded(dtype) for name, dtype in HALVES.items()}


def _cell(context: Context, hidden: int, batch: int, seconds: float) -> None:
    layer = _layer(context, hidden, batch)
    ours, unfit = _ours(context, layer)
    peers = _theirs(layer)
    context.at("lstm/the float64 truth")
    truth = dict(layer.packed(torch.float64).results())
    ours, errors, wrong = checked(context, "lstm", ours, partial(check, truth=truth))
    why = unfit | wrong
    with contextlib.suppress(RuntimeError):  # a cuDNN that has no bf16: the timing says why
        errors["cudnn packed bf16"] = error(peers["cudnn packed bf16"], truth)
    del truth
    row: dict[str, Any] = {"hidden": hidden, "batch": batch, "tokens": layer.tokens, "steps": max(layer.lengths)}
    for phase in floors.PHASES:
        calls = {name: contestant.calls()[phase] for name, contestant in (ours | peers).items()}
        timed = in_turn(context, "lstm", calls, seconds / len(floors.PHASES)) | why
        work = floors.lstm_layer(phase, layer.tokens, batch, hidden, hidden, 2, 2)
        floor = work.seconds(context.rate("bf16"), context.rate("bytes"))
        for name, figures in timed.items():
            if "ms" in figures:
                figures["us_per_step"] = 1e3 * figures["ms"] / max(layer.lengths)
                figures["of_floor"] = 1e3 * floor / figures["ms"]
            if name in errors:
                figures["error"] = errors[name]
        emit(kind="lstm", **row, phase=phase, floor_ms=1e3 * floor, contestants=timed)


def error(contestant: Contestant, truth: dict[str, Tensor]) -> dict[str, float]:
    """||found - true|| / ||true|| of y and every gradient; NaN where either has one."""
    found = dict(contestant.results())
    return {name: float((found[name].double() - true).norm() / true.norm()) for name, true in truth.items()}


def check(name: str, contestant: Contestant, truth: dict[str, Tensor]) -> dict[str, float]:
    """The errors of one of ours.

    Raises:
        WrongResultError: one of them is out of bounds, at the very shape that would be timed.
    """
    errors = error(contestant, truth)
    for what, size in errors.items():
        if not size <= (BOUND_OUTPUT if what == "y" else BOUND_GRADIENT):
            raise WrongResultError(f"{name}, batch of {len(contestant.x)} tokens: {what} has an error of {size:.2e}")
    return errors


def _graphs(context: Context, hidden: int, batch: int, seconds: float) -> None:
    """Inference replayed from a CUDA graph: small batches without the host's time."""
    layer = _layer(context, hidden, batch)
    calls, why = {}, {}
    for name, contestant in (_ours(context, layer)[0] | _theirs(layer)).items():
        context.at(key("lstm", name))
        try:
            call = contestant.calls()["inference"]
            calls[name] = call if context.smoke else graphed(call)
        except Exception as failure:
            why[name] = {"why": f"not captured: {reason(failure)}"}
            survive(context)
    timed = in_turn(context, "lstm", calls, seconds) | why
    for figures in timed.values():
        if "ms" in figures:
            figures["us_per_step"] = 1e3 * figures["ms"] / max(layer.lengths)
    emit(kind="lstm graph", hidden=hidden, batch=batch, phase="inference", contestants=timed)


def _profile(context: Context, hidden: int, batch: int, seconds: float) -> None:
    """Where a training step's time goes, kernel by kernel."""
    layer = _layer(context, hidden, batch)
    for name, contestant in (_ours(context, layer)[0] | _theirs(layer)).items():
        if context.left() > 1:
            row = {"kind": "lstm kernels", "hidden": hidden, "batch": batch, "contestant": name}
            context.at(key("lstm", name))
            try:
                emit(**row, kernels=kernels_of(contestant.gradients))
            except RuntimeError as failure:
                emit(**row, why=reason(failure))
                survive(context)
