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

    Small sets are repeated more often and in smaller steps: what limits them is the number of steps, not the time.
    Early stopping ends what no longer gains. A small set keeps every fifth example for validation, others every tenth.

    Args:
        mean_length, max_length: tokens of a training text.
    """
    if kind == "encoder":
        epochs = _between(3, round(4_000 / size), 10)
        examples = 16 if size < 1_000 else 32
        patience = 3
    else:
        epochs = _between(2, round(40 * (500 / size) ** 0.5), 40)
        examples = 16 if size < 1_000 else 32 if size < 10_000 else 64
        patience = 4
    return {
        "training.epochs": epochs,
        "training.patience": patience,
        "data.tokens_per_batch": max(max_length, round(examples * mean_length)),
        "data.validation_fraction": 0.2 if size < 1_000 else 0.1,
    }


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
