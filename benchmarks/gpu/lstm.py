"""One bidirectional layer in bf16 against cuDNN's, packed and padded, in fp16 and bf16; input projection included."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from penstock.benchmarks.gpu import backends, floors
from penstock.benchmarks.gpu.context import Context, WrongResultError, emit, reason
from penstock.benchmarks.gpu.lstm_layer import LONGEST, Contestant, Layer, draw_lengths
from penstock.benchmarks.gpu.timing import compare, graphed, kernels_of

# The cells most wanted come first, should the time run out.
GRID = [(256, 128), (512, 128), (256, 512), (256, 32), (512, 512), (512, 32), (1024, 128), (1024, 512), (1024, 32)]
SMOKE_GRID = [(16, 3)]
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
BOUND_OUTPUT, BOUND_GRADIENT = 1e-2, 2e-2  # of ||y - r|| / ||r|| in bf16, against float64


def run(context: Context) -> None:
    grid = SMOKE_GRID if context.smoke else GRID
    for place, (hidden, batch) in enumerate(grid):
        if context.left() < 3:
            emit(kind="lstm", hidden=hidden, batch=batch, why="not run: the time was up")
            continue
        _cell(context, hidden, batch, context.share(len(grid) - place + 2))
    for hidden, batch in grid:
        if (batch == 32 or context.smoke) and context.left() > 3:
            _graphs(context, hidden, batch, context.share(3))
    hidden, batch = grid[0]
    if context.left() > 3:
        _profile(context, hidden, batch)


def _layer(context: Context, hidden: int, batch: int) -> Layer:
    lengths = draw_lengths(batch, 5 if context.smoke else LONGEST)
    return Layer(lengths, hidden, hidden, 2, context.device)


def _ours(context: Context, layer: Layer) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Ours that may be timed, and why the others may not."""
    chosen, out = {}, {}
    for name, why in backends.contestants("lstm", context).items():
        contestant = layer.penstock(name, torch.bfloat16)
        if why is None:
            try:
                contestant.forward()
            except RuntimeError as error:  # the dispatcher: this backend cannot serve such a call
                why = reason(error)
        if why is None:
            chosen[f"penstock {name}"] = contestant
        else:
            out[f"penstock {name}"] = why
    return chosen, out


def _theirs(layer: Layer) -> dict[str, Contestant]:
    out = {f"cudnn packed {name}": layer.packed(dtype) for name, dtype in HALVES.items()}
    return out | {f"cudnn padded {name}": layer.padded(dtype) for name, dtype in HALVES.items()}


def _cell(context: Context, hidden: int, batch: int, seconds: float) -> None:
    layer = _layer(context, hidden, batch)
    ours, why = _ours(context, layer)
    peers = _theirs(layer)
    truth = dict(layer.packed(torch.float64).results())
    errors = {name: check(name, contestant, truth) for name, contestant in ours.items()}
    with contextlib.suppress(RuntimeError):  # a cuDNN that has no bf16: the timing says why
        errors["cudnn packed bf16"] = error(peers["cudnn packed bf16"], truth)
    del truth
    row: dict[str, Any] = {"hidden": hidden, "batch": batch, "tokens": layer.tokens, "steps": max(layer.lengths)}
    for phase in floors.PHASES:
        calls = {name: contestant.calls()[phase] for name, contestant in (ours | peers).items()}
        timed = compare(context.device, calls, seconds / len(floors.PHASES), context.smoke)
        timed |= {name: {"why": reason_} for name, reason_ in why.items()}
        work = floors.lstm_layer(phase, layer.tokens, batch, hidden, hidden, 2, 2)
        floor = work.seconds(context.rates["bf16"], context.rates["bytes"])
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
        try:
            call = contestant.calls()["inference"]
            calls[name] = call if context.smoke else graphed(call)
        except Exception as failure:
            why[name] = {"why": f"not captured: {reason(failure)}"}
            torch.cuda.synchronize()
    timed = compare(context.device, calls, seconds, context.smoke)
    for figures in timed.values():
        if "ms" in figures:
            figures["us_per_step"] = 1e3 * figures["ms"] / max(layer.lengths)
    emit(kind="lstm graph", hidden=hidden, batch=batch, phase="inference", contestants=timed | why)


def _profile(context: Context, hidden: int, batch: int) -> None:
    """Where a training step's time goes, kernel by kernel."""
    layer = _layer(context, hidden, batch)
    for name, contestant in (_ours(context, layer)[0] | _theirs(layer)).items():
        if context.left() > 1:
            row = {"kind": "lstm kernels", "hidden": hidden, "batch": batch, "contestant": name}
            try:
                emit(**row, kernels=kernels_of(contestant.gradients))
            except RuntimeError as failure:
                emit(**row, why=reason(failure))
