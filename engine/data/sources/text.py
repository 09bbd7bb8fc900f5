"""Sources of text lines: CSV, TSV and JSON lines, plain or compressed with gzip or Zstandard."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.engine.data.sources.base import (
    BATCH_CHARACTERS,
    BATCH_ROWS,
    MISSING,
    NAME_IT,
    BadRow,
    Carried,
    NoColumn,
    RawRows,
    Reading,
    Source,
    excerpt,
    looks_foreign,
)
from penstock.engine.data.sources.fields import Steps, objects_in, value_at
from penstock.engine.errors import SourceError, first_line

# UTF-32's before UTF-16's, which begins alike. The codecs named without an order of bytes take the mark away.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
SNIFFED_SEPARATORS = (",", ";", "\t", "|")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
SAMPLE_LINES = 1000  # of JSON, which say what columns there are
NOT_AN_OBJECT = "not a JSON object"
JSON_ARRAY = "{}: a JSON array; JSON lines are needed, one object a line"
EXACT_IN_FLOATS = 1 << 53  # beyond it float64 has not every integer
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
        raise SourceError(f"{name}: cannot be read: {first_line(error)}") from None
    except UnicodeError as error:
        raise SourceError(f"{name}: not in the encoding it is read in: {error}") from None


class TextFileSource(Source):
    """A file of lines, with what is known of its encoding."""

    unit = "line"

    def __init__(self, name: str, path: Path, reading: Reading) -> None:
        super().__init__(name)
        self.path = self._path = path
        with open_bytes(path, name) as file:
            start = file.read(4)
        marked = next((codec for mark, codec in MARKS if start.startswith(mark)), None)
        if marked is None and reading.encoding is None:
            zeros = [byte == 0 for byte in start]
            if zeros in ([False, True, False, True], [True, False, True, False]):
                guess = "utf-16-le" if zeros[1] else "utf-16-be"
                raise SourceError(f"{name}: not UTF-8; it looks like --encoding {guess}")
        self.may_be_foreign = marked is None and reading.encoding is None
        self._encoding = marked or reading.encoding or "utf-8"
        if reading.encoding is not None and marked is None:
            self.encoding = reading.encoding
        self._is_utf8 = codecs.lookup(self._encoding).name in ("utf-8", "utf-8-sig")

    def _open_text(self, file: io.BufferedReader, newline: str) -> io.TextIOWrapper:
        # Bytes that are not of the encoding come through as lone surrogates, so that the row that holds them can be
        # named; UTF-16 and 32 are not made of bytes, and have half characters of their own.
        wide = codecs.lookup(self._encoding).name.startswith(("utf-16", "utf-32"))
        errors = "surrogatepass" if wide else "surrogateescape"
        return io.TextIOWrapper(file, self._encoding, errors=errors, newline=newline)

    def _lines(self, file: io.BufferedReader, blank: bool = False) -> Iterator[tuple[int, bytes]]:
        """Lines, from 1, in UTF-8, without the blank ones unless `blank`; what was not of the file's encoding is not of
        UTF-8 either."""
        if self._is_utf8:
            yield from _lines(file.readline, self.name, blank)
            return
        text = self._open_text(file, "\n")

        def read(limit: int) -> bytes:
            line = text.readline(limit)
            return b"".join(
                part.encode("utf-8", "surrogateescape" if "\udc80" <= part[:1] <= "\udcff" else "surrogatepass")
                for part in _ESCAPED.split(line)
            )

        yield from _lines(read, self.name, blank)


_ESCAPED = re.compile("([\udc80-\udcff]+)")
_NAMES_SEPARATOR = re.compile(r'"?sep=(?P<separator>[^"\r\n])"?[\r\n]+', re.IGNORECASE)


class JsonLinesSource(TextFileSource):
    """One JSON object a line. Blank lines are no rows. The columns are those of its records together; inside of objects
    only such fields are looked for as are asked for."""

    def __init__(
        self, name: str, path: Path, text: str | None, label: str | None, need_label: bool, reading: Reading
    ) -> None:
        super().__init__(name, path, reading)
        # Of the records, and of objects in them: each field, and whether its first value is a list (None: only nulls).
        self._fields: dict[Steps, dict[str, bool | None]] = {(): {}}
        self._kinds: dict[Steps, dict[str, set[str]]] = {}
        self._asked = _dotted(text, label)
        present = self._fields[()]
        first_fault, records, array, refused = "no line in it", 0, False, None
        with open_bytes(path, name) as file:
            for number, line in self._lines(file):
                try:
                    record = _parse_object(line)
                except ValueError as error:
                    bracket = number == 1 and line.lstrip().startswith(b"[")
                    if bracket and str(error) != NOT_AN_OBJECT:
                        raise SourceError(JSON_ARRAY.format(name)) from None
                    array = array or bracket
                    if first_fault == "no line in it":
                        first_fault = f"line {number}: {error}"
                        if looks_foreign(line) and self.may_be_foreign:
                            first_fault += f" (if the file is in another encoding, {NAME_IT})"
                    if number >= SAMPLE_LINES and not records:
                        break
                    continue
                records += 1
                new = False
                for steps, fields in objects_in(record, self._asked):
                    known = self._fields.setdefault(steps, {})
                    new = new or not fields.keys() <= known.keys()
                    for field, value in fields.items():
                        if known.get(field) is None:
                            known[field] = None if value is None else isinstance(value, list)
                # After a good sample, the usual columns or the given ones; if they are not in it, wherever they begin.
                if number >= SAMPLE_LINES and (refused is None or new):
                    try:
                        self.choose_columns(list(present), text, label, need_label)
                        return
                    except SourceError as error:
                        refused = error
        if records:
            self.choose_columns(list(present), text, label, need_label)
        elif array:
            raise SourceError(JSON_ARRAY.format(name))
        else:
            raise SourceError(f"{name}: no JSON object in its first {SAMPLE_LINES} lines: {first_fault}")

    def choose_columns(self, present: Sequence[str], text: str | None, label: str | None, need_label: bool) -> None:
        super().choose_columns(present, text, label, need_label)
        if self.label is not None:
            *_, name = steps = self.steps(self.label)
            self.multi_label = bool(self._fields[steps[:-1]][name])

    def fields_in(self, steps: Steps) -> Sequence[str]:
        return list((self._kinds or self._fields).get(steps, ()))

    def read(self) -> Iterator[RawRows]:
        rows, characters = _new_rows(self), 0
        names = self.text_columns.names
        wanted = [self.steps(column) for column in (*names, self.label) if column is not None]
        keys = [json.dumps(name).encode() for name in set(chain.from_iterable(wanted))]
        with open_bytes(self._path, self.name) as file:
            for number, line in self._lines(file):
                try:
                    record = _parse_object(line)
                    if any(line.count(key) > 1 for key in keys):
                        _refuse_doubles(line, wanted)
                except ValueError as error:
                    rows.bad.append(BadRow(number, str(error), excerpt(line), looks_foreign(line)))
                    _carry(rows, None)
                else:
                    whole = record
                    if self.inner:
                        record = self._lifted(record)
                    _carry(rows, whole if self._carried == self.columns else record)
                    label = MISSING if self.label is None else record.get(self.label, MISSING)
                    texts = tuple(record.get(name, MISSING) for name in names)
                    _append(rows, texts[0] if self.text_columns.is_plain else texts, label, number)
                characters += len(line)
                if len(rows.texts) + len(rows.bad) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
                    yield rows
                    rows, characters = _new_rows(self), 0
        yield rows

    def carry(self, names: Sequence[str] | None = None) -> None:
        """As of any source; the fields, which can differ from line to line, are looked for in all the lines."""
        self._asked = [*self._asked, *_dotted(*names or ())]
        self._kinds = self._survey_fields()
        self.columns = list(self._kinds[()])
        super().carry(names)

    def carried_schema(self) -> pa.Schema:
        places = {name: self.steps(name) for name in self._carried}
        return pa.schema([(name, _arrow_type(self._kinds[at[:-1]][at[-1]])) for name, at in places.items()])

    def pack(self, carried: Any) -> Carried:
        if self._carried == self.columns:
            return carried
        wanted = dict.fromkeys(self._carried)
        return [None if row is None else {name: row[name] for name in wanted if name in row} for row in carried]

    def _lifted(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record with the fields inside of its objects that are read or carried as fields of its own."""
        found = {name: value_at(record, steps) for name, steps in self.inner.items()}
        return record | {name: value for name, value in found.items() if value is not MISSING}

    def _survey_fields(self) -> dict[Steps, dict[str, set[str]]]:
        """Each field's name and the kinds of its values, in the records and in objects inside of them."""
        kinds: dict[Steps, dict[str, set[str]]] = {(): {}}
        with open_bytes(self._path, self.name) as file:
            for _, line in self._lines(file):
                try:
                    record = _parse_object(line)
                except ValueError:
                    continue  # a bad row, by the caller's choice
                for steps, fields in objects_in(record, self._asked):
                    known = kinds.setdefault(steps, {})
                    for name, value in fields.items():
                        known.setdefault(name, set()).add(_kind(value))
        return kinds


class LinesSource(TextFileSource):
    """Plain text: a line is a text, an empty line an empty one. There are no labels in it."""

    def __init__(
        self, name: str, path: Path, text: str | None, label: str | None, need_label: bool, reading: Reading
    ) -> None:
        super().__init__(name, path, reading)
        if need_label:
            raise SourceError(f"{name}: plain text holds no labels: csv, jsonl or parquet have columns for both")
        self.choose_columns(["text"], text, label, need_label)

    def read(self) -> Iterator[RawRows]:
        rows, characters = _new_rows(self), 0
        with open_bytes(self._path, self.name) as file:
            for number, line in self._lines(file, blank=True):
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


class CsvSource(TextFileSource):
    """Separated values with a header line, quoted as spreadsheets do. A row's line is its first.

    The separator is the given one; else the one that a first line such as `sep=;` names, which Excel writes and reads;
    else, of those in use, the one by which the header has the columns wanted: the header is the one line whose fields
    are known beforehand.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        usual: str,
        text: str | None,
        label: str | None,
        need_label: bool,
        reading: Reading,
    ) -> None:
        super().__init__(name, path, reading)
        named = self._named_separator()
        self._lines_before = 0 if named is None else 1  # the header
        given = reading.separator or named
        separators = [given] if given else [usual, *SNIFFED_SEPARATORS]
        headers = {separator: self._read_header(separator) for separator in separators}
        split = {separator: header for separator, header in headers.items() if not isinstance(header, csv.Error)}
        if not split:
            raise SourceError(f"{name}: line 1: {headers[separators[0]]}")
        # By the number of fields: the usual separator comes first where it makes as many.
        by_width = sorted(split, key=lambda separator: -len(split[separator]))
        refused: NoColumn | None = None
        for separator in by_width:
            try:
                self.choose_columns(split[separator], text, label, need_label)
            except NoColumn as error:
                refused = refused or error
                continue
            self._separator, self._header = separator, split[separator]
            return
        assert refused is not None
        raise refused

    def _named_separator(self) -> str | None:
        with open_bytes(self._path, self.name) as file:
            named = _NAMES_SEPARATOR.fullmatch(self._open_text(file, "").readline(16))
        return None if named is None else named["separator"]

    def _read_header(self, separator: str) -> list[str] | csv.Error:
        with open_bytes(self._path, self.name) as file:
            try:
                reader = self._records(file, separator)
                header = next(reader)
            except StopIteration:
                raise SourceError(f"{self.name}: empty: it has no header line") from None
            except csv.Error as error:
                return csv.Error(f"{error}{_goes_on(reader, 1)}")
        if self.may_be_foreign and any(looks_foreign(column) for column in header):
            raise SourceError(
                f"{self.name}: line {reader.line_num}: not valid UTF-8: if the file is in another encoding, {NAME_IT}"
            )
        return [column.encode("utf-8", "backslashreplace").decode() for column in header]

    def read(self) -> Iterator[RawRows]:
        width = len(self._header)
        texts_at = [self._header.index(name) for name in self.text_columns.names]
        text_of = itemgetter(*texts_at)  # of one place gives what stands there, of several a tuple
        label_at = self._header.index(self.label) if self.label is not None else texts_at[0]
        rows, characters = _new_rows(self), 0
        with open_bytes(self._path, self.name) as file, open_bytes(self._path, self.name) as again:
            reader = self._records(file, self._separator)
            next(reader)
            lines = enumerate(self._open_text(again, ""), 1)  # read up to the last row that is no csv, if there is one
            while True:
                line = reader.line_num + 1
                try:
                    record = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    beginning = next((text.rstrip("\r\n") for number, text in lines if number == line), "")
                    rows.bad.append(self._bad_row(reader, line, str(error), beginning))
                    _carry(rows, None)
                    continue
                if record:
                    _carry(rows, record if len(record) == width else None)
                if len(record) == width:
                    _append(rows, text_of(record), record[label_at], line)
                    characters += sum(len(record[place]) for place in texts_at)
                elif record:
                    reason = f"{len(record)} fields where the header has {width}"
                    rows.bad.append(self._bad_row(reader, line, reason, self._separator.join(record)))
                if len(rows.texts) + len(rows.bad) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
                    yield rows
                    rows, characters = _new_rows(self), 0
        yield rows

    def pack(self, carried: Any) -> Carried:
        places = [self.columns.index(name) for name in self._carried]
        return super().pack([row and [_visible(row[place]) for place in places] for row in carried])

    def _bad_row(self, reader: Any, line: int, reason: str, found: str) -> BadRow:
        """The row that begins in a line and ends where the reader is."""
        lines = reader.line_num - line + 1
        return BadRow(line, reason + _goes_on(reader, line), excerpt(found), lines=lines)

    def _records(self, file: io.BufferedReader, separator: str) -> Any:
        """A csv.reader that stands before the header."""
        reader = csv.reader(self._open_text(file, ""), delimiter=separator, strict=True)
        for _ in range(self._lines_before):
            next(reader)
        return reader


def _goes_on(reader: Any, line: int) -> str:
    """What to add to the reason why a row that begins in this line is bad: a quote that is not closed takes all the
    lines up to the next one into the row."""
    return (
        f" (the row goes on to line {reader.line_num}: a quote that is not closed?)" if reader.line_num > line else ""
    )


def _new_rows(source: Source) -> RawRows:
    return RawRows([], [], [], [], [] if source.carries else None)


def _carry(rows: RawRows, record: Any) -> None:
    if rows.carried is not None:
        rows.carried.append(record)


def _visible(field: str) -> str:
    """A field that is not valid UTF-8 with its wrong bytes spelled out, as in \\xe9."""
    return field if field.isascii() else field.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _kind(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > EXACT_IN_FLOATS:
        return "long" if -(1 << 63) <= value < 1 << 63 else "other"
    return {bool: "bool", int: "int", float: "float", str: "str", type(None): ""}.get(type(value), "other")


def _arrow_type(kinds: set[str]) -> pa.DataType:
    """What holds values of these kinds exactly; a string holds any."""
    kinds = kinds - {""}
    if kinds and kinds <= {"int", "long"}:
        return pa.int64()
    if kinds and kinds <= {"int", "float"}:
        return pa.float64()
    return pa.bool_() if kinds == {"bool"} else pa.string()


def _append(rows: RawRows, text: Any, label: Any, position: int) -> None:
    assert isinstance(rows.positions, list)
    rows.texts.append(text)
    rows.labels.append(label)
    rows.positions.append(position)


def _lines(read: Callable[[int], bytes], name: str, blank: bool = False) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := read(MAX_RECORD + 1):
        number += 1
        if len(line) > MAX_RECORD:
            raise SourceError(
                f"{name}: line {number} is longer than {MAX_RECORD >> 20} MiB; is this one record a line?"
            )
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if blank or not line.isspace():
            yield number, line


class _Pairs(list[tuple[str, Any]]):
    """An object's names and values as they stand there."""


def _refuse_doubles(line: bytes, columns: Sequence[Steps]) -> None:
    """
    Raises:
        ValueError: the object has one of the columns twice, or an object in it a field that is read.
    """
    record = json.loads(line.decode(), object_pairs_hook=_Pairs)
    for steps in columns:
        value = record
        for depth, name in enumerate(steps, 1):
            found = [each for own, each in value if own == name] if isinstance(value, _Pairs) else []
            if len(found) > 1:
                raise ValueError(f"two fields are called {'.'.join(steps[:depth])!r}")
            value = found[0] if found else None


def _dotted(*names: str | None) -> list[str]:
    return [name for name in names if name is not None and "." in name]


def _parse_object(line: bytes) -> dict[str, Any]:
    """The line's object; half a character in a field's name, which no table can hold, is spelled out as in \\ud800.

    Raises:
        ValueError: why the line is not a JSON object, or two of its fields would then have one name.
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
        raise ValueError(NOT_AN_OBJECT)
    return _with_sound_names(record) if b"\\u" in line else record


def _with_sound_names(record: dict[str, Any]) -> dict[str, Any]:
    with suppress(UnicodeEncodeError):
        "".join(record).encode()
        return record
    sound: dict[str, Any] = {}
    for name, value in record.items():
        spelled = name.encode("utf-8", "backslashreplace").decode()
        if spelled in sound or (spelled != name and spelled in record):
            raise ValueError(f"two fields are called {spelled!r}")
        sound[spelled] = value
    return sound
