"""What a baseline is given and what it gives back."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError
from penstock.engine.training.split import split_validation

if TYPE_CHECKING:
    from penstock.engine.study.baselines.settings import BaselineSettings

CHUNK_TOKENS = 1 << 20  # read at a time
_CHUNK_ROWS = 1 << 14  # whose probabilities in 2,500 classes take 160 MB


@dataclass(frozen=True)
class FitTask:
    """
    Attributes:
        settings: of the trial. store: the training store.
        rows: int64, ascending: the examples, those of the validation split included.
        threads: of the numeric libraries.
        cache: a folder that the trials of a study share, for what is costly to make; None for none.
    """

    settings: "BaselineSettings"
    store: Store
    rows: np.ndarray
    threads: int
    cache: Path | None = None

    @property
    def options(self) -> Any:
        """The baseline's own settings, an `Options` of its module."""
        return self.settings.options

    @cached_property
    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """(training, validation) rows, those that the other families have at this size and seed.

        Raises:
            ConfigError: the rows are too few for it.
        """
        settings = self.settings
        return split_validation(
            self.store.labels,
            self.rows,
            fraction=settings.validation_fraction,
            maximum=settings.validation_max,
            seed=settings.seed,
        )

    def validation(self, chosen: str) -> np.ndarray:
        """The validation rows, which choose a setting.

        Raises:
            ConfigError: there are none.
        """
        rows = self.split[1]
        if not len(rows):
            raise ConfigError(f"data.validation_fraction=0 leaves no rows to choose {chosen} by: set {chosen}")
        return rows


@dataclass
class Fitted(ABC):
    """A trained model.

    Attributes:
        num_labels: classes of the store.
        chosen: {setting: value} that validation chose.
        validation_accuracy: of those; None where there was nothing to choose.
        validation_examples: rows that it was measured on.
        notes: lines that a reader of its results should know: limits that it met, choices at the end of their range.
        earlier_seconds, earlier_cpu_seconds: of its training that an earlier trial had done for it.
    """

    num_labels: int
    chosen: dict[str, float] = field(default_factory=dict, kw_only=True)
    validation_accuracy: float | None = field(default=None, kw_only=True)
    validation_examples: int = field(default=0, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    earlier_seconds: float = field(default=0.0, kw_only=True)
    earlier_cpu_seconds: float = field(default=0.0, kw_only=True)

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Numbers that it has learned, those of a pretrained part included."""

    @property
    def embedding_parameters(self) -> int:
        """Those of them that are token embeddings."""
        return 0

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes all that a prediction needs besides the tokenizer."""

    @abstractmethod
    def probabilities(self, values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """float32 (rows, num_labels), of texts laid end to end.

        Args:
            values: int32 (tokens,), special tokens included. bounds: int64 (rows + 1,), where each text begins and
                ends.
        """

    def predict(self, store: Store, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of a store in chunks: (rows, int64; their probabilities, float32 (rows, num_labels))."""
        for part, values, bounds in read_chunks(store, rows):
            yield part, self.probabilities(values, bounds)


def read_chunks(
    store: Store, rows: np.ndarray, tokens: int = CHUNK_TOKENS
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The rows' tokens, about `tokens` at a time: (rows, values int32, bounds int64), see `Fitted.probabilities`.

    Raises:
        StoreError: the store is damaged.
    """
    ends = np.cumsum(store.lengths[rows], dtype=np.int64)
    begin = 0
    while begin < len(rows):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + tokens, "right")))
        part = np.ascontiguousarray(rows[begin : min(end, begin + _CHUNK_ROWS)])
        begin += len(part)
        values, bounds = store.gather(part)
        yield part, values, bounds.astype(np.int64)
