"""A full evaluation of a model that answers for each label by itself."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penstock.engine.training.evaluation import (
    MAX_SCORES,
    RELIABILITY_BINS,
    ClassFigures,
    ReliabilityBin,
    ScoreSample,
    binary_auroc,
    calibration_error,
    figures_of,
    known_mean,
    reliability_bins,
)
from penstock.engine.training.multi_label import MultiLabelMetrics


@dataclass(frozen=True)
class LabelFigures(ClassFigures):
    """One label.

    Attributes:
        average_precision: mean precision over the examples that have the label, by their ranks; None where none has it.
        threshold: the label is predicted where its probability is at least this.
    """

    average_precision: float | None
    threshold: float


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """Everything that `penstock evaluate` reports.

    Attributes:
        metrics: the figures in short, at the thresholds.
        labels: in the order of the model.
        auroc, average_precision: mean over the labels that have one; None if none has.
        micro_auroc, micro_average_precision: of all pairs of example and label together.
        score_examples: examples that these were computed from: all, or every 2nd, 4th, ... of very many.
        ece: expected calibration error over all pairs of example and label: the mean difference of probability and
            frequency over the bins, weighted by their pairs.
        bad_rows: rows of the data that could not be used and are in none of the figures.
    """

    metrics: MultiLabelMetrics
    labels: list[LabelFigures]
    auroc: float | None
    micro_auroc: float | None
    average_precision: float | None
    micro_average_precision: float | None
    score_examples: int
    ece: float
    reliability: list[ReliabilityBin]
    bad_rows: int = 0

    def summary(self) -> str:
        """The metrics' line, and what it does not say."""
        bad = f"; {self.bad_rows:,} rows could not be used" if self.bad_rows else ""
        return self.metrics.summary() + bad

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            **asdict(self.metrics),
            "subset_accuracy": self.metrics.accuracy,
            "never_predicted": [each.name for each in self.labels if each.support and not each.predicted],
            "auroc": self.auroc,
            "micro_auroc": self.micro_auroc,
            "average_precision": self.average_precision,
            "micro_average_precision": self.micro_average_precision,
            "score_examples": self.score_examples,
            "expected_calibration_error": self.ece,
            "bad_rows": self.bad_rows,
            "labels": [asdict(figures) for figures in self.labels],
            "reliability": [asdict(part) for part in self.reliability],
        }


class MultiLabelCounter:
    """Gathers an evaluation batch by batch, in memory that does not grow with the examples beyond `MAX_SCORES`.

    Args:
        thresholds: float64 (num_labels,).
    """

    def __init__(self, label_names: Sequence[str], thresholds: np.ndarray) -> None:
        self._names, self._thresholds = list(label_names), thresholds
        self._counts = np.zeros((3, len(self._names)), np.int64)  # right, predicted, support
        self._exact = self._examples = 0
        self._loss = 0.0
        self._bins = np.zeros((3, RELIABILITY_BINS))  # pairs, summed probability, positives
        self._scores = ScoreSample(max(1, MAX_SCORES // len(self._names)))

    def add(self, labels: Tensor, probabilities: Tensor, loss_sum: float) -> None:
        """labels, probabilities float32 (batch, num_labels), the batch's summed loss."""
        truth, scores = labels.cpu().numpy() > 0, probabilities.cpu().numpy()
        predicted = scores >= self._thresholds
        self._counts += np.stack([(truth & predicted).sum(0), predicted.sum(0), truth.sum(0)])
        self._exact += int((truth == predicted).all(1).sum())
        self._examples += len(truth)
        self._loss += loss_sum
        self._bins += reliability_bins(scores.ravel(), truth.ravel())
        self._scores.add(truth, scores)

    @property
    def is_empty(self) -> bool:
        return not self._examples

    def result(self, bad_rows: int = 0) -> MultiLabelEvaluation:
        """
        Raises:
            ValueError: there was no example.
        """
        counts = torch.from_numpy(self._counts)
        metrics = MultiLabelMetrics.from_counts(counts, self._exact, self._examples, self._loss, self._names)
        truth, scores = self._scores.rows()
        numbers = range(len(self._names))
        areas = [binary_auroc(truth[:, number], scores[:, number]) for number in numbers]
        precisions = [average_precision(truth[:, number], scores[:, number]) for number in numbers]
        return MultiLabelEvaluation(
            metrics=metrics,
            labels=self._figures(areas, precisions),
            auroc=known_mean(areas),
            micro_auroc=binary_auroc(truth.ravel(), scores.ravel()),
            average_precision=known_mean(precisions),
            micro_average_precision=average_precision(truth.ravel(), scores.ravel()),
            score_examples=len(truth),
            ece=calibration_error(self._bins),
            reliability=ReliabilityBin.of(self._bins),
            bad_rows=bad_rows,
        )

    def _figures(self, areas: Sequence[float | None], precisions: Sequence[float | None]) -> list[LabelFigures]:
        return [
            LabelFigures(
                name=name,
                auroc=areas[number],
                average_precision=precisions[number],
                threshold=float(self._thresholds[number]),
                **figures_of(self._counts, number),
            )
            for number, name in enumerate(self._names)
        ]


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """The area under the steps of precision over recall, equal scores at once; None where nothing is positive.

    Args:
        positive: bool (examples,). scores: (examples,).
    """
    positives = int(positive.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(positive[order])[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / positives)
