"""`training.class_weights`: what an example of each class weighs in the training loss."""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from penstock.engine.data.label_lists import counts_of
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError

_SHOWN = 10  # labels named in a message


def class_weights(weights: str | Mapping[str, float] | None, store: Store, rows: np.ndarray) -> np.ndarray | None:
    """float64 (num_labels,): what a run's setting means for its training rows; None for no weights.

    Args:
        weights: the setting. rows: int64, those that are trained on.

    Raises:
        ConfigError: there is no such label.
    """
    if not store.multi_label:
        return resolve_class_weights(weights, store.label_names, store.labels[rows])
    counts = counts_of(store.label_offsets, store.label_ids, rows, store.num_labels)
    return resolve_positive_weights(weights, store.label_names, counts, len(rows))


def resolve_class_weights(
    weights: str | Mapping[str, float] | None, label_names: Sequence[str], labels: np.ndarray
) -> np.ndarray | None:
    """float64 (num_labels,), or None for no weights.

    Args:
        weights: "balanced" (rows / (classes x rows of the class), as scikit-learn has it), or numbers by label, where
            labels that are not named weigh 1.
        labels: int64, those of the training rows.

    Raises:
        ConfigError: there is no such label.
    """
    if not isinstance(weights, str):
        return _by_label(weights, label_names)
    counts = np.bincount(labels, minlength=len(label_names))
    present = int((counts > 0).sum())
    # a class without training rows has no loss to weigh
    return np.divide(len(labels), present * counts, out=np.ones(len(counts)), where=counts > 0)


def resolve_positive_weights(
    weights: str | Mapping[str, float] | None, label_names: Sequence[str], counts: np.ndarray, rows: int
) -> np.ndarray | None:
    """As `resolve_class_weights`, of rows with lists of labels: what the loss of a label weighs where it is there.

    Args:
        weights: "balanced" (rows without the label / rows with it), or numbers by label.
        counts: int64 (num_labels,), of the training rows that have each label. rows: how many there are in all.

    Raises:
        ConfigError: there is no such label.
    """
    if not isinstance(weights, str):
        return _by_label(weights, label_names)
    # a label that no row has, or every row, has nothing to balance
    return np.divide(rows - counts, counts, out=np.ones(len(counts)), where=(counts > 0) & (counts < rows))


def _by_label(weights: Mapping[str, float] | None, label_names: Sequence[str]) -> np.ndarray | None:
    if weights is None:
        return None
    numbers = {name: index for index, name in enumerate(label_names)}
    result = np.ones(len(label_names))
    for name, weight in weights.items():
        if name not in numbers:
            close = difflib.get_close_matches(name, numbers, n=1)
            more = "" if len(numbers) <= _SHOWN else f" and {len(numbers) - _SHOWN:,} more"
            hint = f"did you mean {close[0]!r}?" if close else f"the labels are {', '.join(label_names[:_SHOWN])}{more}"
            raise ConfigError(f"training.class_weights: there is no label {name!r}; {hint}")
        result[numbers[name]] = weight
    return result
