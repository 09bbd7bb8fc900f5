"""Trains one family with each of several settings on subsets of a store, and writes what each makes of rows that no
subset holds: how the recipes were chosen. No test row is read.

    python benchmarks/recipes/search.py --store stores/film --out film.csv --family lstm --sizes 500,2000 --seeds 2

Settings are those of `penstock study`, changed from the family's recipe; by default CANDIDATES, as many for every
family. The store's last rows are the development set, the subsets are drawn from the others. What the file has already
is not measured again, so that an interrupted search resumes. What was right row by row lies in a folder beside it, for
the paired differences to the recipe that table.py shows.
"""

import argparse
import csv
import dataclasses
import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.engine import Store, load_model, train
from penstock.engine.study.baselines import baseline
from penstock.engine.study.baselines.fitting import FitTask
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.settings import StudySettings, packaged_encoder, trial_settings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.subsets import subset
from penstock.engine.study.trials import Trial
from penstock.engine.training.distributed import World
from penstock.engine.training.evaluate import run, store_batches
from penstock.engine.training.reading import read_by
from penstock.engine.training.settings import Settings

COLUMNS = (
    "data",
    "family",
    "size",
    "seed",
    "settings",
    "recipe",  # its value of the setting, where one is changed
    "development_rows",
    "development_accuracy",
    "gain",  # over the recipe with the same seed, on the same rows
    "gain_error",  # its standard error over the rows
    "validation_accuracy",
    "epochs",
    "cpu_seconds",
)
CANDIDATES = {
    "linear": (
        *("", "linear.ngrams=1", "linear.ngrams=3", "linear.min_count=1", "linear.min_count=3"),
        *("linear.refit=false", "data.max_length=512", "linear.ngrams=3 linear.min_count=1"),
    ),
    "bag": (
        *("", "training.learning_rate=0.1", "training.learning_rate=0.4", "training.epochs=8", "training.epochs=16"),
        *("model.ngrams=1", "model.ngrams=3", "model.embedding_size=64"),
    ),
    "lstm": (
        *("", "training.learning_rate=1e-3", "training.learning_rate=4e-3", "model.embedding_dropout=0.3"),
        *("model.head_dropout=0.5", "training.weight_decay=0.3", "model.pooling=mean", "data.max_length=256"),
    ),
    "frozen": (
        *("", "frozen.refit=false", "data.max_length=64", "data.max_length=128", "data.max_length=256"),
        *("frozen.C=0.25", "frozen.C=4", "frozen.C=64"),
    ),
    "encoder": (
        *("", "training.learning_rate=5e-5", "training.learning_rate=2e-4", "training.epochs=8"),
        *("data.max_length=128", "data.max_length=256", "model.encoder_dropout=0", "training.weight_decay=0.1"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--name", help="of the data, in the file; by default the store's")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", choices=sorted(CANDIDATES), required=True)
    parser.add_argument("--encoder", default=None, help="by default the packaged MiniLM")
    parser.add_argument("--sizes", default="500,2000")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--development", type=int, default=5_000, help="rows at the end of the store")
    parser.add_argument("--candidates", nargs="+", help="'' is the recipe; by default CANDIDATES")
    options = parser.parse_args()
    search = Search(Store.open(options.store), options)
    for size in map(int, options.sizes.split(",")):
        for seed in range(options.seeds):
            for candidate in options.candidates or CANDIDATES[options.family]:
                search.measure(size, seed, candidate)


class Search:
    """One family on one store."""

    def __init__(self, store: Store, options: argparse.Namespace) -> None:
        self.store, self.family, self.out = store, options.family, options.out
        self.name = options.name or options.store.name
        self.pool = store.num_examples - options.development
        self.development = np.arange(self.pool, store.num_examples)
        self.rows_folder = options.out.with_suffix(".rows")
        self.rows_folder.mkdir(parents=True, exist_ok=True)
        self.study = StudySettings(
            train=(str(store.path),),
            test=(str(store.path),),
            encoder=options.encoder or packaged_encoder(),
            sizes=parse_sizes("100%"),
            seeds=parse_seeds("1"),
            max_sizes={},
            families=(self.family,),
        )
        self.done = _done(self.out)

    def measure(self, size: int, seed: int, candidate: str) -> None:
        key = (self.name, self.family, str(size), str(seed), candidate)
        if key in self.done:
            return
        trial = Trial(size, seed, self.family)
        overrides = [
            each if each.startswith(f"{self.family}.") else f"{self.family}.{each}" for each in candidate.split()
        ]
        if FAMILIES[self.family].baseline is not None:
            overrides = [each.replace(f"{self.family}.data.", "data.") for each in overrides]
        changed = dataclasses.replace(self.study, overrides=tuple(overrides))
        settings = trial_settings(changed, trial, self.store)
        recipe = trial_settings(self.study, trial, self.store).flat()
        names = [each.partition("=")[0] for each in candidate.split()]
        rows = subset(self.store.labels[: self.pool], size, seed)
        began = time.process_time()
        right, validation, epochs = (self._loop if isinstance(settings, Settings) else self._baseline)(settings, rows)
        seconds = self.seconds - began
        np.save(self._kept(size, seed, candidate), np.packbits(right))
        gain, error = self._gain(size, seed, right)
        row = (
            *key,
            recipe.get(names[0], "") if len(names) == 1 else "",
            len(right),
            f"{right.mean():.4f}",
            "" if gain is None else f"{gain:.4f}",
            "" if error is None else f"{error:.4f}",
            "" if validation is None else f"{validation:.4f}",
            epochs,
            f"{seconds:.1f}",
        )
        _append(self.out, row)
        print(*row, flush=True)

    def _loop(self, settings: Settings, rows: np.ndarray) -> tuple[np.ndarray, float | None, str]:
        settings = settings.replace({"training.tensorboard": False})
        with tempfile.TemporaryDirectory() as folder:
            result = train(settings, self.store, Path(folder) / "run", rows=rows, progress="none")
            self.seconds = time.process_time()
            model: Any = load_model(Path(folder) / "run")
        batches = store_batches(
            read_by(settings, self.store), self.development, 16_384, World(0, 1, torch.device("cpu"))
        )
        right = np.zeros(self.store.num_examples, bool)
        for batch, logits in run(model, batches, settings.training.precision):
            right[batch.tokens.ids.numpy()] = (logits.argmax(-1) == batch.labels).numpy()
        validation = None if result.validation is None else result.validation.accuracy
        return right[self.development], validation, f"{result.epochs:.1f}"

    def _baseline(self, settings: Any, rows: np.ndarray) -> tuple[np.ndarray, float | None, str]:
        store = read_by(settings, self.store)
        cache = self.rows_folder / "encoded" if self.family == "frozen" else None
        fitted = baseline(settings.name).fit(FitTask(settings, store, rows, torch.get_num_threads(), cache))
        self.seconds = time.process_time()
        parts = [found.argmax(1) == store.labels[part] for part, found in fitted.predict(store, self.development)]
        return np.concatenate(parts), fitted.validation_accuracy, ""

    def _gain(self, size: int, seed: int, right: np.ndarray) -> tuple[float | None, float | None]:
        path = self._kept(size, seed, "")
        if not path.exists():
            return None, None
        differences = right.astype(np.float64) - np.unpackbits(np.load(path), count=len(right))
        return float(differences.mean()), float(differences.std() / np.sqrt(len(right)))

    def _kept(self, size: int, seed: int, candidate: str) -> Path:
        name = hashlib.sha256(" ".join([self.name, candidate]).encode()).hexdigest()[:12]
        return self.rows_folder / f"{self.family}-{size}-{seed}-{name}.npy"


def _done(path: Path) -> set[tuple[str, ...]]:
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {tuple(row[name] for name in COLUMNS[:5]) for row in csv.DictReader(file)}


def _append(path: Path, row: tuple) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        writer.writerow(row)


if __name__ == "__main__":
    main()
