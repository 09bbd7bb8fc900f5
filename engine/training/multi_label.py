"""What a classifier that answers for each label by itself is judged by, and where it draws the line."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from penstock.engine.models.build import THRESHOLDS
from penstock.engine.training.metrics import MAX_NAMED, Metrics
from penstock.engine.training.pretraining_metrics import PretrainingMetrics

DEFAULT_THRESHOLD = 0.5
MIN_POSITIVES = 10  # validation rows that have a label, for a threshold of its own


@dataclass(frozen=True)
class MultiLabelMetrics(Metrics):
    """Figures of one evaluation of examples with any number of labels each.

    Attributes:
        accuracy: subset accuracy, the share of examples all of whose labels are right, and no other is predicted.
        macro_f1: mean of F1 over the labels that occur or are predicted.
        loss: mean binary cross-entropy per example and label, nats.
        weighted_f1: mean of F1 over the labels, weighted by how often they occur.
        micro_f1, micro_precision, micro_recall: over all examples and labels together.
        hamming_loss: share of the pairs of example and label that are wrong.
        labels_per_example, predicted_per_example: how many there are, and how many are predicted, on average.
    """

    micro_f1: float = 0.0
    micro_precision: float = 0.0
    micro_recall: float = 0.0
    hamming_loss: float = 0.0
    labels_per_example: float = 0.0
    predicted_per_example: float = 0.0

    @classmethod
    def from_counts(
        cls, counts: Tensor, exact: int, examples: int, loss_sum: float, label_names: Sequence[str]
    ) -> "MultiLabelMetrics":
        """
        Args:
            counts: (3, num_labels): for each label right predictions, predictions, examples that have it.
            exact: examples all of whose labels are right.
            loss_sum: of the examples, each the mean over the labels.

        Raises:
            ValueError: there were no examples.
        """
        if not examples:
            raise ValueError("there are no examples to judge by")
        hits, predicted, support = counts.double()
        f1 = 2 * hits / (predicted + support).clamp(min=1)
        known = predicted + support > 0
        never = ((support > 0) & (predicted == 0)).nonzero()[:, 0]
        named = never[support[never].argsort(descending=True, stable=True)][:MAX_NAMED].tolist()
        all_hits, all_predicted, all_support = (float(each.sum()) for each in (hits, predicted, support))
        return cls(
            accuracy=exact / examples,
            macro_f1=float(f1[known].mean()) if bool(known.any()) else 0.0,
            loss=loss_sum / examples,
            num_examples=examples,
            weighted_f1=float(f1 @ support) / max(all_support, 1.0),
            num_classes=len(support),
            num_never_predicted=len(never),
            never_predicted=tuple(label_names[number] for number in named),
            micro_f1=2 * all_hits / max(all_predicted + all_support, 1.0),
            micro_precision=all_hits / max(all_predicted, 1.0),
            micro_recall=all_hits / max(all_support, 1.0),
            hamming_loss=(all_predicted + all_support - 2 * all_hits) / (examples * len(support)),
            labels_per_example=all_support / examples,
            predicted_per_example=all_predicted / examples,
        )

    def figure(self, metric: str) -> float:
        return getattr(self, metric)

    def summary(self) -> str:
        line = (
            f"micro-F1 {self.micro_f1:.4f}, macro-F1 {self.macro_f1:.4f}, all labels right {self.accuracy:.4f}, "
            f"loss {self.loss:z.4f} on {self.num_examples:,} examples"
        )
        return "; ".join([line, *self.caveats()])

    def caveats(self) -> list[str]:
        found = super().caveats()
        return [f"{self.labels_per_example:.2f} labels an example, {self.predicted_per_example:.2f} predicted", *found]


def read_metrics(record: dict[str, Any]) -> Any:
    """Metrics from the JSON of a run, of the kind that they were."""
    if "num_told" in record:
        return PretrainingMetrics(**record)
    return MultiLabelMetrics(**record) if "hamming_loss" in record else Metrics(**record)


def thresholds_of(config: Any, num_labels: int) -> np.ndarray:
    """float64 (num_labels,): the thresholds that a model's configuration keeps, an object or a mapping; 0.5 for none.

    A label is predicted where its probability is at least its threshold.
    """
    kept = config.get(THRESHOLDS) if isinstance(config, dict) else getattr(config, THRESHOLDS, None)
    return np.full(num_labels, DEFAULT_THRESHOLD) if kept is None else np.asarray(kept, np.float64)


@dataclass(frozen=True)
class Thresholds:
    """
    Attributes:
        values: by label, in the order of the model's labels.
        shared: the one of all labels together, by micro-F1; of the labels with fewer than MIN_POSITIVES validation
            rows it is also their own.
        num_own: labels with one of their own.
        micro_f1_before, micro_f1_after: on the validation rows, at 0.5 and at these.
        macro_f1_before, macro_f1_after: the same of macro-F1.
    """

    values: tuple[float, ...]
    shared: float
    num_own: int
    micro_f1_before: float
    micro_f1_after: float
    macro_f1_before: float
    macro_f1_after: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))  # JSON gives a list

    def describe(self) -> str:
        own = f"{self.num_own:,} labels of their own" if self.num_own else "none of a label's own"
        return (
            f"thresholds: {self.shared:.3f} for all labels, {own} ({MIN_POSITIVES} validation rows or more); on the "
            f"validation rows micro-F1 goes from {self.micro_f1_before:.4f} to {self.micro_f1_after:.4f}, macro-F1 "
            f"from {self.macro_f1_before:.4f} to {self.macro_f1_after:.4f}, against 0.5 for all"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "values": list(self.values)}


def choose_thresholds(probabilities: np.ndarray, targets: np.ndarray) -> Thresholds:
    """For each label with examples enough the threshold of the best F1; for the others the one best for all labels.

    Args:
        probabilities: float32 (examples, num_labels). targets: 0 or 1, of the same shape.
    """
    truth = targets > 0
    shared = best_threshold(probabilities.ravel(), truth.ravel())
    own = np.flatnonzero(truth.sum(0) >= MIN_POSITIVES)
    values = np.full(truth.shape[1], shared)
    for label in own:
        values[label] = best_threshold(probabilities[:, label], truth[:, label])
    before, after = (_f1(probabilities >= line, truth) for line in (DEFAULT_THRESHOLD, values))
    return Thresholds(tuple(values.tolist()), shared, len(own), before[0], after[0], before[1], after[1])


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Where F1 is best, if what has at least this score counts as found; between two scores. 0.5 if nothing is true.

    Args:
        scores: (examples,), 0 to 1. truth: bool (examples,).
    """
    if not truth.any():
        return DEFAULT_THRESHOLD
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # the last of each run of equal scores
    f1 = 2 * np.cumsum(truth[order])[ends] / (ends + 1 + truth.sum())
    best = int(np.argmax(f1))
    lowest = ranked[ends[best]]
    below = ranked[ends[best] + 1] if ends[best] + 1 < len(ranked) else 0.0
    return float((lowest + below) / 2)


def _f1(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(micro, macro)"""
    hits, wholes = (predicted & truth).sum(0), predicted.sum(0) + truth.sum(0)
    known = wholes > 0
    macro = float((2 * hits[known] / wholes[known]).mean()) if known.any() else 0.0
    return float(2 * hits.sum() / max(wholes.sum(), 1)), macro
