"""A full evaluation: what the metrics say, class by class, and how far the probabilities can be believed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from penstock.engine.training.metrics import Metrics

RELIABILITY_BINS = 15  # of equal width, as Guo et al., "On calibration of modern neural networks", 2017
MAX_SCORES = 1 << 26  # probabilities kept for AUROC: 256 MiB


@dataclass(frozen=True)
class ClassFigures:
    """One class.

    Attributes:
        precision: share of its predictions that are right; None where it is never predicted.
        recall: share of its examples that are found; None where it does not occur, as with auroc.
        f1: 2 TP / (2 TP + FP + FN); None where it neither occurs nor is predicted.
        support, predicted: examples of the class, and predictions of it.
        auroc: the probability that an example of the class has a higher probability of it than another example.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    predicted: int
    auroc: float | None


@dataclass(frozen=True)
class ReliabilityBin:
    """Examples whose predicted label has a probability above `low` and up to `high`: how sure, and how often right."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None

    @classmethod
    def of(cls, bins: np.ndarray) -> "list[ReliabilityBin]":
        """From (3, RELIABILITY_BINS), as `reliability_bins` gives them."""
        examples, confidence, right = bins
        return [
            cls(
                low=number / RELIABILITY_BINS,
                high=(number + 1) / RELIABILITY_BINS,
                count=int(examples[number]),
                confidence=ratio(confidence[number], examples[number]),
                accuracy=ratio(right[number], examples[number]),
            )
            for number in range(RELIABILITY_BINS)
        ]


@dataclass(frozen=True)
class Evaluation:
    """Everything that `penstock evaluate` reports.

    Attributes:
        metrics: the figures in short.
        classes: in the order of the model's labels.
        confusion: int64 (num_classes, num_classes), row = label, column = prediction.
        auroc: mean over the classes that have one (one against the rest, macro); None if none has.
        auroc_examples: examples that it was computed from: all, or every 2nd, 4th, ... of very many.
        ece: expected calibration error, the mean |confidence - accuracy| over the bins, weighted by their examples.
        bad_rows: rows of the data that could not be used and are in none of the figures.
    """

    metrics: Metrics
    classes: list[ClassFigures]
    confusion: np.ndarray
    auroc: float | None
    auroc_examples: int
    ece: float
    reliability: list[ReliabilityBin]
    bad_rows: int = 0

    @property
    def label_names(self) -> list[str]:
        return [figures.name for figures in self.classes]

    def summary(self) -> str:
        """The metrics' line, and what it does not say."""
        rows = "row" if self.bad_rows == 1 else "rows"
        bad = f"; {self.bad_rows:,} {rows} could not be used" if self.bad_rows else ""
        return self.metrics.summary() + bad

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        metrics = asdict(self.metrics)
        return {
            **metrics,
            "never_predicted": [c.name for c in self.classes if c.support and not c.predicted],
            "micro_f1": metrics["accuracy"],
            "auroc": self.auroc,
            "auroc_examples": self.auroc_examples,
            "expected_calibration_error": self.ece,
            "bad_rows": self.bad_rows,
            "classes": [asdict(figures) for figures in self.classes],
            "confusion": {"labels": self.label_names, "rows_are_labels": self.confusion.tolist()},
            "reliability": [asdict(part) for part in self.reliability],
        }


class EvaluationCounter:
    """Gathers an evaluation batch by batch, in memory that does not grow with the examples beyond `MAX_SCORES`."""

    def __init__(self, label_names: Sequence[str]) -> None:
        self._names = list(label_names)
        count = len(self._names)
        self._confusion = np.zeros((count, count), np.int64)
        self._loss = 0.0
        self._bins = np.zeros((3, RELIABILITY_BINS))  # examples, summed confidence, right ones
        self._scores = ScoreSample(max(1, MAX_SCORES // count))

    def add(self, labels: Tensor, probabilities: Tensor, loss_sum: float) -> None:
        """labels int64 (batch,), probabilities float32 (batch, num_labels), the batch's summed loss."""
        truth, scores = labels.cpu().numpy(), probabilities.cpu().numpy()
        predicted, confidence = scores.argmax(1), scores.max(1)
        np.add.at(self._confusion, (truth, predicted), 1)
        self._loss += loss_sum
        self._bins += reliability_bins(confidence, predicted == truth)
        self._scores.add(truth, scores)

    @property
    def is_empty(self) -> bool:
        return not self._confusion.any()

    def result(self, bad_rows: int = 0) -> Evaluation:
        """
        Raises:
            ValueError: there was no example.
        """
        import torch

        metrics = Metrics.from_confusion(torch.from_numpy(self._confusion), self._loss, self._names)
        truth, scores = self._scores.rows()
        areas = [binary_auroc(truth == number, scores[:, number]) for number in range(len(self._names))]
        counts = np.stack([self._confusion.diagonal(), self._confusion.sum(0), self._confusion.sum(1)])
        return Evaluation(
            metrics=metrics,
            classes=[
                ClassFigures(name=name, auroc=areas[number], **figures_of(counts, number))
                for number, name in enumerate(self._names)
            ],
            confusion=self._confusion,
            auroc=known_mean(areas),
            auroc_examples=len(truth),
            ece=calibration_error(self._bins),
            reliability=ReliabilityBin.of(self._bins),
            bad_rows=bad_rows,
        )


class ScoreSample:
    """All rows while they are `limit` at most; then every 2nd of them, every 4th, and so on."""

    def __init__(self, limit: int) -> None:
        self._limit, self._stride, self._seen, self._count = limit, 1, 0, 0
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, truth: np.ndarray, scores: np.ndarray) -> None:
        first = -self._seen % self._stride
        self._seen += len(truth)
        self._parts.append((truth[first :: self._stride], scores[first :: self._stride]))
        self._count += len(self._parts[-1][0])
        while self._count > self._limit:
            self._parts = [tuple(part[::2].copy() for part in self.rows())]  # type: ignore[list-item]
            self._count, self._stride = len(self._parts[0][0]), self._stride * 2

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        truth, scores = zip(*self._parts, strict=True)
        return np.concatenate(truth), np.concatenate(scores)


def calibration_error(bins: np.ndarray) -> float:
    """The expected one: the mean |confidence - accuracy| over the bins, weighted by their examples.

    Args:
        bins: (3, RELIABILITY_BINS), as `reliability_bins` gives them.
    """
    examples, confidence, right = bins
    return float(np.abs(confidence - right).sum() / examples.sum())


def reliability_bins(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(3, RELIABILITY_BINS): examples in each bin, their summed confidence, how many are right; of (examples,)."""
    bins = np.clip(np.ceil(confidence * RELIABILITY_BINS).astype(int) - 1, 0, RELIABILITY_BINS - 1)
    return np.stack([np.bincount(bins, weights, RELIABILITY_BINS) for weights in (None, confidence, right)])


def binary_auroc(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve, ties counting half; None where all or none are positive.

    Args:
        positive: bool (examples,). scores: (examples,).
    """
    from scipy.stats import rankdata

    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def figures_of(counts: np.ndarray, number: int) -> dict[str, Any]:
    """The figures of one class that are counted alike, however its predictions were chosen.

    Args:
        counts: (3, num_classes): right predictions, predictions, examples of each class.
    """
    hits, predicted, support = counts[:, number]
    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": ratio(2 * hits, predicted + support),
        "support": int(support),
        "predicted": int(predicted),
    }


def known_mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
