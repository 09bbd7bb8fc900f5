"""What every source gives: batches of good rows and of bad ones, each with its place."""

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from penstock.engine.data.sources.fields import Names, Steps
from penstock.engine.data.sources.labels import MISSING, kind_of_value, list_items, spelling
from penstock.engine.data.sources.text_columns import NoSuchColumn, Text, TextColumns, TooManyTexts, plain, text_columns
from penstock.engine.errors import ConfigError, SourceError

BATCH_ROWS = 4096  # rows handed on at a time,
BATCH_CHARACTERS = 1 << 22  # or as many as hold this much text

# Columns taken when none are named, in this order: the plain ones, Yelp's reviews, Amazon's of 2018 and of 2023.
DEFAULT_COLUMNS = (("text", "label"), ("text", "stars"), ("reviewText", "overall"), ("text", "rating"))

# A batch's carried columns: one entry for each row that was read, good or bad, in the source's order. JSON objects stay
# as they are (None: not even read), for their fields differ from row to row.
Carried: TypeAlias = pa.RecordBatch | list[dict[str, Any] | None]

NAME_IT = "name it, as in --encoding cp1252 (Japanese: cp932, Chinese: gb18030)"  # of messages

MAX_REMEMBERED = 20_000  # labels whose spelling is looked up instead of made


@dataclass(frozen=True)
class Reading:
    """How files of text are read where they do not say it themselves.

    Attributes:
        separator: between the fields of a csv file: one character, or tab, comma, semicolon or pipe; None to find it.
        encoding: a codec's name; None for UTF-8. A byte order mark at the beginning of a file comes before either.
        label_separator: between the labels of a row, where a text holds several; None where it holds one.

    Raises:
        ConfigError: no such separator or encoding.
    """

    separator: str | None = None
    encoding: str | None = None
    label_separator: str | None = None

    def __post_init__(self) -> None:
        if self.separator is not None:
            separator = SEPARATORS.get(self.separator, self.separator)
            if len(separator) != 1 or separator in '"\r\n' or (not separator.isprintable() and separator != "\t"):
                raise ConfigError(
                    f"--separator {self.separator!r}: expected one character, or one of tab, comma, semicolon, pipe"
                )
            object.__setattr__(self, "separator", separator)
        if self.label_separator is not None:
            separator = SEPARATORS.get(self.label_separator, self.label_separator)
            if not separator or any(letter in '"\r\n' for letter in separator):
                raise ConfigError(
                    f"--label-separator {self.label_separator!r}: expected what stands between the labels of a row, "
                    "such as | or tab, comma, semicolon, pipe"
                )
            object.__setattr__(self, "label_separator", separator)
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
                b"".decode(self.encoding)
                text = codecs.lookup(self.encoding)._is_text_encoding
            except (LookupError, ValueError):
                text = False
            if not text:
                raise ConfigError(
                    f"--encoding {self.encoding!r}: no such encoding; usual ones are utf-8, cp1252, utf-16, gb18030"
                )


SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}

PLAIN_READING = Reading()


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        position: its line or row, from 1.
        excerpt: the beginning of what stands there.
        foreign: its bytes are not UTF-8 and look like another encoding's letters.
        lines: that it takes.
    """

    position: int
    reason: str
    excerpt: str = ""
    foreign: bool = False
    lines: int = 1


@dataclass
class RawRows:
    """Rows as a reader found them, unchecked, besides those it could not even read.

    Where a row's text is not what stands in one column, `texts` holds tuples of the values of all of its columns.
    """

    texts: list[Any] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    positions: Sequence[int] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    carried: Any = None  # what `Source.pack` takes


@dataclass(frozen=True)
class Rows:
    """Rows fit for use, and those that are not.

    Attributes:
        texts: valid Unicode, possibly empty; of a source of pairs, tuples of two.
        labels: the labels as they are spelled, see `labels.spelling`; all "" from a source opened without a label. Of a
            source with lists of labels, a tuple of them for each row, none of them twice.
        positions: each row's line or row in the source, from 1.
        bad: the rest of what was read.
        carried: the columns that `Source.carry` asked for, of good and bad rows in their order; None if it did not.
    """

    texts: list[Text]
    labels: list[Any]
    positions: Sequence[int]
    bad: list[BadRow]
    carried: Carried | None = None


class NoColumn(SourceError):
    """There is no column of the name that is to be read, nor of a usual one where none is named."""


class Source(ABC):
    """A sequence of labelled texts that can be read again and again, always in the same order, in bounded memory.

    Attributes:
        name: as the user gave it.
        unit: what positions count, "line" or "row".
        text, label: the columns read; label is None when labels are not wanted. text_columns: what text means.
        columns: names of all the columns there are, each once.
        inner: the columns read, or carried, that are fields inside of objects, each with the steps that lead to it.
        path: of the file that is read, if it is one.
        named_columns: whether their names are the source's, not ours.
        may_be_foreign: its bytes are read as UTF-8 because nothing says otherwise. encoding: for messages.
        resumable: whether another process can open it by its name.
        multi_label: each row has a list of labels, possibly empty, where others have one label.
        holds_lists: the label column itself holds lists, not texts to be taken apart.
        label_separator: between the labels of a row, where they are written as one text.
    """

    unit = "row"
    named_columns = True
    may_be_foreign = False
    encoding = "UTF-8"
    resumable = True
    multi_label = False
    holds_lists = False
    label_separator: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = "text"
        self.text_columns: TextColumns = plain("text")
        self.label: str | None = "label"
        self.path: Path | None = None
        self.columns: list[str] = ["text", "label"]
        self.inner: dict[str, Steps] = {}
        self._carries = False
        self._carried: list[str] = []

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return self.text_columns.is_pair

    @property
    def carries(self) -> bool:
        """Whether `rows` gives carried columns."""
        return self._carries

    def carry(self, names: Sequence[str] | None = None) -> None:
        """Makes `rows` also give these columns of every row, as they stand there; all by default.

        Raises:
            SourceError: there is no such column.
        """
        present = Names(self.columns, self.fields_in)
        for name in names or ():
            if name not in self.inner and name not in present:
                raise SourceError(f"{self.name}: no column {name!r}; {present.there_are(name)}")
            self._settle(name, present)
        self._carries = True
        self._carried = list(self.columns if names is None else dict.fromkeys(names))

    def fields_in(self, steps: Steps) -> Sequence[str]:
        """The names of the fields of the objects to which some steps lead; none here, where no column has objects."""
        return ()

    def steps(self, name: str) -> Steps:
        """What leads to a column that is read, or carried."""
        return self.inner.get(name, (name,))

    def _settle(self, name: str, present: Names) -> None:
        """Notes where a column is, if it is inside of another; one that is read is carried from where it is read."""
        steps = present.steps(name)
        if steps is not None and len(steps) > 1:
            self.inner.setdefault(name, steps)

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
            NoColumn: a column that was asked for is not there, or none was and no usual pair is.
            SourceError: one is there twice or is to be read twice, or a row would have more than two texts.
        """
        self.columns = unique_names(present)
        self.inner = {}
        names = Names(present, self.fields_in)
        chosen = None if text is None else self._text_columns(text, names)
        if need_label and label is not None and label not in names:
            raise NoColumn(f"{self.name}: no column {label!r}; {names.there_are(label)}")
        for default_text, default_label in DEFAULT_COLUMNS:
            pair = text or default_text, label or default_label
            if (chosen or pair[0] in present) and (not need_label or pair[1] in names):
                self.text, self.label = pair[0], pair[1] if need_label else None
                self.text_columns = chosen or plain(pair[0])
                read = self.text_columns.names
                for name in read:
                    if name == self.label or read.count(name) > 1:
                        twice = "the label too" if name == self.label else "there twice"
                        raise SourceError(f"{self.name}: --text {self.text}: column {name!r} is {twice}")
                for column in (*read, self.label):
                    if column is None:
                        continue
                    self._settle(column, names)
                    if names.are_double(self.steps(column)):
                        raise SourceError(f"{self.name}: two columns are called {column!r}; rename one of them")
                return
        wanted = "text" if label or not need_label else "label" if text else "text and label"
        raise NoColumn(f"{self.name}: say which columns hold {wanted} (--text, --label); {names.there_are('')}")

    def split_labels(self, separator: str | None) -> None:
        """Reads texts in the label column as several labels, with this between them; None leaves them as they are."""
        self.holds_lists = self.multi_label and self.label_separator is None
        if separator is not None and self.label is not None:
            self.label_separator, self.multi_label = separator, True

    def _text_columns(self, text: str, present: Names) -> TextColumns:
        try:
            return text_columns(text, present)
        except NoSuchColumn as error:
            raise NoColumn(f"{self.name}: no column {str(error)!r}; {present.there_are(str(error))}") from None
        except TooManyTexts:
            raise SourceError(
                f"{self.name}: --text {text}: a row has one text or a pair of two; '+' joins columns to one text, as "
                f"in --text {text.replace(',', '+')}"
            ) from None

    def position(self, position: int) -> str:
        """A place in this source, for messages."""
        return f"{self.name}: {self.unit} {position}"

    def advice(self, row: BadRow) -> str:
        """What to add to a bad row's reason."""
        foreign = row.foreign and self.may_be_foreign
        return f" (if the file is in another encoding, {NAME_IT})" if foreign else ""

    @abstractmethod
    def read(self) -> Iterator[RawRows]:
        """Batches of the chosen columns, unchecked."""

    def rows(self) -> Iterator[Rows]:
        """Batches of checked rows, in the source's order."""
        names: dict[Any, str] = {}
        for raw in self.read():
            yield self._check(raw, names)
            if len(names) > MAX_REMEMBERED:
                names.clear()

    def _check(self, raw: RawRows, names: dict[Any, str]) -> Rows:
        wanted, columns = self.label is not None, self.text_columns
        try:
            "".join(raw.texts if columns.is_plain else chain.from_iterable(raw.texts)).encode()
            texts = raw.texts if columns.is_plain else list(map(columns.combine, raw.texts))
            labels: list[Any]
            if wanted and self.multi_label:
                labels = [
                    tuple(dict.fromkeys([names[type(one), one] for one in self._items(label)])) for label in raw.labels
                ]
            else:
                labels = [names[type(label), label] for label in raw.labels] if wanted else [""] * len(raw.texts)
            return Rows(texts, labels, raw.positions, raw.bad, self._packed(raw))
        except (TypeError, KeyError, ValueError):
            return self._check_singly(raw, names)

    def _items(self, label: Any) -> list[Any]:
        """The labels in a row's list. Raises ValueError where there is no list."""
        return list_items(label, self.label or "", self.label_separator)

    def _spelled(self, label: Any, names: dict[Any, str]) -> Any:
        """What `Rows.labels` has of a row; remembers the spellings. Raises ValueError: it is no label, or no list."""
        if self.label is None:
            return ""
        found = []
        for one in self._items(label) if self.multi_label else [label]:
            name = spelling(one, self.label)
            check_text(name, self.label, self.encoding)
            names[type(one), one] = name
            found.append(name)
        return tuple(dict.fromkeys(found)) if self.multi_label else found[0]

    def _check_singly(self, raw: RawRows, names: dict[Any, str]) -> Rows:
        texts, labels, positions, bad = [], list[Any](), [], list(raw.bad)
        raw_labels = raw.labels if self.label is not None else [""] * len(raw.texts)
        columns = self.text_columns
        for text, label, position in zip(raw.texts, raw_labels, raw.positions, strict=True):
            values = (text,) if columns.is_plain else self._filled(text)
            try:
                for value, column in zip(values, columns.names, strict=True):
                    check_text(value, column, self.encoding)
                name = self._spelled(label, names)
            except ValueError as error:
                foreign = any(map(looks_foreign, (*values, label)))
                bad.append(BadRow(position, str(error), excerpt(text), foreign))
                continue
            texts.append(text if columns.is_plain else columns.combine(values))
            labels.append(name)
            positions.append(position)
        return Rows(texts, labels, positions, sorted(bad, key=lambda row: row.position), self._packed(raw))

    def _filled(self, values: Sequence[Any]) -> list[Any]:
        """A row's values of the columns of its texts: one that is not there is empty, as csv has it, where others are
        joined with it."""
        found: list[Any] = []
        begin = 0
        for columns in self.text_columns.texts:
            own = values[begin : begin + len(columns)]
            gone = [value is None or value is MISSING for value in own]
            found += own if all(gone) else ["" if lost else value for value, lost in zip(own, gone, strict=True)]
            begin += len(columns)
        return found

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


def check_text(text: Any, column: str, encoding: str = "UTF-8") -> None:
    """
    Args:
        encoding: of the file, whose bytes that are of none are escaped in the text.

    Raises:
        ValueError: not a string of valid Unicode.
    """
    if text is MISSING:
        raise ValueError(f"no field {column!r}")
    if text is None:
        raise ValueError(f"{column!r} is null")
    if isinstance(text, bytes):
        raise ValueError(f"{column!r} is not valid {encoding}")
    if not isinstance(text, str):
        raise ValueError(f"{column!r} is {kind_of_value(text)}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        escaped = 0xDC80 <= ord(text[error.start]) <= 0xDCFF
        raise ValueError(
            f"{column!r} is not valid {encoding}" if escaped else f"{column!r} holds half a character"
        ) from None


_FOREIGN = re.compile("[A-Za-z][\udc80-\udcff]|[\udc80-\udcff][A-Za-z]|[\udc80-\udcff]{2}")


def looks_foreign(value: Any) -> bool:
    """Whether bytes (or a text that holds them escaped) are no UTF-8 but another encoding's letters."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str) or value.isascii():
        return False
    valid = any(letter > "\x7f" and not "\udc80" <= letter <= "\udcff" for letter in value)
    return not valid and _FOREIGN.search(value) is not None


def excerpt(value: Any) -> str:
    """The beginning of a bad value, fit for a message or a file."""
    if value is MISSING or value is None:
        return ""
    if isinstance(value, tuple):
        return excerpt("\n".join(map(excerpt, value)))
    if isinstance(value, bytes):
        return value[:200].decode("utf-8", "backslashreplace")
    return str(value)[:200].encode("utf-8", "backslashreplace").decode()
