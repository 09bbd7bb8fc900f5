"""What every source gives: batches of good rows and of bad ones, each with its place."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from penstock.engine.errors import SourceError

BATCH_ROWS = 4096  # rows handed on at a time,
BATCH_CHARACTERS = 1 << 22  # or as many as hold this much text

# Columns taken when none are named, in this order: the plain ones, Yelp's reviews, Amazon's of 2018 and of 2023.
DEFAULT_COLUMNS = (("text", "label"), ("text", "stars"), ("reviewText", "overall"), ("text", "rating"))

# A batch's carried columns: one entry for each row that was read, good or bad, in the source's order. JSON objects stay
# as they are (None: not even read), for their fields differ from row to row.
Carried: TypeAlias = pa.RecordBatch | list[dict[str, Any] | None]

MISSING = object()  # a column that a row does not have, as against one that is null


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its line or row from 1, why, and the beginning of what stands there."""

    position: int
    reason: str
    excerpt: str = ""


@dataclass
class RawRows:
    """Rows as a reader found them, unchecked, besides those it could not even read."""

    texts: list[Any] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    positions: Sequence[int] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    carried: Any = None  # what `Source.pack` takes


@dataclass(frozen=True)
class Rows:
    """Rows fit for use, and those that are not.

    Attributes:
        texts: valid Unicode, possibly empty.
        labels: names of the labels, see `label_name`; all "" from a source opened without a label.
        positions: each row's line or row in the source, from 1.
        bad: the rest of what was read.
        carried: the columns that `Source.carry` asked for, of good and bad rows in their order; None if it did not.
    """

    texts: list[str]
    labels: list[str]
    positions: Sequence[int]
    bad: list[BadRow]
    carried: Carried | None = None


class Source(ABC):
    """A sequence of labelled texts that can be read again and again, always in the same order, in bounded memory.

    Attributes:
        name: as the user gave it.
        unit: what positions count, "line" or "row".
        text, label: the columns read; label is None when labels are not wanted.
        columns: names of all the columns there are, each once.
        path: of the file that is read, if it is one.
    """

    unit = "row"

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = "text"
        self.label: str | None = "label"
        self.path: Path | None = None
        self.columns: list[str] = ["text", "label"]
        self._carries = False
        self._carried: list[str] = []

    @property
    def carries(self) -> bool:
        """Whether `rows` gives carried columns."""
        return self._carries

    def carry(self, names: Sequence[str] | None = None) -> None:
        """Makes `rows` also give these columns of every row, as they stand there; all by default.

        Raises:
            SourceError: there is no such column.
        """
        for name in names or ():
            if name not in self.columns:
                raise SourceError(f"{self.name}: no column {name!r}; there are: {', '.join(self.columns)}")
        self._carries = True
        self._carried = list(self.columns if names is None else dict.fromkeys(names))

    def carried_schema(self) -> pa.Schema:
        """The types of the carried columns."""
        return pa.schema([(name, pa.string()) for name in self._carried])

    def pack(self, carried: Any) -> Carried:
        """A batch's carried columns from what `read` gave: here a list with each row's values, None for no values."""
        rows = [[None] * len(self._carried) if row is None else row for row in carried]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(self._carried)
        schema = self.carried_schema()
        arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
        # a batch without columns has no rows either, so it is made of a list of empty objects
        return pa.RecordBatch.from_arrays(arrays, schema=schema) if arrays else [{}] * len(rows)

    def choose_columns(self, present: Sequence[str], text: str | None, label: str | None, need_label: bool) -> None:
        """Settles which columns are read.

        Raises:
            SourceError: a column that was asked for is not there, or none was and no usual pair is.
        """
        self.columns = unique_names(present)
        listed = ", ".join(map(str, present)) or "none"
        for column in (text, label if need_label else None):
            if column is not None and column not in present:
                raise SourceError(f"{self.name}: no column {column!r}; there are: {listed}")
        for default_text, default_label in DEFAULT_COLUMNS:
            pair = text or default_text, label or default_label
            if pair[0] in present and (not need_label or pair[1] in present):
                self.text, self.label = pair[0], pair[1] if need_label else None
                return
        wanted = "text" if label or not need_label else "label" if text else "text and label"
        raise SourceError(f"{self.name}: say which columns hold {wanted} (--text, --label); there are: {listed}")

    def position(self, position: int) -> str:
        """A place in this source, for messages."""
        return f"{self.name}: {self.unit} {position}"

    @abstractmethod
    def read(self) -> Iterator[RawRows]:
        """Batches of the chosen columns, unchecked."""

    def rows(self) -> Iterator[Rows]:
        """Batches of checked rows, in the source's order."""
        names: dict[Any, str] = {}
        for raw in self.read():
            yield self._check(raw, names)

    def _check(self, raw: RawRows, names: dict[Any, str]) -> Rows:
        wanted = self.label is not None
        try:
            "".join(raw.texts).encode()
            labels = [names[type(label), label] for label in raw.labels] if wanted else [""] * len(raw.texts)
            return Rows(raw.texts, labels, raw.positions, raw.bad, self._packed(raw))
        except (TypeError, KeyError, UnicodeEncodeError):
            return self._check_singly(raw, names)

    def _check_singly(self, raw: RawRows, names: dict[Any, str]) -> Rows:
        texts, labels, positions, bad = [], [], [], list(raw.bad)
        raw_labels = raw.labels if self.label is not None else [""] * len(raw.texts)
        for text, label, position in zip(raw.texts, raw_labels, raw.positions, strict=True):
            try:
                check_text(text, self.text)
                name = "" if self.label is None else label_name(label, self.label)
            except ValueError as error:
                bad.append(BadRow(position, str(error), excerpt(text)))
                continue
            if self.label is not None:
                names[type(label), label] = name
            texts.append(text)
            labels.append(name)
            positions.append(position)
        return Rows(texts, labels, positions, sorted(bad, key=lambda row: row.position), self._packed(raw))

    def _packed(self, raw: RawRows) -> Carried | None:
        return None if raw.carried is None else self.pack(raw.carried)


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, the second of a kind as name_2."""
    found: dict[str, None] = {}
    for name in map(str, names):
        unique, number = name, 1
        while unique in found or (number > 1 and unique in names):
            number += 1
            unique = f"{name}_{number}"
        found[unique] = None
    return list(found)


def check_text(text: Any, column: str) -> None:
    """
    Raises:
        ValueError: not a string of valid Unicode.
    """
    if text is MISSING:
        raise ValueError(f"no field {column!r}")
    if text is None:
        raise ValueError(f"{column!r} is null")
    if isinstance(text, bytes):
        raise ValueError(f"{column!r} is not valid UTF-8")
    if not isinstance(text, str):
        raise ValueError(f"{column!r} is {_kind(text)}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        escaped = 0xDC80 <= ord(text[error.start]) <= 0xDCFF
        raise ValueError(
            f"{column!r} is not valid UTF-8" if escaped else f"{column!r} holds half a character"
        ) from None


_INTEGER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0*)?")


def label_name(label: Any, column: str) -> str:
    """The one name of a label, however its column is typed: 5, 5.0, "5" and "5.0" are all "5".

    Raises:
        ValueError: there is none, or it is not a number or a string.
    """
    if label is MISSING:
        raise ValueError(f"no field {column!r}")
    if label is None or (isinstance(label, float) and math.isnan(label)):
        raise ValueError(f"{column!r} is null")
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, int):
        return str(label)
    if isinstance(label, float):
        if math.isinf(label):
            raise ValueError(f"{column!r} is infinite")
        return str(int(label)) if label.is_integer() else repr(label)
    if not isinstance(label, str):
        raise ValueError(f"{column!r} is {_kind(label)}, not a number or a string")
    try:
        label.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{column!r} is not valid UTF-8") from None
    name = label.strip()
    if not name:
        raise ValueError(f"{column!r} is empty")
    match = _INTEGER.fullmatch(name)
    return match[1] if match and match[1] != "-0" else "0" if match else name


def sort_labels(names: Sequence[str]) -> list[str]:
    """Numbers by value, anything else by code point."""
    try:
        return sorted(names, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(names)


def excerpt(value: Any) -> str:
    """The beginning of a bad value, fit for a message or a file."""
    if value is MISSING or value is None:
        return ""
    if isinstance(value, bytes):
        return value[:200].decode("utf-8", "backslashreplace")
    return str(value)[:200].encode("utf-8", "backslashreplace").decode()


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", int: "a number", float: "a number", bool: "a truth value"}
    return kinds.get(type(value), type(value).__name__)
