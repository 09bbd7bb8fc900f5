"""What both classifiers return."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

REDUCTIONS = ("mean", "sum", "none")
MULTI_LABEL = "multi_label_classification"  # transformers' name, at which its pipelines take a sigmoid of each logit


def is_multi_label(model: Any) -> bool:
    """Whether a model answers for each label by itself, instead of choosing one."""
    return getattr(getattr(model, "config", None), "problem_type", None) == MULTI_LABEL


def multi_label_loss(logits: Tensor, targets: Tensor, reduction: str, positive_weights: Tensor | None = None) -> Tensor:
    """An example's loss is the mean over the labels of the binary cross-entropy, as in transformers.

    Args:
        logits, targets: float32 (batch, num_labels), targets 0 or 1.
        reduction: over the examples, as of `classifier_output`.
        positive_weights: float32 (num_labels,): what the loss of a label weighs where the label is there.
    """
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=positive_weights).mean(-1)
    return {"mean": each.mean, "sum": each.sum}[reduction]() if reduction != "none" else each


def distillation_loss(
    logits: Tensor,
    teacher: Tensor,
    labels: Tensor,
    labelled: Tensor,
    *,
    temperature: float,
    mix: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """float32 (batch,), nats: T² KL(softmax(teacher / T) || softmax(logits / T)) (Hinton, Vinyals & Dean 2015,
    arXiv:1503.02531), and of the labelled examples (1 - mix) of that and mix of the cross-entropy with the label.

    Args:
        logits, teacher: float32 (batch, num_labels). labels: int64 (batch,). labelled: bool (batch,).
    """
    ours, theirs = ((each / temperature).log_softmax(-1) for each in (logits, teacher))
    soft = temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    hard = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return soft.where(~labelled, mix * hard + (1 - mix) * soft)


def classifier_output(
    logits: Tensor, labels: Tensor | None, reduction: str, multi_label: bool = False
) -> SequenceClassifierOutput:
    """Logits and, given labels, their cross-entropy, computed in float32 at least.

    Args:
        logits: (batch, num_labels). labels: integer, (batch,), or None; of a multi-label model, 0 or 1 for each label,
            (batch, num_labels).
        reduction: "mean" over the examples, "sum", or "none" for one loss each. A training step made of several batches
            divides the sum by the number of the whole step's examples.
    Raises:
        ValueError: another reduction, or labels of another shape.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if labels is None:
        return SequenceClassifierOutput(logits=logits)
    wanted = logits.shape if multi_label else logits.shape[:1]
    if labels.shape != wanted:
        each = f", of {logits.shape[1]} labels each" if multi_label else ""
        raise ValueError(f"labels has shape {tuple(labels.shape)} for {logits.shape[0]} examples{each}")
    wide = logits if logits.element_size() >= 4 else logits.float()
    if multi_label:
        return SequenceClassifierOutput(loss=multi_label_loss(wide, labels.to(wide.dtype), reduction), logits=logits)
    return SequenceClassifierOutput(loss=F.cross_entropy(wide, labels.long(), reduction=reduction), logits=logits)
