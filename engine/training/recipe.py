"""How a model is trained unless told otherwise: a pure function of the kind of model and of the training set."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_LARGE = 100_000  # examples from which speed counts for more than the number of steps
_LARGE_TOKENS = 8_192
_PRETRAINING_TOKENS, _PRETRAINING_STEPS = 50_000_000, 5_000


@dataclass(frozen=True)
class TrainingSet:
    """What the recipe goes by.

    Attributes:
        examples: training rows, before a validation split is taken off.
        mean_length, max_length: tokens that are read of their texts.
        encoder_width: units of the encoder's hidden states, where an encoder is fine-tuned.
        labels: classes, or labels that a text may have.
    """

    examples: int
    mean_length: float
    max_length: int
    encoder_width: int | None = None
    labels: int = 2

    @classmethod
    def of(cls, lengths: np.ndarray, encoder_width: int | None = None, labels: int = 2) -> "TrainingSet":
        """
        Args:
            lengths: int32, tokens of each training row; one at least.
        """
        return cls(len(lengths), float(lengths.mean(dtype=np.float64)), int(lengths.max()), encoder_width, labels)


def recipe(kind: str, data: TrainingSet) -> dict[str, Any]:
    """Settings {"section.key": value}.

    Small sets are repeated more often and in smaller steps: what limits them is the number of steps, not the time. An
    encoder leaves the most frequent class after some hundred steps only, whatever the size. Early stopping ends what no
    longer gains; a small set's evaluations come so fast and are so coarse that it waits for more of them. A small set
    keeps every fifth example for validation, others every tenth.
    """
    if kind == "bag":
        return _bag(data)
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


def _bag(data: TrainingSet) -> dict[str, Any]:
    """The recipe of a bag of n-grams.

    Adagrad takes long steps for n-grams that it sees for the first time, so that one or two passes over a large set do;
    a small set gains by eight (benchmarks/recipes/RESULTS.md).
    A text's vector needs no more dimensions than there are classes to tell apart, and each costs memory traffic: 16 are
    one line of a processor's cache. There is a bucket for every two n-grams, up to 2^21.
    """
    size = data.examples
    batch = 16 if size < 20_000 else 32 if size < 100_000 else 64 if size < 500_000 else 256
    return {
        "model.embedding_size": _between(16, _power_of_two(data.labels), 64),
        "model.buckets": _between(1 << 14, _power_of_two(size * data.mean_length), 1 << 21),
        "data.tokens_per_batch": max(data.max_length, round(batch * data.mean_length)),
        "data.validation_fraction": 0.2 if size < 1_000 else 0.1,
        "data.mode": "pack",
        "training.epochs": 8 if size < 5_000 else 4 if size < 50_000 else 2 if size < 500_000 else 1,
        "training.patience": 4,
        "training.learning_rate": 0.2,
        "training.precision": "fp32",
    }


def pretraining_recipe(kind: str, data: TrainingSet, tokens: int | None = None) -> dict[str, Any]:
    """As `recipe`, of a run that learns from texts without labels.

    It repeats few texts more often, and is judged by a thousand of them. An LSTM that reads little takes smaller steps:
    with a million tokens in batches of 2,048 it is where three million in batches of 8,192 bring it (docs/log.md).

    Args:
        tokens: that it reads at most; None for no limit.
    """
    encoder = kind == "encoder"
    size = data.examples
    steps_of = (_PRETRAINING_TOKENS if tokens is None else tokens) // _PRETRAINING_STEPS
    batch = _LARGE_TOKENS if encoder else _between(2_048, steps_of, _LARGE_TOKENS)
    return {
        "data.tokens_per_batch": max(data.max_length, batch),
        "data.validation_fraction": min(0.1, 1_000 / size),
        "data.mode": "pack" if encoder else "bucket",
        "training.epochs": _between(1, round(_PRETRAINING_TOKENS / (size * data.mean_length)), 20),
        "training.patience": 0,
        "training.learning_rate": encoder_learning_rate(data.encoder_width or 768) if encoder else 2e-3,
    }


def most_tokens(kind: str, positions: int | None = None) -> int | None:
    """How many tokens of a text a model reads; None for all of them.

    Attention's cost grows with the square of the length; an LSTM's with the length alone, but it forgets: 1,024 tokens
    hold all of nearly every review. A bag's cost is that of reading.

    Args:
        positions: of an encoder: it has no more.
    """
    if kind == "encoder":
        return min(512, positions or 512)
    return 1_024 if kind == "lstm" else None


def _power_of_two(least: float) -> int:
    return 1 << (max(1, round(least)) - 1).bit_length()


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
