"""How a model is trained unless told otherwise: a pure function of the kind of model and of the training set."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_LARGE = 100_000  # examples from which speed counts for more than the number of steps
_LARGE_TOKENS = 8_192


@dataclass(frozen=True)
class TrainingSet:
    """What the recipe goes by.

    Attributes:
        examples: training rows, before a validation split is taken off.
        mean_length, max_length: tokens of their texts.
        encoder_width: units of the encoder's hidden states, where an encoder is fine-tuned.
    """

    examples: int
    mean_length: float
    max_length: int
    encoder_width: int | None = None

    @classmethod
    def of(cls, lengths: np.ndarray, encoder_width: int | None = None) -> "TrainingSet":
        """
        Args:
            lengths: int32, tokens of each training row; one at least.
        """
        return cls(len(lengths), float(lengths.mean(dtype=np.float64)), int(lengths.max()), encoder_width)


def recipe(kind: str, data: TrainingSet) -> dict[str, Any]:
    """Settings {"section.key": value}.

    Small sets are repeated more often and in smaller steps: what limits them is the number of steps, not the time. An
    encoder leaves the most frequent class after some hundred steps only, whatever the size. Early stopping ends what no
    longer gains; a small set's evaluations come so fast and are so coarse that it waits for more of them. A small set
    keeps every fifth example for validation, others every tenth.
    """
    size = data.examples
    epochs = most_epochs(kind, size)
    tokens = max(data.max_length, round(_batch_size(kind, size) * data.mean_length))
    encoder = kind == "encoder"
    return {
        "data.tokens_per_batch": max(tokens, _LARGE_TOKENS) if size >= _LARGE else tokens,
        "data.validation_fraction": 0.2 if size < 1_000 else 0.1,
        "data.mode": "pack" if encoder else "bucket",
        "training.epochs": epochs,
        "training.patience": max(4, round(epochs / 3)),
        "training.learning_rate": encoder_learning_rate(data.encoder_width or 768) if encoder else 2e-3,
    }


def most_epochs(kind: str, size: int) -> int:
    if kind == "encoder":
        return _between(3, round(7_000 / size), 20)
    return _between(2, round(24 * (500 / size) ** 0.5), 40)


def encoder_learning_rate(width: int) -> float:
    """The peak learning rate for fine-tuning an encoder with hidden states of `width` units.

    The usual 5e-5 of BERT-base at 768 units, scaled as Adam's rate scales with width (Yang et al. 2022, Tensor Programs
    V, table 3): a small encoder learns too slowly at a large one's rate.
    """
    return min(5e-5 * 768 / width, 2e-4)


def _batch_size(kind: str, size: int) -> int:
    """Examples in a batch, on average."""
    if kind == "encoder":
        return 16 if size < 4_000 else 32
    return 16 if size < 1_000 else 32 if size < 10_000 else 64


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
