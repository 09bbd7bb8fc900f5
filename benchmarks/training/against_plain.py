"""What `penstock bench training` times: `LSTMClassifier` in penstock's step, and the plain PyTorch script at its best.

Both read one store, in batches of like length and of as many examples in the mean, with the same model, AdamW, clipping
and mixed precision.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from penstock.benchmarks.training import plain_lstm
from penstock.engine.data.loader import Loader, Step
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.store import Store
from penstock.engine.models import build_model
from penstock.engine.models.settings import ModelSettings
from penstock.engine.training.distributed import World
from penstock.engine.training.sections import TrainingSettings
from penstock.engine.training.step import Stepper


class Ours:
    """penstock's loader, model and step."""

    def __init__(self, path: Path, rows: np.ndarray, tokens_per_batch: int, precision: str) -> None:
        store = Store.open(path)
        torch.manual_seed(0)
        model = build_model(ModelSettings(), vocab_size=store.vocab_size, num_labels=store.num_labels)
        settings = TrainingSettings(learning_rate=2e-3, max_steps=10**6)
        self.stepper = Stepper(model, settings, precision, World(0, 1, torch.device("cpu")))
        self.loader = Loader(store, seed=0, parameters=PlanParameters(tokens_per_batch=tokens_per_batch), rows=rows)
        self.steps = self._endless()
        self.number = 0

    def _endless(self) -> Iterator[Step]:
        while True:
            yield from self.loader

    def step(self) -> Step:
        step = next(self.steps)
        self.number += 1
        self.stepper(step.batches, step=self.number, num_examples=step.num_examples, learning_rate=1e-3)
        return step

    def train(self, seconds: float) -> dict[str, float]:
        self.step()
        start, tokens, examples = time.perf_counter(), 0, 0
        while time.perf_counter() - start < seconds:
            step = self.step()
            tokens, examples = tokens + step.num_tokens, examples + step.num_examples
        took = time.perf_counter() - start
        return {"tokens_per_second": tokens / took, "examples_per_second": examples / took}


def plain(path: Path, rows: np.ndarray, batch_size: int, precision: str, packed: bool) -> Callable[[float], dict]:
    examples = plain_lstm.read_store(path, rows)
    manifest = json.loads((path / "manifest.json").read_text())
    torch.manual_seed(0)
    model = plain_lstm.PlainLSTM(manifest["vocab_size"], len(manifest["label_names"]))
    return lambda seconds: plain_lstm.train(
        model,
        examples,
        epochs=1,
        batch_size=batch_size,
        learning_rate=2e-3,
        seed=0,
        packed=packed,
        bf16=precision == "bf16",
        max_seconds=seconds,
    )
