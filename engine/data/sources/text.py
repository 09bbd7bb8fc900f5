"""Sources of text lines: CSV, TSV and JSON lines, plain or compressed with gzip or Zstandard."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.engine.data.sources.base import (
    BATCH_CHARACTERS,
    BATCH_ROWS,
    MISSING,
    BadRow,
    Carried,
    RawRows,
    Source,
    excerpt,
)
from penstock.engine.errors import SourceError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_RECORD = 1 << 26  # bytes or characters: a longer line or field is a fault of the file, not a text

csv.field_size_limit(MAX_RECORD)


@contextmanager
def open_bytes(path: Path, name: str) -> Iterator[io.BufferedReader]:
    """Opens a file for reading, decompressed; what goes wrong then or later is a SourceError."""
    try:
        with (
            pa.input_stream(str(path), compression=COMPRESSIONS.get(path.suffix.lower())) as stream,
            io.BufferedReader(stream, 1 << 20) as reader,
        ):
            yield reader
    except FileNotFoundError:
        raise SourceError(f"{name}: no such file") from None
    except (OSError, pa.ArrowException, EOFError) as error:
        raise SourceError(f"{name}: cannot be read: {str(error).splitlines()[0]}") from None


class JsonLinesSource(Source):
    """One JSON object a line. Blank lines are no rows."""

    unit = "line"

    def __init__(self, name: str, path: Path, text: str | None, label: str | None, need_label: bool) -> None:
        super().__init__(name)
        self.path = self._path = path
        first_fault = "no line in it"
        with open_bytes(path, name) as file:
            for number, line in islice(_lines(file, name), 1000):
                try:
                    record = _parse_object(line)
                except ValueError as error:
                    if number == 1 and line.lstrip().startswith(b"["):
                        raise SourceError(f"{name}: a JSON array; JSON lines are needed, one object a line") from None
                    if first_fault == "no line in it":
                        first_fault = f"line {number}: {error}"
                    continue
                self.choose_columns(list(record), text, label, need_label)
                return
        raise SourceError(f"{name}: no JSON object in its first 1000 lines: {first_fault}")

    def read(self) -> Iterator[RawRows]:
        rows, characters = _new_rows(self), 0
        with open_bytes(self._path, self.name) as file:
            for number, line in _lines(file, self.name):
                try:
                    record = _parse_object(line)
                except ValueError as error:
                    rows.bad.append(BadRow(number, str(error), excerpt(line)))
                    _carry(rows, None)
                else:
                    _carry(rows, record)
                    label = MISSING if self.label is None else record.get(self.label, MISSING)
                    _append(rows, record.get(self.text, MISSING), label, number)
                characters += len(line)
                if len(rows.texts) + len(rows.bad) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
                    yield rows
                    rows, characters = _new_rows(self), 0
        yield rows

    def carry(self, names: Sequence[str] | None = None) -> None:
        """As of any source; the fields, which can differ from line to line, are looked for in all the lines."""
        self._kinds = self._survey_fields()
        self.columns = list(self._kinds)
        super().carry(names)

    def carried_schema(self) -> pa.Schema:
        return pa.schema([(name, _arrow_type(self._kinds[name])) for name in self._carried])

    def pack(self, carried: Any) -> Carried:
        if self._carried == self.columns:
            return carried
        wanted = dict.fromkeys(self._carried)
        return [None if row is None else {name: row[name] for name in wanted if name in row} for row in carried]

    def _survey_fields(self) -> dict[str, set[str]]:
        """Each field's name and the kinds of its values."""
        kinds: dict[str, set[str]] = {}
        with open_bytes(self._path, self.name) as file:
            for _, line in _lines(file, self.name):
                try:
                    record = _parse_object(line)
                except ValueError:
                    continue  # a bad row, by the caller's choice
                for name, value in record.items():
                    kinds.setdefault(name, set()).add(_kind(value))
        return kinds


class LinesSource(Source):
    """Plain text: a line is a text, an empty line an empty one. There are no labels in it."""

    unit = "line"

    def __init__(self, name: str, path: Path, text: str | None, label: str | None, need_label: bool) -> None:
        super().__init__(name)
        self.path = self._path = path
        if need_label:
            raise SourceError(f"{name}: plain text holds no labels: csv, jsonl or parquet have columns for both")
        self.choose_columns(["text"], text, label, need_label)

    def read(self) -> Iterator[RawRows]:
        rows, characters = _new_rows(self), 0
        with open_bytes(self._path, self.name) as file:
            for number, line in _lines(file, self.name, blank=True):
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                text: str | bytes = line
                with suppress(UnicodeDecodeError):
                    text = line.decode()
                _append(rows, text, MISSING, number)
                _carry(rows, [line.decode("utf-8", "backslashreplace")] * len(self._carried))
                characters += len(line)
                if len(rows.texts) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
                    yield rows
                    rows, characters = _new_rows(self), 0
        yield rows


class TextList(Source):
    """Texts from Python; None is a row without a text."""

    def __init__(self, texts: Iterable[str | None]) -> None:
        super().__init__("texts")
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be several, as in [text]; got a single one")
        self.label = None
        self.columns = ["text"]
        self._texts = texts

    def read(self) -> Iterator[RawRows]:
        texts, position = iter(self._texts), 1
        while batch := list(islice(texts, BATCH_ROWS)):
            for text in batch:
                if not isinstance(text, str | None):
                    raise TypeError(f"a text must be a string or None, got {type(text).__name__}")
            carried = [[text] * len(self._carried) for text in batch] if self.carries else None
            yield RawRows(batch, [], range(position, position + len(batch)), carried=carried)
            position += len(batch)


class CsvSource(Source):
    """Comma- or tab-separated values with a header line, quoted as spreadsheets do. A row's line is its first."""

    unit = "line"

    def __init__(
        self, name: str, path: Path, delimiter: str, text: str | None, label: str | None, need_label: bool
    ) -> None:
        super().__init__(name)
        self.path = self._path = path
        self._delimiter = delimiter
        with open_bytes(path, name) as file:
            reader = self._reader(file)
            try:
                self._header = next(reader)
            except StopIteration:
                raise SourceError(f"{name}: empty: it has no header line") from None
            except csv.Error as error:
                raise SourceError(f"{name}: line 1: {error}") from None
            self._header = [column.encode("utf-8", "backslashreplace").decode() for column in self._header]
            for column in self._header:
                if self._header.count(column) > 1 and column in (text, label):
                    raise SourceError(f"{name}: two columns are called {column!r}")
            self.choose_columns(self._header, text, label, need_label)

    def read(self) -> Iterator[RawRows]:
        width = len(self._header)
        text_at = self._header.index(self.text)
        label_at = self._header.index(self.label) if self.label is not None else text_at
        rows, characters = _new_rows(self), 0
        with open_bytes(self._path, self.name) as file:
            reader = self._reader(file)
            next(reader)
            while True:
                line = reader.line_num + 1
                try:
                    record = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    reason = str(error)
                    if reader.line_num > line:
                        reason += f" (the row goes on to line {reader.line_num}: a quote that is not closed?)"
                    rows.bad.append(BadRow(line, reason))
                    _carry(rows, None)
                    continue
                if record:
                    _carry(rows, record if len(record) == width else None)
                if len(record) == width:
                    _append(rows, record[text_at], record[label_at], line)
                    characters += len(record[text_at])
                elif record:
                    reason = f"{len(record)} fields where the header has {width}"
                    rows.bad.append(BadRow(line, reason, excerpt(self._delimiter.join(record))))
                if len(rows.texts) + len(rows.bad) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
                    yield rows
                    rows, characters = _new_rows(self), 0
        yield rows

    def pack(self, carried: Any) -> Carried:
        places = [self.columns.index(name) for name in self._carried]
        return super().pack([row and [_visible(row[place]) for place in places] for row in carried])

    def _reader(self, file: io.BufferedReader) -> Any:
        # Bytes that are not UTF-8 come through as lone surrogates, so that the row that holds them can be named.
        lines = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        return csv.reader(lines, delimiter=self._delimiter, strict=True)


def _new_rows(source: Source) -> RawRows:
    return RawRows([], [], [], [], [] if source.carries else None)


def _carry(rows: RawRows, record: Any) -> None:
    if rows.carried is not None:
        rows.carried.append(record)


def _visible(field: str) -> str:
    """A field that is not valid UTF-8 with its wrong bytes spelled out, as in \\xe9."""
    return field if field.isascii() else field.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _kind(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and not -(1 << 63) <= value < 1 << 63:
        return "other"
    return {bool: "bool", int: "int", float: "float", str: "str", type(None): ""}.get(type(value), "other")


def _arrow_type(kinds: set[str]) -> pa.DataType:
    """What holds values of these kinds; a string holds any."""
    types = {("bool",): pa.bool_(), ("int",): pa.int64(), ("float",): pa.float64(), ("float", "int"): pa.float64()}
    return types.get(tuple(sorted(kinds - {""})), pa.string())


def _append(rows: RawRows, text: Any, label: Any, position: int) -> None:
    assert isinstance(rows.positions, list)
    rows.texts.append(text)
    rows.labels.append(label)
    rows.positions.append(position)


def _lines(file: io.BufferedReader, name: str, blank: bool = False) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(MAX_RECORD + 1):
        number += 1
        if len(line) > MAX_RECORD:
            raise SourceError(
                f"{name}: line {number} is longer than {MAX_RECORD >> 20} MiB; is this one record a line?"
            )
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if blank or not line.isspace():
            yield number, line


def _parse_object(line: bytes) -> dict[str, Any]:
    """
    Raises:
        ValueError: why the line is not a JSON object.
    """
    try:
        record = json.loads(line.rstrip().decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("broken JSON: nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record
