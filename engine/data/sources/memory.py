"""Texts that a Python program holds."""

from collections.abc import Iterator, Sequence
from typing import Any

from penstock.engine.data.sources.base import BATCH_ROWS, RawRows, Source
from penstock.engine.errors import SourceError


class MemorySource(Source):
    """A list of texts, with or without labels. Rows count from 1.

    It is read as a file is, but only by the process that holds it: a preparation of it cannot be shared out, and one
    that was interrupted goes on when `prepare` is called again with equal lists.

    Args:
        texts: strings; what else stands there is a bad row.
        labels: strings, numbers or truth values, one a text, or lists of them; None for texts to be classified.

    Raises:
        SourceError: another number of labels than of texts.
    """

    named_columns = False
    resumable = False

    def __init__(self, texts: Sequence[Any], labels: Sequence[Any] | None = None, name: str = "memory:texts") -> None:
        super().__init__(name)
        if labels is not None and len(labels) != len(texts):
            raise SourceError(f"{name}: {len(texts):,} texts with {len(labels):,} labels")
        self.texts, self._labels = texts, labels
        self.label = None if labels is None else "label"
        first = next((label for label in labels if label is not None), None) if labels is not None else None
        self.multi_label = isinstance(first, list | tuple | set | frozenset)
        self.columns = ["text"] if labels is None else ["text", "label"]

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[Any, Any]]) -> "MemorySource":
        """From a list of (text, label)."""
        return cls([text for text, _ in pairs], [label for _, label in pairs])

    def read(self) -> Iterator[RawRows]:
        for start in range(0, len(self.texts), BATCH_ROWS):
            texts = list(self.texts[start : start + BATCH_ROWS])
            labels = [] if self._labels is None else list(self._labels[start : start + BATCH_ROWS])
            positions = range(start + 1, start + 1 + len(texts))
            yield RawRows(texts, labels, positions, carried=self._carry_from(texts, labels))

    def _carry_from(self, texts: list[Any], labels: list[Any]) -> list[list[str | None]] | None:
        if not self.carries:
            return None
        columns = {"text": texts, "label": labels}
        rows = zip(*(columns[name] for name in self._carried), strict=True) if self._carried else [()] * len(texts)
        return [[None if value is None else str(value) for value in row] for row in rows]
