"""Logistic regression by scikit-learn, its C chosen on validation rows."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penstock.engine.study.trials import AT_THE_END

Features = Any  # float32 (rows, features): an array, or a csr_matrix

GRID = tuple(4.0**power for power in range(-3, 7))  # of C for TF-IDF: 1/64 to 4,096
_MAX_ITERATIONS = 300
_TOLERANCE = (1e-4, 1e-3)  # of the gradient of the mean loss, least and most; see `_tolerance`


@dataclass(frozen=True)
class Logistic:
    """
    Attributes:
        weights: float32 (features, classes); one column for two classes.
        intercepts: float32 (classes,); likewise.
        classes: int64: those that it has seen, ascending. num_labels: all that there are.
        unfinished: whether the solver was stopped before it converged.
    """

    weights: np.ndarray
    intercepts: np.ndarray
    classes: np.ndarray
    num_labels: int
    unfinished: bool = False

    @property
    def parameters(self) -> int:
        return self.weights.size + self.intercepts.size

    def probabilities(self, features: Features) -> np.ndarray:
        """float32 (rows, num_labels)."""
        logits = np.asarray(features @ self.weights, np.float32) + self.intercepts
        if len(self.classes) == 2:
            logits = np.concatenate([np.zeros_like(logits), logits], 1)
        logits -= logits.max(1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(1, keepdims=True)
        if len(self.classes) == self.num_labels:
            return logits
        every = np.zeros((len(logits), self.num_labels), np.float32)
        every[:, self.classes] = logits
        return every

    @classmethod
    def untrained(cls, features: int, labels: np.ndarray, num_labels: int) -> "Logistic":
        """A model of the size that `fit_logistic` makes."""
        classes = np.unique(labels)
        columns = 1 if len(classes) <= 2 else len(classes)
        return cls(np.zeros((features, columns), np.float32), np.zeros(columns, np.float32), classes, num_labels)


@dataclass(frozen=True)
class Choice:
    """The value of C that is best on validation rows.

    Attributes:
        model: trained with it. note: that it is at the end of the range; empty if not.
    """

    c: float
    accuracy: float
    model: Logistic
    note: str


def fit_logistic(
    features: Features, labels: np.ndarray, num_labels: int, values: Iterable[float], threads: int
) -> Iterable[tuple[float, Logistic]]:
    """Yields (C, model) for each of the values of C.

    Each starts from zero: from the solution for another C, whose gradient is small already, the solver would not move.

    Args:
        features: float32 (rows, features). labels: int64 (rows,).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if len(np.unique(labels)) < 2:
        for value in values:
            yield value, Logistic.untrained(features.shape[1], labels, num_labels)
        return
    solver: Any = LogisticRegression(max_iter=_MAX_ITERATIONS, tol=_tolerance(len(labels)))
    for value in values:
        with warnings.catch_warnings(), threadpool_limits(threads):
            warnings.simplefilter("ignore", ConvergenceWarning)
            solver.set_params(C=value).fit(features, labels)
        weights = np.ascontiguousarray(solver.coef_.T, np.float32)
        unfinished = int(solver.n_iter_.max()) >= _MAX_ITERATIONS
        yield value, Logistic(weights, solver.intercept_.astype(np.float32), solver.classes_, num_labels, unfinished)


def _tolerance(rows: int) -> float:
    """What a rare feature contributes to the gradient of the mean loss falls with the number of rows.

    Measured: on thousands of rows 1e-3 is as good on other rows as 1e-4, in a quarter of the time; on 100,000 court
    turns it costs two points of accuracy.
    """
    return min(max(10 / rows, _TOLERANCE[0]), _TOLERANCE[1])


def choose_c(
    models: Iterable[tuple[float, Logistic]],
    features: Features,
    labels: np.ndarray,
    name: str,
    grid: Sequence[float] = GRID,
    *,
    by_loss: bool = False,
    patience: int = 2,
) -> Choice:
    """
    Args:
        models: with values of C, in the order in which they are tried. features, labels: of the validation rows.
        name: of the setting, for the note. grid: all values that there are, ascending.
        by_loss: the lowest loss is best, not the highest accuracy, which counts between equals then.
        patience: values that are no better, after which the rest is not tried.
    """
    best: tuple[float, float] | None = None
    chosen: tuple[float, float, Logistic] | None = None
    since = 0
    for value, model in models:
        scores = model.probabilities(features)
        loss = -np.log(np.maximum(scores[np.arange(len(labels)), labels], 1e-30), dtype=np.float64).mean()
        accuracy = float((scores.argmax(1) == labels).mean())
        quality = (-float(loss), accuracy) if by_loss else (accuracy, -float(loss))
        if best is None or quality > best:
            best, chosen, since = quality, (value, accuracy, model), 0
        else:
            since += 1
        if since == patience:
            break
    assert chosen is not None
    c, accuracy, model = chosen
    note = f"{name}={c:g} {AT_THE_END} ({grid[0]:g} to {grid[-1]:g})" if c in (grid[0], grid[-1]) else ""
    return Choice(c, accuracy, model, note)


def settled_notes(model: Logistic) -> Sequence[str]:
    return (f"the solver was stopped after {_MAX_ITERATIONS} iterations",) if model.unfinished else ()
