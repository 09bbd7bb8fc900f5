"""Texts that a Python program holds."""

from collections.abc import Iterator, Sequence
from typing import Any

from penstock.engine.data.sources.base import BATCH_ROWS, RawRows, Source
from penstock.engine.data.sources.text_columns import TextColumns
from penstock.engine.errors import SourceError


class MemorySource(Source):
    """A list of texts, with or without labels. Rows count from 1.

    It is read as a file is, but only by the process that holds it: a preparation of it cannot be shared out, and one
    that was interrupted resumes when `prepare` is called again with equal lists.

    Args:
        texts: strings, or pairs of them; what else stands there is a bad row.
        labels: strings, numbers or truth values, one a text, or lists of them; None for texts to be classified.
        is_pair: whether they are pairs; None for whether the first that is not None is one.

    Raises:
        SourceError: another number of labels than of texts.
    """

    named_columns = False
    resumable = False

    def __init__(
        self,
        texts: Sequence[Any],
        labels: Sequence[Any] | None = None,
        name: str = "memory:texts",
        is_pair: bool | None = None,
    ) -> None:
        super().__init__(name)
        if labels is not None and len(labels) != len(texts):
            raise SourceError(f"{name}: {len(texts):,} texts with {len(labels):,} labels")
        self.texts, self._labels = texts, labels
        self.label = None if labels is None else "label"
        first = next((label for label in labels if label is not None), None) if labels is not None else None
        self.multi_label = isinstance(first, list | tuple | set | frozenset)
        if is_pair is None:
            is_pair = isinstance(next((text for text in texts if text is not None), None), tuple | list)
        if is_pair:
            self.text, self.text_columns = "text,text_pair", TextColumns((("text",), ("text_pair",)))
        self.columns = [*self.text_columns.names, *([] if labels is None else ["label"])]

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[Any, Any]]) -> "MemorySource":
        """From a list of (text, label)."""
        return cls([text for text, _ in pairs], [label for _, label in pairs])

    def read(self) -> Iterator[RawRows]:
        for start in range(0, len(self.texts), BATCH_ROWS):
            texts = list(self.texts[start : start + BATCH_ROWS])
            if self.is_pair:
                texts = [_as_pair(text) for text in texts]
            labels = [] if self._labels is None else list(self._labels[start : start + BATCH_ROWS])
            positions = range(start + 1, start + 1 + len(texts))
            yield RawRows(texts, labels, positions, carried=self._carry_from(texts, labels))

    def _carry_from(self, texts: list[Any], labels: list[Any]) -> list[list[str | None]] | None:
        if not self.carries:
            return None
        firsts, seconds = zip(*texts, strict=True) if self.is_pair else (texts, ())
        columns = {"text": firsts, "text_pair": seconds, "label": labels}
        rows = zip(*(columns[name] for name in self._carried), strict=True) if self._carried else [()] * len(texts)
        return [[None if value is None else str(value) for value in row] for row in rows]


def _as_pair(text: Any) -> tuple[Any, Any]:
    """A pair as it is; anything else as a bad one."""
    if isinstance(text, tuple | list) and len(text) == 2:
        return text[0], text[1]
    return (None if text is None else text), None
