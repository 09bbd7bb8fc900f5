"""`linear`: TF-IDF of token 1-2-grams, logistic regression. It reads whole texts, as far as the store has them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penstock.engine.setting import setting
from penstock.engine.study.baselines.fitting import FitTask, Fitted, read_chunks
from penstock.engine.study.baselines.logistic import (
    GRID,
    Choice,
    Logistic,
    choose_c,
    fit_logistic,
    settled_notes,
)
from penstock.engine.study.baselines.ngrams import Counts, Vocabulary, build_vocabulary, count_ngrams, special_tokens
from penstock.engine.study.subsets import stratified_order

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

VERSION = 3  # 1 and 2 chose C for more than 16,000 rows by those alone
REQUIRES = ("sklearn.linear_model", "threadpoolctl", "scipy.sparse")
_SEARCH_ROWS = 16_000  # of training, with which all of the range of C is tried
_REFIT_SHARE = 0.05  # of validation rows, below which more rows gain nothing that is worth as long a training again
_MAX_TOKENS = 200_000_000  # whose n-grams take two gigabytes while the vocabulary is counted
_MAX_WEIGHTS = 8_000_000  # features x classes, of which the solver keeps 25 copies in float64
_MAX_SCORES = 100_000_000  # rows x classes, of which it keeps three in float32; binds from some hundred classes on


@dataclass(frozen=True)
class Options:
    ngrams: int = setting(2, "tokens of the longest n-gram; the shorter ones count too", minimum=1, maximum=8)
    min_count: int = setting(2, "rows that an n-gram must occur in", minimum=1)
    C: float | None = setting(None, "inverse strength of the L2 penalty; null: chosen by validation", minimum=1e-9)
    refit: bool | None = setting(
        None,
        "train once more with the chosen C on all rows, those of the validation split too; null: of up to "
        f"{_SEARCH_ROWS:,} training rows, or where the split has a twentieth of the rows",
    )


@dataclass
class Linear(Fitted):
    """A trained model.

    Attributes:
        vocabulary: the features. model: from them to classes.
    """

    vocabulary: Vocabulary
    model: Logistic

    @property
    def parameters(self) -> int:
        return self.model.parameters + len(self.vocabulary.idf)

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file(
            {
                "ngrams": np.flatnonzero(self.vocabulary.places >= 0).astype(np.int32),
                "idf": self.vocabulary.idf,
                "weights": self.model.weights,
                "intercepts": self.model.intercepts,
                "classes": self.model.classes,
            },
            folder / "model.safetensors",
            {
                "longest": str(self.vocabulary.longest),
                "silent": json.dumps(np.flatnonzero(self.vocabulary.silent).tolist()),
            },
        )

    def probabilities(self, values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        return self.model.probabilities(self.vocabulary.tfidf(self.vocabulary.counts(values, bounds)))


def fit(task: FitTask) -> Linear:
    """
    Raises:
        ConfigError: there is nothing to choose C by.
    """
    labels, num_labels = task.store.labels, task.store.num_labels
    rows, notes = _within_limits(task)
    if task.options.C is not None:
        return _fit_all(task, rows, task.options.C, notes)
    validation = task.validation("linear.C")
    train = np.setdiff1d(rows, validation, assume_unique=True)
    most = min(_SEARCH_ROWS, max(1, _MAX_SCORES // 4 // num_labels))
    searched = np.sort(train[stratified_order(labels[train], task.settings.seed)[:most]])
    whole = len(searched) == len(train)
    choice, vocabulary, left_out = _search(task, searched, validation, GRID, by_loss=not whole)
    if not whole:
        # The accuracy with a sample forgives answers that are too sure, its loss less so: all rows want no larger C.
        smaller = [value for value in reversed(GRID) if value <= choice.c]
        choice, vocabulary, left_out = _search(task, train, validation, smaller, patience=1)
    worth_it = whole or len(rows) - len(train) >= _REFIT_SHARE * len(rows)
    if worth_it if task.options.refit is None else task.options.refit:
        found = _fit_all(task, rows, choice.c, notes)
    else:
        found = _fitted(task, vocabulary, choice.model, [*notes, *left_out])
    found.chosen = {"linear.C": choice.c}
    found.validation_accuracy, found.validation_examples = choice.accuracy, len(validation)
    found.notes = (*found.notes, *([choice.note] if choice.note else []))
    return found


def untrained(task: FitTask) -> Linear:
    rows, _ = _within_limits(task)
    vocabulary, _ = _vocabulary(task, _counts(task, rows))
    model = Logistic.untrained(len(vocabulary.idf), task.store.labels[rows], task.store.num_labels)
    return Linear(task.store.num_labels, vocabulary, model)


def _fit_all(task: FitTask, rows: np.ndarray, c: float, notes: Sequence[str]) -> Linear:
    vocabulary, features, left_out = _features(task, rows)
    ((_, model),) = fit_logistic(features, task.store.labels[rows], task.store.num_labels, [c], task.threads)
    return _fitted(task, vocabulary, model, [*notes, *left_out])


def _fitted(task: FitTask, vocabulary: Vocabulary, model: Logistic, notes: Sequence[str]) -> Linear:
    return Linear(task.store.num_labels, vocabulary, model, notes=(*notes, *settled_notes(model)))


def _search(
    task: FitTask,
    train: np.ndarray,
    validation: np.ndarray,
    values: Sequence[float],
    *,
    by_loss: bool = False,
    patience: int = 2,
) -> tuple[Choice, Vocabulary, list[str]]:
    labels = task.store.labels
    vocabulary, features, notes = _features(task, train)
    models = fit_logistic(features, labels[train], task.store.num_labels, values, task.threads)
    held_out = _stacked([vocabulary.tfidf(chunk) for chunk in _counts(task, validation)])
    choice = choose_c(models, held_out, labels[validation], "linear.C", by_loss=by_loss, patience=patience)
    return choice, vocabulary, notes


def _within_limits(task: FitTask) -> tuple[np.ndarray, list[str]]:
    """The rows, or as many of them as memory is meant for, with the classes in proportion; and a line that says so."""
    store, rows = task.store, task.rows
    tokens = int(store.lengths[rows].sum(dtype=np.int64))
    most = max(1, _MAX_SCORES // store.num_labels)
    if tokens <= _MAX_TOKENS and len(rows) <= most:
        return rows, []
    order = rows[stratified_order(store.labels[rows], task.settings.seed)]
    by_tokens = int(np.searchsorted(np.cumsum(store.lengths[order], dtype=np.int64), _MAX_TOKENS, "right"))
    limit = f"{_MAX_TOKENS:,} tokens" if by_tokens <= most else f"{most:,} rows in {store.num_labels:,} classes"
    kept = max(1, min(by_tokens, most))
    note = f"trained on {kept:,} of {len(order):,} rows: its limit of memory and time is {limit}"
    return np.sort(order[:kept]), [note]


def _features(task: FitTask, rows: np.ndarray) -> tuple[Vocabulary, "csr_matrix", list[str]]:
    counts = _counts(task, rows)
    vocabulary, notes = _vocabulary(task, counts)
    parts = []
    while counts:  # each is freed when its features are there
        parts.append(vocabulary.tfidf(counts.pop(0)))
    return vocabulary, _stacked(parts), notes


def _counts(task: FitTask, rows: np.ndarray) -> list[Counts]:
    silent = special_tokens(task.store)
    return [
        count_ngrams(values, bounds, silent, task.options.ngrams) for _, values, bounds in read_chunks(task.store, rows)
    ]


def _vocabulary(task: FitTask, counts: Sequence[Counts]) -> tuple[Vocabulary, list[str]]:
    most = max(1, _MAX_WEIGHTS // (1 if task.store.num_labels <= 2 else task.store.num_labels))
    vocabulary, found = build_vocabulary(
        counts, special_tokens(task.store), task.options.ngrams, task.options.min_count, most
    )
    if found <= most:
        return vocabulary, []
    return vocabulary, [
        f"the {most:,} most frequent of {found:,} n-grams: with {task.store.num_labels:,} classes more take too much "
        "memory"
    ]


def _stacked(parts: "list[csr_matrix]") -> "csr_matrix":
    from scipy.sparse import vstack

    return parts[0] if len(parts) == 1 else vstack(parts, format="csr")
