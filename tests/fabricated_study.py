"""Studies without training: results drawn around known learning curves."""

import dataclasses
import math
import random
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from penstock.engine.study.predictions import PredictionsRecorder, predictions_path
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.trials import Trial, TrialResult

# accuracy(n) = 1 - (scale * (n / 100) ** -exponent + floor)
CURVES = {"lstm": (0.55, 0.35, 0.2), "lstm-embeddings": (0.5, 0.38, 0.2), "encoder": (0.3, 0.25, 0.18)}


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
