"""What a classifier is judged by."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_NAMED = 3  # classes named in a line


@dataclass(frozen=True)
class Metrics:
    """Figures of one evaluation, all of them from the confusion matrix and the loss.

    Those with the default None are not in runs of older versions.

    Attributes:
        accuracy: share of examples whose label has the highest logit; it is also the micro-averaged F1.
        macro_f1: mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that occur or are predicted.
        loss: mean cross-entropy per example, nats.
        num_examples: examples evaluated.
        weighted_f1: mean of F1 over the classes, weighted by how often they occur.
        balanced_accuracy: mean recall over the classes that occur.
        mcc: Matthews' correlation coefficient for several classes (Gorodkin 2004), -1 to 1; 0 for a constant answer.
        majority_share: share of the most frequent class: the accuracy of always answering it.
        num_classes: classes that the model knows.
        num_never_predicted: those that occur among the examples and are predicted for none of them;
        never_predicted: the names of the most frequent of them, `MAX_NAMED` at most.
    """

    accuracy: float
    macro_f1: float
    loss: float
    num_examples: int
    weighted_f1: float | None = None
    balanced_accuracy: float | None = None
    mcc: float | None = None
    majority_share: float | None = None
    num_classes: int | None = None
    num_never_predicted: int | None = None
    never_predicted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "never_predicted", tuple(self.never_predicted))  # JSON gives a list

    @classmethod
    def from_confusion(cls, confusion: Tensor, loss_sum: float, label_names: Sequence[str] | None = None) -> "Metrics":
        """From counts (num_labels, num_labels), row = label, column = prediction, and the summed loss.

        Args:
            label_names: for `never_predicted`; numbers where there are none.

        Raises:
            ValueError: nothing was counted.
        """
        confusion = confusion.double()
        examples = float(confusion.sum())
        if not examples:
            raise ValueError("there are no examples to judge by")
        hits, predicted, support = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
        f1 = 2 * hits / (predicted + support).clamp(min=1)
        never = ((support > 0) & (predicted == 0)).nonzero()[:, 0]
        named = never[support[never].argsort(descending=True, stable=True)][:MAX_NAMED].tolist()
        names = label_names or [str(number) for number in range(len(support))]
        # products of counts, as shares so that they stay small
        expected = float(predicted @ support) / examples**2
        spread = (1 - float(predicted @ predicted) / examples**2) * (1 - float(support @ support) / examples**2)
        accuracy = float(hits.sum()) / examples
        return cls(
            accuracy=accuracy,
            macro_f1=float(f1[predicted + support > 0].mean()),
            loss=loss_sum / examples,
            num_examples=int(examples),
            weighted_f1=float(f1 @ support) / examples,
            balanced_accuracy=float((hits / support)[support > 0].mean()),
            mcc=(accuracy - expected) / spread**0.5 if spread > 1e-15 else 0.0,
            majority_share=float(support.max()) / examples,
            num_classes=len(support),
            num_never_predicted=len(never),
            never_predicted=tuple(names[number] for number in named),
        )

    def figure(self, metric: str) -> float:
        """The value of `training.metric`; of one label each, micro-F1 is the accuracy."""
        return self.accuracy if metric == "micro_f1" else getattr(self, metric)

    def better_than(self, other: "Metrics | None", metric: str) -> bool:
        """Strictly better by `metric`; between equals the lower loss wins."""
        if other is None:
            return True
        sign = -1 if metric == "loss" else 1
        mine, theirs = sign * self.figure(metric), sign * other.figure(metric)
        return (mine, -self.loss) > (theirs, -other.loss)

    def summary(self) -> str:
        """One line: the figures, and what puts the accuracy into its place."""
        line = (
            f"accuracy {self.accuracy:.4f}, macro-F1 {self.macro_f1:.4f}, loss {self.loss:z.4f} "
            f"on {self.num_examples:,} examples"
        )
        return "; ".join([line, *self.caveats()])

    def caveats(self) -> list[str]:
        """What stands beside the accuracy wherever it is printed; nothing for figures of older runs."""
        found = []
        if self.majority_share is not None:
            found.append(f"the most frequent class alone would make {self.majority_share:.4f}")
        if self.num_never_predicted:
            names = ", ".join(self.never_predicted) + (", …" if self.num_never_predicted > MAX_NAMED else "")
            verb = "is" if self.num_never_predicted == 1 else "are"
            found.append(
                f"{self.num_never_predicted:,} of {self.num_classes:,} classes {verb} never predicted: {names}"
            )
        return found


def count_confusion(confusion: Tensor, labels: Tensor, predictions: Tensor) -> None:
    """Adds a batch to int64 (num_labels, num_labels): how often label i was predicted as j; labels and predictions
    (batch,). What it costs does not depend on the number of labels."""
    confusion.view(-1).index_add_(0, labels * len(confusion) + predictions, torch.ones_like(labels))
