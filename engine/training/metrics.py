"""What a classifier is judged by."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metrics:
    """Figures of one evaluation.

    Attributes:
        accuracy: share of examples whose label has the highest logit.
        macro_f1: mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that occur or are predicted.
        loss: mean cross-entropy per example, nats.
        num_examples: examples evaluated.
    """

    accuracy: float
    macro_f1: float
    loss: float
    num_examples: int

    @classmethod
    def from_confusion(cls, confusion: Tensor, loss_sum: float) -> "Metrics":
        """From counts (num_labels, num_labels), row = label, column = prediction, and the summed loss."""
        confusion = confusion.double()
        examples = confusion.sum()
        hits = confusion.diagonal()
        seen = confusion.sum(0) + confusion.sum(1)
        f1 = (2 * hits / seen)[seen > 0]
        return cls(
            accuracy=float(hits.sum() / examples),
            macro_f1=float(f1.mean()),
            loss=loss_sum / float(examples),
            num_examples=int(examples),
        )

    def better_than(self, other: "Metrics | None", metric: str) -> bool:
        """Strictly better by `metric`; between equals the lower loss wins."""
        if other is None:
            return True
        sign = -1 if metric == "loss" else 1
        mine, theirs = sign * getattr(self, metric), sign * getattr(other, metric)
        return (mine, -self.loss) > (theirs, -other.loss)


def confusion_counts(labels: Tensor, predictions: Tensor, num_labels: int) -> Tensor:
    """int64 (num_labels, num_labels): how often label i was predicted as j; labels and predictions (batch,)."""
    return torch.bincount(labels * num_labels + predictions, minlength=num_labels**2).view(num_labels, num_labels)
