"""Training `LSTMClassifier` through penstock's loop against the plain PyTorch script at its best, in turns.

Both read one store, in batches of like length and of as many examples in the mean, with the same model, AdamW, clipping
and mixed precision. In each round each of them trains for some seconds, the first step not counted; the figures are
medians over the rounds, with the lowest and the highest, of real tokens per second.

    python benchmarks/training/against_plain.py --train STORE --rounds 5 --out against_plain.json
"""

import argparse
import json
import os
import statistics
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
from penstock.engine.training.settings import TrainingSettings
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="a penstock store")
    parser.add_argument("--rows", type=int, default=20_000, help="how many rows, from the first")
    parser.add_argument("--batch-size", type=int, default=64, help="examples in a batch; ours on average")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--packed", action="store_true", help="the peer packs instead of padding with masked pooling")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each contestant in a round")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    store = Store.open(options.train)
    rows = np.arange(min(options.rows, len(store)))
    tokens_per_batch = options.batch_size * round(store.num_tokens / store.num_examples)
    ours = Ours(options.train, rows, tokens_per_batch, options.precision)
    contestants = {
        "penstock": ours.train,
        "plain": plain(options.train, rows, options.batch_size, options.precision, options.packed),
    }
    speeds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            speeds[name].append(run(options.seconds))

    def summary(name: str, unit: str) -> dict[str, float]:
        values = sorted(speed[unit] for speed in speeds[name])
        return {"median": statistics.median(values), "lowest": values[0], "highest": values[-1]}

    units = ("tokens_per_second", "examples_per_second")
    result = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "malloc": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
        "precision": options.precision,
        "packed": options.packed,
        **{name: {unit: summary(name, unit) for unit in units} for name in contestants},
    }
    result["ratio"] = {unit: result["penstock"][unit]["median"] / result["plain"][unit]["median"] for unit in units}
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
