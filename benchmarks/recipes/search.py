"""Trains one family with each of several settings on subsets of a store, and writes what each makes of rows that no
subset holds: how the recipes of `penstock train` were chosen.

    python benchmarks/recipes/search.py --store stores/film --out film.csv --sizes 500,2000 --seeds 2 model.kind=lstm \\
        --candidates '' model.embedding_dropout=0.3 'model.embedding_dropout=0.3 training.learning_rate=4e-3'

The store's last rows are the development set, the subsets are drawn from the others. What the file has already is not
measured again, so that an interrupted search resumes.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from penstock.engine import Store, load_model, load_settings, train
from penstock.engine.study.subsets import subset
from penstock.engine.training.distributed import World
from penstock.engine.training.evaluate import evaluate_fully, store_batches

COLUMNS = (
    "data",
    "size",
    "seed",
    "settings",
    "development_accuracy",
    "macro_f1",
    "validation_accuracy",
    "epochs",
    "best_step",
    "steps",
    "cpu_seconds",
)
DEVELOPMENT = 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", default="2000")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("common", nargs="*")
    parser.add_argument("--candidates", nargs="+", default=[""])
    options = parser.parse_args()
    store = Store.open(options.store)
    pool = store.num_examples - DEVELOPMENT
    done = _done(options.out)
    for size in map(int, options.sizes.split(",")):
        for seed in range(options.seeds):
            for candidate in options.candidates:
                overrides = [*options.common, *candidate.split()]
                key = (options.store.name, str(size), str(seed), " ".join(overrides))
                if key not in done:
                    row = (*key, *_measure(store, pool, size, seed, overrides))
                    _append(options.out, row)
                    print(*row, flush=True)


def _measure(store: Store, pool: int, size: int, seed: int, overrides: list[str]) -> tuple:
    settings = load_settings(None, [*overrides, f"training.seed={seed}", "training.tensorboard=false"])
    rows = subset(store.labels[:pool], size, seed)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        result = train(settings, store, Path(folder) / "run", rows=rows, progress="none")
        seconds = time.process_time() - start
        model = load_model(Path(folder) / "run")
        alone = World(0, 1, torch.device("cpu"))
        batches = store_batches(store, np.arange(pool, store.num_examples), 16_384, alone)
        metrics = evaluate_fully(model, batches, store.label_names, "auto").result().metrics
    assert result.validation is not None
    return (
        f"{metrics.accuracy:.4f}",
        f"{metrics.macro_f1:.4f}",
        f"{result.validation.accuracy:.4f}",
        f"{result.epochs:.1f}",
        result.best_step,
        result.steps,
        f"{seconds:.1f}",
    )


def _done(path: Path) -> set[tuple[str, ...]]:
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {tuple(row[name] for name in COLUMNS[:4]) for row in csv.DictReader(file)}


def _append(path: Path, row: tuple) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        writer.writerow(row)


if __name__ == "__main__":
    main()
