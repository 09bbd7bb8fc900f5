"""The first reading of the sources: what labels there are, how many rows, which are bad; before anything is written.

A fault in the last row shows here, not after an hour of tokenizing.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.engine.data.commit import committed
from penstock.engine.data.manifest import SourceEntry
from penstock.engine.data.sources import BadRow, Rows, Source
from penstock.engine.errors import SourceError

MAX_LABELS = 10_000


class ContentHash:
    """A digest of texts, labels and their places that does not depend on how they came in batches."""

    def __init__(self) -> None:
        self._texts, self._lengths, self._labels, self._positions = (hashlib.sha256() for _ in range(4))

    def update(self, rows: Rows) -> None:
        self._texts.update("".join(rows.texts).encode())
        self._lengths.update(np.fromiter(map(len, rows.texts), np.int64, len(rows.texts)).tobytes())
        self._labels.update("".join(f"{label}\n" for label in rows.labels).encode())
        self._positions.update(np.fromiter(rows.positions, np.int64, len(rows.texts)).tobytes())

    def content(self) -> str:
        parts = self._texts.digest() + self._lengths.digest() + self._labels.digest()
        return hashlib.sha256(parts).hexdigest()

    def positions(self) -> str:
        return self._positions.hexdigest()


@dataclass(frozen=True)
class Survey:
    """What the sources hold.

    Attributes:
        label_counts: rows of each label name.
        content: digest of the good rows' texts and labels, in order; source_contents: the same of each source.
        positions: digest of their places.
    """

    sources: list[SourceEntry]
    label_counts: dict[str, int]
    content: str
    source_contents: list[str]
    positions: str

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def bad_rows(self) -> int:
        return sum(source.bad_rows for source in self.sources)


def usable_rows(source: Source, known_labels: Sequence[str] | None) -> Iterator[Rows]:
    """All rows; those with a label that is not known are among the bad ones."""
    known = None if known_labels is None else set(known_labels)
    for rows in source.rows():
        yield rows if known is None or known.issuperset(rows.labels) else _without_unseen(rows, known)


def survey(
    sources: Sequence[Source],
    *,
    quarantine: Path | None,
    known_labels: Sequence[str] | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> Survey:
    """Reads everything once.

    Args:
        quarantine: a file for the bad rows, one JSON object each with source, position and reason; None to fail at the
            first.
        known_labels: labels are to be among these.

    Raises:
        SourceError: a bad row without a quarantine; no good row; more labels than a classification can have.
    """
    digest, counts = ContentHash(), Counter[str]()
    entries, contents = [], []
    with nullcontext() if quarantine is None else committed(quarantine) as file:
        for source in sources:
            of_source, good, bad = ContentHash(), 0, 0
            for rows in usable_rows(source, known_labels):
                if rows.bad and file is None:
                    raise SourceError(
                        f"{source.position(rows.bad[0].position)}: {rows.bad[0].reason} "
                        "(--bad-rows quarantine sets such rows aside)"
                    )
                if file is not None:
                    for row in rows.bad:
                        file.write(_quarantined(source, row))
                digest.update(rows)
                of_source.update(rows)
                counts.update(rows.labels)
                if len(counts) > MAX_LABELS:
                    raise SourceError(
                        f"{source.name}: more than {MAX_LABELS} different labels in column {source.label!r}; is it one?"
                    )
                good += len(rows.texts)
                bad += len(rows.bad)
                advance(len(rows.texts) + len(rows.bad))
            if not good:
                raise SourceError(f"{source.name}: empty: no {'usable ' if bad else ''}row in it")
            entries.append(SourceEntry(source.name, source.text, source.label or "", source.unit, good, bad))
            contents.append(of_source.content())
    return Survey(entries, dict(counts), digest.content(), contents, digest.positions())


def _quarantined(source: Source, row: BadRow) -> bytes:
    entry = {"source": source.name, source.unit: row.position, "reason": row.reason, "excerpt": row.excerpt}
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def _without_unseen(rows: Rows, known: set[str]) -> Rows:
    keep = [label in known for label in rows.labels]
    unseen = [
        BadRow(position, f"label {label!r} is not among the labels of the store given by --like")
        for label, position, kept in zip(rows.labels, rows.positions, keep, strict=True)
        if not kept
    ]

    def kept(values: Sequence) -> list:
        return [value for value, keep_it in zip(values, keep, strict=True) if keep_it]

    bad = sorted([*rows.bad, *unseen], key=lambda row: row.position)
    return Rows(kept(rows.texts), kept(rows.labels), kept(rows.positions), bad)
