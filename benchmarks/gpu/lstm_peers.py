"""FlashRNN and haste, from checkouts: one direction and padded sequences, which is what they have.

So that like is compared with like, cuDNN runs the same: one direction, all sequences of one length. Each part ends in
a clear line where the peer does not build or does not give the right result here.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from penstock.benchmarks.gpu import backends
from penstock.benchmarks.gpu.cells import in_turn
from penstock.benchmarks.gpu.context import Context, emit, reason
from penstock.benchmarks.gpu.lstm_layer import LONGEST, Contestant, Layer

GRID = [(256, 32), (512, 32), (1024, 32), (256, 128), (512, 128), (1024, 128)]
SMOKE_GRID = [(16, 3)]

Build = Callable[[Any, nn.LSTM, Tensor, int], tuple[nn.Module, Callable[[], Tensor]]]


def flashrnn(context: Context) -> None:
    """Its `cuda_fused` backend, compiled by itself for every shape when first called: minutes."""
    _run(context, "flashrnn", "flashrnn", torch.bfloat16, _flashrnn_layer)


def haste(context: Context) -> None:
    """float32, the only type that its LSTM has on a GPU beside float64; `make haste_pytorch` in its checkout first."""
    _run(context, "haste", "haste_pytorch", torch.float32, _haste_layer)


class FlashRNNLayer(nn.Module):
    """nn.LSTM's parameters in FlashRNN's shapes, the input projection by torch in front."""

    def __init__(self, weights: nn.LSTM) -> None:
        super().__init__()
        hidden = weights.hidden_size
        self.project = nn.Parameter(weights.weight_ih_l0.detach().clone())
        self.recurrent = nn.Parameter(weights.weight_hh_l0.detach().view(4, 1, hidden, hidden).clone())
        self.bias = nn.Parameter((weights.bias_ih_l0 + weights.bias_hh_l0).detach().view(4, 1, hidden).clone())


def _flashrnn_layer(package: Any, weights: nn.LSTM, x: Tensor, batch: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    module = FlashRNNLayer(weights)
    hidden = weights.hidden_size

    def forward() -> Tensor:
        """(T, B, I) -> (T, B, H), by way of (B, T, gates, heads, width) and (states, B, T, heads, width)."""
        projected = (x @ module.project.t()).transpose(0, 1).reshape(batch, -1, 4, 1, hidden)
        states, _ = package.flashrnn(projected, module.recurrent, module.bias, function="lstm", backend="cuda_fused")
        return states[0, :, :, 0].transpose(0, 1)

    return module, forward


def _haste_layer(package: Any, weights: nn.LSTM, x: Tensor, batch: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    module = package.LSTM(weights.input_size, weights.hidden_size).to(x.device)
    parameters = (weights.weight_ih_l0, weights.weight_hh_l0, weights.bias_ih_l0, weights.bias_hh_l0)
    module.from_native_weights(*(parameter.detach() for parameter in parameters))
    return module, lambda: module(x)[0]


def _run(context: Context, name: str, package_name: str, dtype: torch.dtype, build: Build) -> None:
    sys.path.insert(0, context.checkouts[name])
    try:
        package = importlib.import_module(package_name)
    except Exception as failure:
        emit(kind=name, why=f"{name} cannot be imported here: {reason(failure)}")
        return
    for hidden, batch in SMOKE_GRID if context.smoke else GRID:
        if context.left() < 5:
            emit(kind=name, hidden=hidden, batch=batch, why="not run: the time was up")
            continue
        steps = 4 if context.smoke else LONGEST
        layer = Layer([steps] * batch, hidden, hidden, 1, context.device)
        theirs = layer.padded(dtype)
        assert isinstance(theirs.module, nn.LSTM)
        try:
            x = theirs.x.detach().requires_grad_()
            module, forward = build(package, theirs.module, x, batch)
            peer = Contestant(module, forward, x, theirs.dy, None)
            with torch.no_grad():
                difference = float((peer.forward() - theirs.forward()).norm() / theirs.forward().norm())
        except Exception as failure:
            emit(kind=name, hidden=hidden, batch=batch, why=f"{name} does not run here: {reason(failure)}")
            if context.device.type == "cuda":
                torch.cuda.synchronize()
            continue
        if not difference <= 2e-2:
            emit(kind=name, hidden=hidden, batch=batch, why=f"{name} differs from cuDNN by {difference:.1e}: not timed")
            continue
        contestants = {name: peer, f"cudnn {str(dtype).removeprefix('torch.')}": theirs}
        for backend, why in backends.contestants("lstm", context).items():
            if why is None:
                contestants[f"penstock {backend}"] = layer.penstock(backend, dtype)
        for phase in ("inference", "training"):
            calls = {each: contestant.calls()[phase] for each, contestant in contestants.items()}
            timed = in_turn(context, "lstm", calls, context.share(4))
            for figures in timed.values():
                if "ms" in figures:
                    figures["us_per_step"] = 1e3 * figures["ms"] / steps
            emit(
                kind=name,
                hidden=hidden,
                batch=batch,
                steps=steps,
                phase=phase,
                difference=difference,
                contestants=timed,
            )
