"""What pretraining is judged by."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PretrainingMetrics:
    """Figures of one evaluation, of texts that are not trained on.

    Attributes:
        loss: mean over the tokens that were to tell, nats; of hidden ones over the whole vocabulary.
        accuracy: share of them that was told right.
        num_told: how many there were. num_examples: texts.
    """

    loss: float
    accuracy: float
    num_told: int
    num_examples: int

    def better_than(self, other: "PretrainingMetrics | None", metric: str) -> bool:
        """The lower loss is better, whatever the metric."""
        return other is None or self.loss < other.loss

    def summary(self) -> str:
        """One line."""
        return (
            f"loss {self.loss:z.4f}, accuracy {self.accuracy:.4f} of {self.num_told:,} tokens told, "
            f"in {self.num_examples:,} texts"
        )
