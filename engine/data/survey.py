"""The first reading of the sources: what labels there are, how many rows, which are bad; before anything is written.

A fault in the last row shows here, not after an hour of tokenizing.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from penstock.engine.data.clusters import ClusterKeys, check_several
from penstock.engine.data.manifest import SourceEntry
from penstock.engine.data.sources import BadRow, Rows, Source
from penstock.engine.data.sources.base import NAME_IT
from penstock.engine.data.sources.labels import (
    KINDS,
    LabelNames,
    kind_of,
    known_spellings,
    merged_spellings,
    mostly_single,
)
from penstock.engine.data.sources.text_columns import single_texts
from penstock.engine.errors import SourceError
from penstock.engine.files import committed

MAX_LABELS = 10_000
_LISTED = 3  # bad rows of several lines


class ContentHash:
    """A digest of texts, classes and their places that does not depend on how they came in batches.

    What a spelling's class is called shows only at the end of the column, so the names are digested by the rule of each
    kind that the column may still be of.

    Args:
        multi_label: rows have tuples of labels; neither their order nor a label given twice matters.
    """

    def __init__(self, multi_label: bool = False) -> None:
        self._multi_label = multi_label
        self._texts, self._lengths, self._positions = (hashlib.sha256() for _ in range(3))
        self._names = {kind: _Names(rule) for kind, rule in KINDS.items()}
        self._labels = {kind: hashlib.sha256() for kind in KINDS}

    def update(self, rows: Rows) -> None:
        texts = single_texts(rows.texts)
        self._texts.update("".join(texts).encode())
        self._lengths.update(np.fromiter(map(len, texts), np.int64, len(texts)).tobytes())
        self._positions.update(np.fromiter(rows.positions, np.int64, len(rows.texts)).tobytes())
        if self._multi_label:
            self._update_lists(rows.labels)
            return
        for kind in list(self._labels):
            names = [self._names[kind][label] for label in rows.labels]
            if None in names:
                del self._labels[kind]
            else:
                self._labels[kind].update("".join(f"{name}\n" for name in names).encode())

    def _update_lists(self, labels: list[tuple[str, ...]]) -> None:
        for kind in list(self._labels):
            known = self._names[kind]
            names = [{known[label] for label in row} for row in labels]
            if any(None in row for row in names):
                del self._labels[kind]
            else:
                lines = [json.dumps(sorted(map(str, row))) + "\n" for row in names]
                self._labels[kind].update("".join(lines).encode())

    def content(self, kind: str = "text") -> str:
        """
        Args:
            kind: of the whole column, see `labels.KINDS`; "text" takes the labels as they are.
        """
        parts = self._texts.digest() + self._lengths.digest() + self._labels[kind].digest()
        return hashlib.sha256(parts).hexdigest()

    def positions(self) -> str:
        return self._positions.hexdigest()


class _Names(dict[str, str | None]):
    """A rule's names, each found once."""

    def __init__(self, rule: Callable[[str], str | None]) -> None:
        self._rule = rule

    def __missing__(self, spelled: str) -> str | None:
        name = self[spelled] = self._rule(spelled)
        return name


@dataclass(frozen=True)
class Survey:
    """What the sources hold.

    Attributes:
        label_spellings: for each class the spellings of its label, with their rows.
        content: digest of the good rows' texts and labels, in order; source_contents: the same of each source.
        positions: digest of their places.
        clusters: int64: the keys of the good rows' values in the column that was asked for, in order; None if none was.
        notes: lines that the user should read, of bad rows that took other lines with them.
    """

    sources: list[SourceEntry]
    label_spellings: dict[str, dict[str, int]]
    content: str
    source_contents: list[str]
    positions: str
    clusters: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def label_counts(self) -> dict[str, int]:
        """Rows of each class."""
        return {name: sum(spellings.values()) for name, spellings in self.label_spellings.items()}

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def bad_rows(self) -> int:
        return sum(source.bad_rows for source in self.sources)


def usable_rows(
    source: Source, known_labels: Sequence[str] | None, spelled: Counter[str] | None = None
) -> Iterator[Rows]:
    """All rows; where the classes are known, with their names for labels, and any other among the bad ones.

    Args:
        spelled: counts the known labels of the good rows as they are spelled.
    """
    if known_labels is None:
        yield from source.rows()
        return
    named = _Names(LabelNames(known_labels))
    for rows in source.rows():
        if source.multi_label:
            yield _named_lists(rows, named, spelled)
            continue
        labels = [named[label] for label in rows.labels]
        if spelled is not None:
            spelled.update(label for label, name in zip(rows.labels, labels, strict=True) if name is not None)
        yield _named(rows, labels)
        if len(named) > MAX_LABELS:
            named.clear()


def survey(
    sources: Sequence[Source],
    *,
    quarantine: Path | None,
    known_labels: Sequence[str] | None = None,
    cluster: str | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> Survey:
    """Reads everything once.

    Args:
        quarantine: a file for the bad rows, one JSON object each with source, position and reason; None to fail at the
            first.
        known_labels: labels are to be among these.
        cluster: a column whose equal values mark rows that belong together.

    Raises:
        SourceError: a bad row without a quarantine; no good row; more labels than a classification can have; no such
            column of clusters, a good row without a value in it, or one value in all rows.
    """
    multi_label = sources[0].multi_label
    digest, counts, spelled = ContentHash(multi_label), Counter[str](), Counter[str]()
    entries, hashes = [], []
    swallowed: list[str] = []
    keys, of_rows = ClusterKeys(cluster or ""), [np.empty(0, np.int64)]
    if cluster is not None:
        for source in sources:
            source.carry([cluster])  # before any is read, which may take hours
    with nullcontext() if quarantine is None else committed(quarantine) as file:
        for source in sources:
            of_source, good, bad = ContentHash(multi_label), 0, 0
            encoding = _EncodingCheck(source)
            for rows in usable_rows(source, known_labels, spelled):
                encoding.update(rows)
                if rows.bad and file is None:
                    encoding.finish()
                    raise SourceError(
                        f"{source.position(rows.bad[0].position)}: {rows.bad[0].reason} "
                        "(--bad-rows quarantine sets such rows aside)"
                    )
                if file is not None:
                    for row in rows.bad:
                        file.write(_quarantined(source, row))
                    swallowed += [_swallowed(source, row) for row in rows.bad if row.lines > 1]
                digest.update(rows)
                of_source.update(rows)
                if cluster is not None:
                    of_rows.append(keys.of_rows(source, rows))
                counts.update(chain.from_iterable(rows.labels) if multi_label else rows.labels)
                if len(counts) > MAX_LABELS:
                    raise SourceError(
                        f"{source.name}: more than {MAX_LABELS} different labels in column {source.label!r}; is it one?"
                    )
                good += len(rows.texts)
                bad += len(rows.bad)
                advance(len(rows.texts) + len(rows.bad))
            encoding.finish()
            if not good:
                raise SourceError(f"{source.name}: empty: no {'usable ' if bad else ''}row in it")
            entries.append(SourceEntry(source.name, source.text, source.label or "", source.unit, good, bad))
            hashes.append(of_source)
        if sources[0].label is None:
            kind, spellings = "text", {}
        elif known_labels is not None:  # the rows came with the classes' names
            kind, spellings = "text", known_spellings(spelled, known_labels)
        else:
            kind, spellings = kind_of(counts), merged_spellings(counts)
            single = mostly_single({name: sum(rows.values()) for name, rows in spellings.items()})
            if single:
                raise SourceError(
                    f"{sources[0].name}: column {sources[0].label!r} gives {len(spellings):,} classes for "
                    f"{counts.total():,} {'labels in rows' if multi_label else 'rows'}: {single:,} "
                    f"{'of them' if multi_label else 'rows'}, more than half, have a class of their own; a class "
                    "needs two examples at least: name the column of the classes with --label"
                )
    clusters = None if cluster is None else np.concatenate(of_rows)
    if cluster is not None and clusters is not None:
        check_several(clusters, cluster, sources[0].name)
    contents = [of_source.content(kind) for of_source in hashes]
    return Survey(entries, spellings, digest.content(kind), contents, digest.positions(), clusters, _first(swallowed))


class _EncodingCheck:
    """Tells a file in another encoding from one with broken rows: nothing beyond ASCII in it is valid UTF-8."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._foreign: BadRow | None = None
        self._valid = not source.may_be_foreign

    def update(self, rows: Rows) -> None:
        if not self._valid:
            self._valid = not all(map(str.isascii, single_texts(rows.texts)))
            self._foreign = self._foreign or next((row for row in rows.bad if row.foreign), None)

    def finish(self) -> None:
        """
        Raises:
            SourceError: what has been read so far is in another encoding.
        """
        if self._foreign is not None and not self._valid:
            raise SourceError(
                f"{self._source.position(self._foreign.position)}: {self._foreign.reason}, and no row has a letter "
                f"beyond ASCII in UTF-8: the file is in another encoding; {NAME_IT}"
            )


def _swallowed(source: Source, row: BadRow) -> str:
    return f"{source.position(row.position)}: {row.reason}: {row.lines:,} lines are set aside as one bad row"


def _first(notes: list[str]) -> list[str]:
    more = [f"... and {len(notes) - _LISTED:,} more bad rows of several lines"] if len(notes) > _LISTED else []
    return [*notes[:_LISTED], *more]


def _quarantined(source: Source, row: BadRow) -> bytes:
    entry = {"source": source.name, source.unit: row.position, "reason": row.reason, "excerpt": row.excerpt}
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def _unknown(position: int, label: str) -> BadRow:
    return BadRow(position, f"label {label!r} is not among the labels of the training data")


def _named(rows: Rows, names: Sequence[str | None]) -> Rows:
    """The rows whose label has a name, with it; the others are bad."""
    if None not in names:
        return replace(rows, labels=list(names))
    unseen = [
        _unknown(position, label)
        for label, position, name in zip(rows.labels, rows.positions, names, strict=True)
        if name is None
    ]
    kept = [
        (text, name, position)
        for text, name, position in zip(rows.texts, names, rows.positions, strict=True)
        if name is not None
    ]
    texts, labels, positions = (list(column) for column in zip(*kept, strict=True)) if kept else ([], [], [])
    bad = sorted([*rows.bad, *unseen], key=lambda row: row.position)
    return Rows(texts, labels, positions, bad, rows.carried)


def _named_lists(rows: Rows, named: _Names, counted: Counter[str] | None) -> Rows:
    """As `_named`, of rows with several labels: a row with an unknown one is bad."""
    texts, labels, positions, unseen = [], [], [], []
    for text, spelled, position in zip(rows.texts, rows.labels, rows.positions, strict=True):
        names = [named[one] for one in spelled]
        if None in names:
            label = spelled[names.index(None)]
            unseen.append(_unknown(position, label))
            continue
        if counted is not None:
            counted.update(spelled)
        texts.append(text)
        labels.append(tuple(dict.fromkeys(names)))
        positions.append(position)
    bad = sorted([*rows.bad, *unseen], key=lambda row: row.position)
    return Rows(texts, labels, positions, bad, rows.carried)
