"""`majority`: the class that most training rows have, whatever the text."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.engine.files import write_json
from penstock.engine.study.baselines.fitting import FitTask, Fitted

VERSION = 1
REQUIRES = ()


@dataclass(frozen=True)
class Options:
    """It has none."""


@dataclass
class Majority(Fitted):
    """
    Attributes:
        shares: float32 (num_labels,): of the training rows, which are the probabilities that it gives every text. Of
            classes with equal shares the first is predicted.
    """

    shares: np.ndarray

    @property
    def parameters(self) -> int:
        return self.num_labels

    def save(self, folder: Path) -> None:
        write_json(folder / "model.json", {"shares": self.shares.tolist()})

    def probabilities(self, values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.shares, (len(bounds) - 1, self.num_labels)).copy()


def fit(task: FitTask) -> Majority:
    counts = np.bincount(task.store.labels[task.rows], minlength=task.store.num_labels)
    return Majority(task.store.num_labels, (counts / counts.sum()).astype(np.float32))


untrained = fit
