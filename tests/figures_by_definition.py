"""What figures of an evaluation are, as their definitions say it and slowly; NaN where they have no value."""

import math

import numpy as np


def precision_recall_f1(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """One class; both bool, (examples,)."""
    hits = sum(bool(a and b) for a, b in zip(truth, predicted, strict=True))
    positives, given = int(truth.sum()), int(predicted.sum())
    return (
        hits / given if given else math.nan,
        hits / positives if positives else math.nan,
        2 * hits / (positives + given) if positives + given else math.nan,
    )


def auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a positive and a negative example that are ranked right, a tie being half right."""
    above = scores[truth][:, None] - scores[~truth][None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean()) if above.size else math.nan


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """The precision at each score, weighted by the recall that it adds."""
    total, recall_before = 0.0, 0.0
    for line in sorted(set(scores.tolist()), reverse=True):
        precision, recall, _ = precision_recall_f1(truth, scores >= line)
        total += (recall - recall_before) * precision
        recall_before = recall
    return total


def matthews(truth: np.ndarray, predicted: np.ndarray, num_labels: int) -> float:
    """The correlation of indicators of the classes (Gorodkin 2004); 0 where one of the two does not vary."""
    x, y = (np.eye(num_labels)[values] for values in (truth, predicted))
    x, y = x - x.mean(0), y - y.mean(0)
    scale = math.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale else 0.0


def confusion(truth: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    counts = np.zeros((num_labels, num_labels), int)
    for label, found in zip(truth.tolist(), predicted.tolist(), strict=True):
        counts[label, found] += 1
    return counts
