"""Studies without training: results drawn around known learning curves."""

import dataclasses
import json
import math
import random
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from penstock.engine.study.costs import Cost, write_cost
from penstock.engine.study.predictions import PredictionsRecorder, predictions_path
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.trials import Trial, TrialResult, write_result

# accuracy(n) = 1 - (scale * (n / 100) ** -exponent + floor)
CURVES = {"lstm": (0.55, 0.35, 0.2), "lstm-embeddings": (0.5, 0.38, 0.2), "encoder": (0.3, 0.25, 0.18)}


def no_cost(family: str, *_: Any) -> Cost:
    """Stands in for the measurement of a family's cost."""
    return Cost(family, 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 1, 32: 1}, "CPU", 1)


def accuracy(family: str, size: int) -> float:
    scale, exponent, floor = CURVES[family]
    return 1 - (scale * (size / 100) ** -exponent + floor)


def result(family: str, size: int, seed: int, noise: float = 0.005) -> TrialResult:
    random_ = random.Random(f"{family} {size} {seed}")
    value = min(max(accuracy(family, size) + random_.gauss(0, noise), 0.01), 1.0)
    seconds = size / {"lstm": 900, "lstm-embeddings": 800, "encoder": 40}[family]
    return TrialResult(
        Trial(size, seed, family),
        "done",
        accuracy=value,
        macro_f1=value - 0.01,
        loss=math.log(2),
        validation_accuracy=value,
        train_examples=size - size // 10,
        validation_examples=size // 10,
        test_examples=1000,
        steps=size // 8,
        epochs=8.0,
        train_seconds=seconds,
        tokens_per_second=8 * 44 * size / seconds,
        evaluation=evaluation(value),
    )


def evaluation(accuracy: float) -> dict[str, Any]:
    """For 1,000 test rows in three classes, the last of which is never predicted."""
    support = {"bad": 600, "good": 390, "rare": 10}
    return {
        "balanced_accuracy": accuracy - 0.1,
        "macro_f1": accuracy - 0.01,
        "mcc": accuracy - 0.2,
        "auroc": None,
        "expected_calibration_error": 0.05,
        "classes": [
            {
                "name": name,
                "precision": None if name == "rare" else accuracy,
                "recall": 0.0 if name == "rare" else accuracy,
                "f1": 0.0 if name == "rare" else accuracy,
                "support": rows,
                "predicted": 0 if name == "rare" else rows,
                "auroc": None,
            }
            for name, rows in support.items()
        ],
    }


def stand_in(task: TrialTask) -> TrialResult:
    """Takes the place of `run_trial`; leaves a mark in the trial's run directory."""
    marks = Path(task.run).parent.parent / "marks"
    marks.mkdir(exist_ok=True)
    with open(marks / task.trial.name, "a") as mark:
        mark.write("run\n")
    return result(task.trial.family, task.trial.size, task.trial.seed)


def with_predictions(folder: Path, result: TrialResult, rows: int = 1000, accuracy: float | None = None) -> TrialResult:
    """The result with predictions in `folder` whose accuracy is near the given one, or its own.

    A row's difficulty is the same for every family, size and seed, as of one test set.
    """
    names = ["bad", "good", "rare"]
    truth = np.random.default_rng(7).choice(3, rows, p=[0.6, 0.39, 0.01])
    difficulty = np.random.default_rng(8).normal(0, 1, rows)
    own = np.random.default_rng([result.trial.size, result.trial.seed, len(result.trial.family)])
    level = NormalDist().inv_cdf(result.accuracy if accuracy is None else accuracy) * 2**0.5
    right = level + difficulty + own.normal(0, 1, rows) > 0
    labels = np.where(right, truth, (truth + 1) % 3)
    recorder = PredictionsRecorder(np.arange(rows), 3)
    probabilities = np.eye(3, dtype=np.float32)[labels] * 0.7 + 0.1
    recorder.add(torch.arange(rows), torch.from_numpy(truth), torch.from_numpy(probabilities))
    path = predictions_path(folder, result.trial.name)
    entry = recorder.write(path, test="0" * 64, max_test=None, test_rows=rows, label_names=names)
    return dataclasses.replace(result, accuracy=float(right.mean()), test_examples=rows, predictions=entry)


GRID = {
    "lstm": (500, 2000, 8000, 32000, 100000),
    "lstm-embeddings": (500, 2000, 8000, 32000),
    "encoder": (500, 2000, 8000),
}


def fabricate(folder: Path, replace: dict[str, TrialResult] | None = None, families=tuple(GRID)) -> Path:
    """A study's folder, whose trials have kept no predictions."""
    for name in ("trials", "costs"):
        (folder / name).mkdir(parents=True)
    trials = [
        (replace or {}).get(made.trial.name, made)
        for family in families
        for size in GRID[family]
        for made in (result(family, size, seed) for seed in range(3 if size <= 8000 else 1))
    ]
    for trial in trials:
        write_result(folder / "trials", trial)
    for family in families:
        latency = {1: 1.25, 32: 8.5}
        write_cost(
            folder / "costs" / f"{family}.json",
            Cost(family, 9_000_000, 7_800_000, 36_000_000, latency, {1: 9, 32: 9}, "CPU", 2),
        )
    study = {
        "format": 1,
        "identity": {
            "train": ["synthetic:reviews?n=100000"],
            "test": ["test.csv"],
            "encoder": "some/encoder",
            "max_length": 256,
            "max_test": 1000,
            "overrides": ["lstm.training.epochs=8"],
        },
        "trials": [trial.trial.name for trial in trials],
        "labels": ["1", "2", "3"],
        "train": {"examples": 100000, "tokens": 4_400_000},
        "test": {"examples": 2000, "tokens": 88_000},
        "machine": {"device": "Some CPU", "cores": 2, "threads": 2, "jobs": 1, "torch": "2.13"},
    }
    (folder / "study.json").write_text(json.dumps(study))
    return folder
