"""Whole runs in ranks: a rank must find this file by its name."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from rank_gradients import Case, batch_of, model_of, texts_of
from torch import Tensor

from penstock.engine.data.store import Store
from penstock.engine.errors import PenstockError
from penstock.engine.models import fuse
from penstock.engine.models.architectures import layers_of
from penstock.engine.training.distil import distil
from penstock.engine.training.distributed import World
from penstock.engine.training.loop import Loop
from penstock.engine.training.sections import TrainingSettings
from penstock.engine.training.settings import load_settings
from penstock.engine.training.shard import local, place
from penstock.engine.training.train import train


def train_in_ranks(overrides: list[str], store: Path, test_store: Path | None, out: Path) -> dict[str, Any]:
    """What one rank sees: figures, what it said on stderr, how many numbers it holds of the model and the optimizer."""
    held: list[int] = []
    run = Loop.run

    def counted(loop: Loop, *arguments: Any) -> None:
        run(loop, *arguments)
        tensors: list[Tensor] = list(loop.model.parameters())
        states = loop._stepper.state_dict()["optimizer"]["state"].values()
        tensors += [tensor for state in states for tensor in state.values()]
        held.append(sum(local(tensor).numel() for tensor in tensors))

    Loop.run = counted  # type: ignore[method-assign]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            test = None if test_store is None else Store.open(test_store)
            result = train(
                load_settings(None, overrides), Store.open(store), out, test_store=test, device="cpu", progress="plain"
            )
        except PenstockError as error:
            return {"error": f"{type(error).__name__}: {error}"}
    figures = {"validation": result.validation, "test": result.test}
    return {
        **{name: metrics and (metrics.loss, metrics.accuracy) for name, metrics in figures.items()},
        "parameters": (result.parameters, result.trainable_parameters),
        "held": held[0] if held else 0,
        "said": said.getvalue(),
    }


def distil_in_ranks(overrides: list[str], teachers: list[Path], texts: Path, store: Path, out: Path) -> list[float]:
    """The losses of a student's steps; the teachers' logits lie in the folder of `out`."""
    given: dict[str, Any] = {"train_store": Store.open(store), "logits": out.parent / "logits"}
    texts_only = Store.open(texts, labelled=False)
    distil(load_settings(None, overrides), teachers, texts_only, out, device="cpu", progress="none", **given)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def layers_stay_fused(name: str) -> int:
    """Runs an encoder's shares with layers whose own forward may not be called; how many saw first tokens alone."""
    case = Case(name, "mean", 5)
    model = model_of(case)
    layers: Any = layers_of(model.model)
    own = type(layers[0])
    place(model, TrainingSettings(shard=True), World.join("cpu"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a layer is not fused")

    refuse.__module__ = own.__module__  # as `stock.py` wants it
    own.forward = refuse
    first_tokens, seen = fuse.first_tokens, []
    fuse.first_tokens = lambda *arguments: seen.append(1) or first_tokens(*arguments)  # type: ignore[assignment]
    model(batch_of(*texts_of(case), range(5)).tokens).logits.sum().backward()
    return len(seen)
