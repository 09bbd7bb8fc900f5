"""How predictions are written: csv, tsv, jsonl or parquet, part by part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from penstock.engine.csv_text import csv_text
from penstock.engine.errors import ConfigError
from penstock.engine.output_file import COMPRESSIONS
from penstock.engine.training.plain_values import as_text, plain_list, to_json
from penstock.engine.training.predictions import Columns, Predicted, batch_of

FORMATS = ("csv", "tsv", "jsonl", "parquet")
LABEL_SEPARATOR = "|"  # where the training data was not read with one


class Writer(Protocol):
    """Writes parts of an output in their order."""

    def write(self, part: Predicted) -> None: ...

    def close(self) -> None: ...


def format_of_ending(out: str) -> str | None:
    """The format that a file's ending names; None where it names none, and for stdout.

    Raises:
        ConfigError: a format that is not compressed.
    """
    path = Path(out)
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
    ending = {"ndjson": "jsonl"}.get(suffix[1:], suffix[1:])
    if out == "-" or ending not in FORMATS:
        return None
    if ending == "parquet" and path.suffix in COMPRESSIONS:
        raise ConfigError(f"{out}: parquet is compressed in itself: leave {path.suffix} out")
    return ending


def output_format(out: str, given: str | None, remedy: str = "") -> str:
    """The format of an output: its ending's, else the one given.

    Args:
        remedy: what else could name it, for the message.

    Raises:
        ConfigError: neither says one.
    """
    if (ending := format_of_ending(out)) is not None:
        return ending
    if given is None:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise ConfigError(f"{out}: the ending names the format, one of {endings}{remedy}")
    if given not in FORMATS:
        raise ConfigError(f"format {given}: predictions are written as {', '.join(FORMATS)}")
    return given


def check_separator(format: str, label_names: Sequence[str], separator: str | None) -> None:
    """
    Raises:
        ConfigError: lists of labels could not be taken apart again: one of them holds what would stand between them.
    """
    separator = separator or LABEL_SEPARATOR
    torn = next((name for name in label_names if separator in name), None)
    if format in ("csv", "tsv") and torn is not None:
        raise ConfigError(
            f"the label {torn!r} holds {separator!r}, which would stand between the labels of a row: give another "
            "--label-separator, or write jsonl or parquet"
        )


def open_writer(
    file: Any, format: str, columns: Columns, carried: pa.Schema, label_separator: str | None = None
) -> Writer:
    """
    Args:
        file: as `open_output` gives.
        carried: the types of the carried columns.
        label_separator: between the labels of a row, and their probabilities, in csv and tsv.
    """
    if format == "parquet":
        return _ParquetWriter(file, columns, carried)
    if format == "jsonl":
        return _JsonLinesWriter(file, columns)
    return _CsvWriter(file, columns, carried, "," if format == "csv" else "\t", label_separator or LABEL_SEPARATOR)


class _ParquetWriter:
    def __init__(self, file: Any, columns: Columns, carried: pa.Schema) -> None:
        from pyarrow.parquet import ParquetWriter

        self._columns, self._carried = columns, carried
        self._schema = columns.schema(carried)
        self._sink = pa.PythonFile(file, mode="w")
        self._writer = ParquetWriter(self._sink, self._schema)
        self._waiting: list[pa.RecordBatch] = []

    def write(self, part: Predicted) -> None:
        self._waiting.append(batch_of(part, self._columns, self._carried))
        if sum(batch.num_rows for batch in self._waiting) >= 1 << 16:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


class _CsvWriter:
    def __init__(self, file: Any, columns: Columns, carried: pa.Schema, delimiter: str, label_separator: str) -> None:
        self._file, self._columns, self._carried, self._delimiter = file, columns, carried, delimiter
        self._label_separator = label_separator
        self._write([columns.schema(carried).names])

    def write(self, part: Predicted) -> None:
        batch = batch_of(part, self._columns, self._carried)
        own = len(self._carried)
        values = [[_field(value) for value in plain_list(column)] for column in batch.columns[:own]]
        predicted = [map(self._joined, _short(column.to_pylist())) for column in batch.columns[own:]]
        self._write(zip(*values, *predicted, strict=True))

    def _joined(self, value: Any) -> Any:
        return self._label_separator.join(map(str, value)) if isinstance(value, list) else value

    def _write(self, rows: Any) -> None:
        self._file.write(csv_text(rows, self._delimiter).encode())

    def close(self) -> None: ...


class _JsonLinesWriter:
    def __init__(self, file: Any, columns: Columns) -> None:
        self._file, self._columns = file, columns

    def write(self, part: Predicted) -> None:
        renamed, predicted = self._columns.renamed, self._columns.predicted
        if isinstance(part.carried, pa.RecordBatch):
            values = [plain_list(column) for column in part.carried.columns]
            names = part.carried.schema.names
            rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
        else:
            rows = [row or {} for row in part.carried]
        columns = [_short(column.to_pylist()) for column in self._columns.of(part.probabilities)]
        lines = []
        for row, own in zip(rows, zip(*columns, strict=True), strict=True):
            record = {renamed[name]: value for name, value in row.items()}
            record.update(zip(predicted, own, strict=True))
            lines.append(to_json(record) + "\n")
        self._file.write("".join(lines).encode())

    def close(self) -> None: ...


def _field(value: Any) -> Any:
    """A value as a CSV field: csv's own for numbers, JSON's words for the rest."""
    return value if value is None or type(value) in (int, float) else as_text(value)


def _short(values: list[Any]) -> list[Any]:
    """Probabilities with the six digits that float32 has."""
    return [
        _short(value) if isinstance(value, list) else float(f"{value:.6g}") if isinstance(value, float) else value
        for value in values
    ]
