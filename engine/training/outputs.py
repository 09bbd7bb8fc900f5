"""Where predictions go: csv, tsv, jsonl or parquet, to a file or to stdout, part by part."""

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from penstock.engine.checked import SEAL_NAME
from penstock.engine.csv_text import csv_text
from penstock.engine.data.job import JOB_NAME
from penstock.engine.data.manifest import INDEX_NAME, MANIFEST_NAME
from penstock.engine.errors import ConfigError, DiskError
from penstock.engine.files import committed, disk_errors
from penstock.engine.training.plain_values import as_text, plain_list, to_json
from penstock.engine.training.predictions import Columns, Predicted, batch_of

FORMATS = ("csv", "tsv", "jsonl", "parquet")
LABEL_SEPARATOR = "|"  # where the training data was not read with one
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


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


def check_output(out: str, inputs: Sequence[Path], folders: Sequence[Path] = ()) -> None:
    """Makes sure that an output can be written and is nothing that is still needed.

    Args:
        inputs: files that are read. folders: whose files are not to be touched.

    Raises:
        ConfigError: it is one of them, by whatever name, or a folder, or within a checkpoint or a store.
        DiskError: it cannot be written.
    """
    if out == "-":
        for file in inputs:
            if file.exists() and os.path.samestat(os.fstat(_stdout_number()), file.stat()):
                raise ConfigError(f"stdout is {file}, which is being read: write somewhere else")
        return
    path = Path(out).expanduser()
    if path.is_dir():
        raise ConfigError(f"{out} is a folder: name a file")
    for file in inputs:
        if _same_file(path, file):
            raise ConfigError(f"{out} is {file}, which is being read: write somewhere else")
    real = Path(os.path.realpath(path))
    for parent in real.parents:
        if (owner := _owner(parent)) is not None:
            raise ConfigError(f"{out} is in {owner}: write somewhere else")
    for folder in folders:
        if real.exists() and Path(os.path.realpath(folder)) in real.parents:
            raise ConfigError(f"{out} belongs to {folder}: write somewhere else")
    if not real.parent.is_dir():
        raise DiskError(f"{out}: cannot be written: there is no folder {real.parent}")
    if not os.access(real if _is_device(real) else real.parent, os.W_OK):
        raise DiskError(f"{out}: cannot be written: permission denied")


def _owner(folder: Path) -> str | None:
    """What a folder is that holds only what was written into it at once; None for others, runs among them."""
    if (folder / "run.json").is_file():
        return None
    if (folder / SEAL_NAME).is_file():
        return f"the checkpoint {folder}"
    if folder.name == "checkpoints" and (folder.parent / "run.json").is_file():
        return f"the checkpoints of {folder.parent}"
    if (folder / JOB_NAME).is_file() or all((folder / name).is_file() for name in (MANIFEST_NAME, INDEX_NAME)):
        return f"the store {folder}"
    return None


def check_distinct(outputs: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: two outputs of one command are the same file, by whatever names.
    """
    for one, other in combinations(outputs, 2):
        first, second = Path(one).expanduser(), Path(other).expanduser()
        if one == other == "-" or (_same_file(first, second) and not _is_device(first)):
            where = "stdout" if one == "-" else one if one == other else f"{one} and {other}"
            raise ConfigError(f"two outputs go to {where}, one file: name another for one of them")


def _same_file(path: Path, other: Path) -> bool:
    same = path.exists() and other.exists() and path.samefile(other)
    return same or os.path.realpath(path) == os.path.realpath(other)


def _stdout_number() -> int:
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError):
        return os.open(os.devnull, os.O_WRONLY)  # captured by a test or a notebook: no file


def _is_device(path: Path) -> bool:
    """Whether it is a pipe or a device, which is written as it is instead of being replaced."""
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)


@contextmanager
def open_output(out: str) -> Iterator[Any]:
    """A binary file to write; a file has its name only when the block ends, whole, or else never.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    path = Path(os.path.realpath(Path(out).expanduser()))
    if out == "-":
        stream: BinaryIO = sys.stdout.buffer
        yield stream
        stream.flush()
    elif _is_device(path):
        with disk_errors(path), open(path, "wb") as file:
            yield file
    else:
        with committed(path) as whole, _compressed(whole, path) as packed:
            yield packed


@contextmanager
def _compressed(file: Any, path: Path) -> Iterator[Any]:
    compression = COMPRESSIONS.get(path.suffix)
    if compression is None:
        yield file
        return
    with pa.CompressedOutputStream(pa.PythonFile(file, mode="w"), compression) as stream:
        yield stream


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
