"""Pretrains an LSTM in several ways on a store's texts, fine-tunes each on few labels, and writes what it makes of rows
that neither saw: which way learns most in a CPU second. No test row is read.

    python benchmarks/recipes/pretraining.py --store stores/film --out pretraining.csv --tokens 3e6 --sizes 500,2000

The store's last rows are the development set; texts and labels are from the others. A way is an objective with settings
of pretraining behind it, "scratch" is none. What the file has already is not measured again, and pretraining resumes,
in a folder beside it.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.engine import Store, load_model, load_settings, train
from penstock.engine.study.subsets import subset
from penstock.engine.training.distributed import World
from penstock.engine.training.evaluate import run, store_batches
from penstock.engine.training.run_record import as_trained, read_record

COLUMNS = (
    "data",
    "way",
    "tuning",
    "pretraining_tokens",
    "pretraining_cpu_seconds",  # of the process that did all of it; empty where it resumed
    "pretraining_loss",
    "size",
    "seed",
    "development_rows",
    "development_accuracy",
    "cpu_seconds",
)
QUIET = ["training.tensorboard=false"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--name", help="of the data, in the file; by default the store's")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, required=True)
    parser.add_argument("--sizes", default="500,2000")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--development", type=int, default=4_000, help="rows at the end of the store")
    parser.add_argument("--ways", nargs="+", default=["scratch", "masked", "replaced"])
    parser.add_argument("--tunings", nargs="+", default=[""], help="settings of the fine-tuning; '' is the recipe")
    parser.add_argument("--model", nargs="+", default=["model.preset=lstm-1-256"], help="settings of the model")
    options = parser.parse_args()
    comparison = Comparison(Store.open(options.store), options)
    for way in options.ways:
        for size in map(int, options.sizes.split(",")):
            for seed in range(options.seeds):
                for tuning in options.tunings:
                    comparison.measure(way, tuning, size, seed)


class Comparison:
    """One model on one store."""

    def __init__(self, store: Store, options: argparse.Namespace) -> None:
        self.store, self.out, self.tokens, self.model = store, options.out, round(options.tokens), options.model
        self.name = options.name or options.store.name
        self.pool = store.num_examples - options.development
        self.development = np.arange(self.pool, store.num_examples)
        self.runs = options.out.with_suffix(".runs")
        self.spent: dict[str, str] = {}
        self.done = _done(options.out)

    def measure(self, way: str, tuning: str, size: int, seed: int) -> None:
        key = (self.name, way, tuning, str(self.tokens), str(size), str(seed))
        if key in self.done:
            return
        start = self._pretrained(way)
        stated = [f"model.start_from={start}"] if start is not None else self.model
        out = self.runs / f"{_folder(way)}-{_folder(tuning)}-{size}-{seed}"
        settings = load_settings(None, [*stated, *QUIET, f"training.seed={seed}", *tuning.split()])
        began = time.process_time()
        train(settings, self.store, out, rows=subset(self.store.labels[: self.pool], size, seed), progress="none")
        seconds = time.process_time() - began
        loss = "" if start is None else f"{read_record(start)['result']['validation']['loss']:.4f}"
        row = (self.name, way, tuning, self.tokens, self.spent.get(way, ""), loss, size, seed)
        self._write((*row, len(self.development), f"{self._accuracy(out):.4f}", f"{seconds:.1f}"))

    def _pretrained(self, way: str) -> Path | None:
        """The finished run; None from scratch."""
        objective, *changes = way.split()
        if objective == "scratch":
            return None
        out = self.runs / _folder(way)
        limits = [f"pretraining.objective={objective}", f"pretraining.tokens={self.tokens}", *changes]
        resumes, began = (out / "run.json").exists(), time.process_time()
        settings = load_settings(None, [*self.model, *QUIET, *limits])
        train(settings, self.store, out, rows=np.arange(self.pool), progress="plain")
        if not resumes:
            self.spent[way] = f"{time.process_time() - began:.0f}"
        return out

    def _accuracy(self, out: Path) -> float:
        model: Any = load_model(out)
        right = 0
        store = as_trained(self.store, read_record(out)["data"])
        batches = store_batches(store, self.development, 8_192, World(0, 1, torch.device("cpu")))
        for batch, logits in run(model, batches):
            right += int((logits.argmax(-1) == batch.labels).sum())
        return right / len(self.development)

    def _write(self, row: tuple) -> None:
        new = not self.out.exists()
        with self.out.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerow(row)


def _folder(words: str) -> str:
    return "".join(one if one.isalnum() or one in "._" else "-" for one in words) or "recipe"


def _done(out: Path) -> set[tuple[str, ...]]:
    if not out.exists():
        return set()
    with out.open(newline="") as file:
        names = ("data", "way", "tuning", "pretraining_tokens", "size", "seed")
        return {tuple(row[name] for name in names) for row in csv.DictReader(file)}


if __name__ == "__main__":
    main()
