"""The model families that a study compares, and how each is trained unless told otherwise."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """
    Attributes:
        name: as on the command line and in file names.
        title: as in tables.
        model: settings of the `model` section; `encoder` is added where it is needed.
    """

    name: str
    title: str
    model: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.model["kind"]

    @property
    def needs_encoder(self) -> bool:
        return self.kind == "encoder" or self.model.get("embeddings") == "encoder"


FAMILIES = {
    family.name: family
    for family in (
        Family("lstm", "BiLSTM from scratch", {"kind": "lstm"}),
        Family("lstm-embeddings", "BiLSTM, pretrained embeddings", {"kind": "lstm", "embeddings": "encoder"}),
        Family("encoder", "fine-tuned encoder", {"kind": "encoder"}),
    )
}
REFERENCE = "encoder"  # the family that gaps are measured from


def recipe(kind: str, size: int, mean_length: float, max_length: int) -> dict[str, Any]:
    """Settings {"section.key": value} for a training set of `size` examples.

    Small sets are repeated more often and in smaller steps: what limits them is the number of steps, not the time. An
    encoder leaves the most frequent class after some hundred steps only, whatever the size. Early stopping ends what no
    longer gains. A small set keeps every fifth example for validation, others every tenth.

    Args:
        mean_length, max_length: tokens of a training text.
    """
    return {
        "training.epochs": most_epochs(kind, size),
        "training.patience": 4,
        "data.tokens_per_batch": max(max_length, round(_batch_size(kind, size) * mean_length)),
        "data.validation_fraction": 0.2 if size < 1_000 else 0.1,
    }


def _batch_size(kind: str, size: int) -> int:
    """Examples in a batch, in the mean."""
    if kind == "encoder":
        return 16 if size < 4_000 else 32
    return 16 if size < 1_000 else 32 if size < 10_000 else 64


def most_epochs(kind: str, size: int) -> int:
    if kind == "encoder":
        return _between(3, round(7_000 / size), 20)
    return _between(2, round(24 * (500 / size) ** 0.5), 40)


def encoder_learning_rate(width: int) -> float:
    """The peak learning rate for fine-tuning an encoder with hidden states of so many units.

    The usual 5e-5 of BERT-base at 768 units, scaled as Adam's rate scales with width (Yang et al. 2022, Tensor Programs
    V, table 3): a small encoder learns too slowly at a large one's rate.
    """
    return min(5e-5 * 768 / width, 2e-4)


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
