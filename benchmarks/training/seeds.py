"""Does penstock's BiLSTM learn what the plain one does? `lstm-1-256` and plain_lstm.py (padded, bf16), trained on the
same rows for the same epochs over several seeds, and both accuracies on the same test rows.

    python benchmarks/training/seeds.py --train STORE --test STORE
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from penstock.benchmarks.training import plain_lstm
from penstock.engine.data.store import Store
from penstock.engine.models import load_model
from penstock.engine.training.evaluate import evaluate
from penstock.engine.training.settings import load_settings
from penstock.engine.training.train import train

EPOCHS, BATCH_SIZE, LEARNING_RATE = 3, 64, 2e-3


def penstock(train_store: Store, test_store: Store, rows: np.ndarray, test_rows: np.ndarray, seed: int) -> float:
    tokens_per_batch = BATCH_SIZE * round(float(train_store.lengths[rows].mean()))
    settings = [
        "model.preset=lstm-1-256",
        "data.validation_fraction=0",
        f"data.tokens_per_batch={tokens_per_batch}",
        f"training.epochs={EPOCHS}",
        f"training.learning_rate={LEARNING_RATE}",
        f"training.seed={seed}",
    ]
    with tempfile.TemporaryDirectory() as run:
        train(load_settings(None, settings), train_store, run, rows=rows, progress="none")
        return evaluate(load_model(run), test_store, rows=test_rows).accuracy


def plain(train_store: Store, test_store: Store, rows: np.ndarray, test_rows: np.ndarray, seed: int) -> float:
    torch.manual_seed(seed)
    model = plain_lstm.PlainLSTM(train_store.vocab_size, train_store.num_labels)
    plain_lstm.train(
        model,
        plain_lstm.read_store(train_store.path, rows),
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        seed=seed,
        packed=False,
        bf16=True,
    )
    return plain_lstm.accuracy(model, plain_lstm.read_store(test_store.path, test_rows), BATCH_SIZE, packed=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="a penstock store")
    parser.add_argument("--test", type=Path, required=True, help="a penstock store prepared --like it")
    parser.add_argument("--rows", type=int, default=20_000, help="random training rows, other ones for each seed")
    parser.add_argument("--test-rows", type=int, default=4_000, help="how many test rows, from the first")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()

    stores = Store.open(options.train), Store.open(options.test)
    found: dict[str, list[float]] = {"penstock": [], "plain": []}
    for seed in range(options.seeds):
        rows = np.sort(np.random.default_rng(seed).permutation(stores[0].num_examples)[: options.rows])
        for contestant in (penstock, plain):
            found[contestant.__name__].append(contestant(*stores, rows, np.arange(options.test_rows), seed))
    means = {name: statistics.mean(accuracies) for name, accuracies in found.items()}
    print(json.dumps({"accuracy": found, "mean": means}))


if __name__ == "__main__":
    main()
