"""What both classifiers return."""

from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

REDUCTIONS = ("mean", "sum", "none")


def classifier_output(logits: Tensor, labels: Tensor | None, reduction: str) -> SequenceClassifierOutput:
    """Logits and, given labels, their cross-entropy, computed in float32 at least.

    Args:
        logits: (batch, num_labels). labels: integer, (batch,), or None.
        reduction: "mean" over the examples, "sum", or "none" for one loss each. A training step made of several batches
            divides the sum by the number of the whole step's examples.
    Raises:
        ValueError: another reduction, or labels of another shape.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if labels is None:
        return SequenceClassifierOutput(logits=logits)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)} for {logits.shape[0]} examples")
    wide = logits if logits.element_size() >= 4 else logits.float()
    return SequenceClassifierOutput(loss=F.cross_entropy(wide, labels.long(), reduction=reduction), logits=logits)
