"""Sources that are Arrow tables in the end: Parquet, Arrow IPC files and streams, and data sets of the hub."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.engine.data.sources.base import BATCH_CHARACTERS, BATCH_ROWS, Carried, RawRows, Source
from penstock.engine.data.sources.fields import Steps
from penstock.engine.errors import SourceError, first_line


class ColumnarSource(Source):
    """A source of Arrow record batches. `schema` and `batches` are all that the forms differ in."""

    class_names: list[str] | None = None  # of a label column that holds their numbers

    def choose(self, schema: pa.Schema, text: str | None, label: str | None, need_label: bool) -> None:
        self._schema = schema.remove_metadata()
        self.choose_columns(schema.names, text, label, need_label)
        for column in self.text_columns.names:
            kind = _value_type(self._type(self.steps(column)))
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise SourceError(f"{self.name}: column {column!r} holds {kind}, not text")
        self.multi_label = self.label is not None and is_list(self._type(self.steps(self.label)))

    def batches(self) -> Iterator[pa.RecordBatch]:
        raise NotImplementedError

    def read(self) -> Iterator[RawRows]:
        position = 1
        for whole in self.batches():
            for batch in _slices(self._lifted(whole), self.text_columns.names):
                columns = [_to_list(batch.column(name)) for name in self.text_columns.names]
                texts = columns[0] if self.text_columns.is_plain else list(zip(*columns, strict=True))
                labels = label_values(batch.column(self.label)) if self.label is not None else []
                if self.class_names is not None:
                    labels = [self._class_name(label) for label in labels]
                yield RawRows(texts, labels, range(position, position + len(texts)), carried=self._carry_from(batch))
                position += len(texts)

    def fields_in(self, steps: Steps) -> Sequence[str]:
        kind = self._type(steps)
        return [field.name for field in kind] if pa.types.is_struct(kind) else []

    def _type(self, steps: Steps) -> pa.DataType:
        kind = self._schema.field(self.columns.index(steps[0])).type
        for name in steps[1:]:
            kind = next(field.type for field in kind if field.name == name)
        return kind

    def wanted(self, depth: int | None = 1) -> list[str] | None:
        """The columns to read, None for all.

        Args:
            depth: None to name of a column of objects those fields alone that are read.
        """
        if self._carries and (self._carried == self.columns or self.columns != self._schema.names):
            return None
        read = (*self.text_columns.names, self.label, *self._carried)
        return list(dict.fromkeys(".".join(self.steps(name)[:depth]) for name in read if name is not None))

    def carried_schema(self) -> pa.Schema:
        return pa.schema([(name, self._type(self.steps(name))) for name in self._carried])

    def pack(self, carried: Any) -> Carried:
        return carried

    def _carry_from(self, batch: pa.RecordBatch) -> Carried | None:
        if not self._carries:
            return None
        if not self._carried:
            return [{}] * batch.num_rows
        if self.wanted() is not None:
            return batch.select(self._carried)
        columns = [self._column(batch, name) for name in self._carried]
        return pa.RecordBatch.from_arrays(columns, schema=self.carried_schema())

    def _column(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        by_name = name in self.inner or self.wanted() is not None
        return batch.column(name if by_name else self.columns.index(name))

    def _lifted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with the fields inside of objects that are read or carried as columns of their own; null too where
        there is no object."""
        for name, (outer, *inner) in self.inner.items():
            from pyarrow.compute import struct_field

            column = self._column(batch, outer)
            for field in inner:
                column = struct_field(column, [[each.name for each in column.type].index(field)])
            batch = batch.append_column(name, column)
        return batch

    def _class_name(self, label: Any) -> Any:
        assert self.class_names is not None
        if isinstance(label, list):
            return [self._class_name(one) for one in label]
        # -1 is how the hub's data sets say that a row has no label.
        return self.class_names[label] if label is not None and 0 <= label < len(self.class_names) else None


class ParquetSource(ColumnarSource):
    def __init__(self, name: str, path: Path, text: str | None, label: str | None, need_label: bool) -> None:
        super().__init__(name)
        self.path = self._path = path
        from pyarrow.parquet import ParquetFile  # a tenth of a second that only these files take

        with columnar_errors(name), ParquetFile(path) as file:
            schema = file.schema_arrow
        self.choose(schema, text, label, need_label)

    def batches(self) -> Iterator[pa.RecordBatch]:
        columns = self.wanted(depth=None)
        from pyarrow.parquet import ParquetFile

        with columnar_errors(self.name), ParquetFile(self._path, pre_buffer=False) as file:
            yield from file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False)


class ArrowSource(ColumnarSource):
    """An IPC file or an IPC stream; which, its first bytes say."""

    def __init__(self, name: str, path: Path, text: str | None, label: str | None, need_label: bool) -> None:
        super().__init__(name)
        self.path = self._path = path
        with columnar_errors(name):
            if path.stat().st_size == 0:
                raise SourceError(f"{name}: empty")
            with pa.memory_map(str(path)) as file:
                schema = self._open(file).schema
        self.choose(schema, text, label, need_label)

    def batches(self) -> Iterator[pa.RecordBatch]:
        with columnar_errors(self.name), pa.memory_map(str(self._path)) as file:
            reader = self._open(file)
            if isinstance(reader, pa.RecordBatchFileReader):
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                yield from reader

    @staticmethod
    def _open(file: pa.MemoryMappedFile) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        return pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)


SPLITS = ("train", "test", "validation", "valid", "dev", "val", "unsupervised", "all")


class DataSetSource(ColumnarSource):
    """A `datasets.Dataset`."""

    def __init__(self, name: str, data: Any, text: str | None, label: str | None, need_label: bool) -> None:
        super().__init__(name)
        self._data = data
        self.choose(data.features.arrow_schema, text, label, need_label)
        feature = data.features
        for step in () if self.label is None else self.steps(self.label):
            feature = feature[step]
        self.class_names = getattr(getattr(feature, "feature", feature), "names", None)

    def batches(self) -> Iterator[pa.RecordBatch]:
        for table in self._data.select_columns(self.wanted() or self.columns).with_format("arrow").iter(BATCH_ROWS):
            yield from table.combine_chunks().to_batches()


class TableSource(ColumnarSource):
    """A `pyarrow.Table`."""

    def __init__(self, name: str, table: pa.Table, text: str | None, label: str | None, need_label: bool) -> None:
        super().__init__(name)
        self._table = table
        self.choose(table.schema, text, label, need_label)

    def batches(self) -> Iterator[pa.RecordBatch]:
        columns = self.wanted()
        table = self._table if columns is None else self._table.select(columns)
        yield from table.to_batches(BATCH_ROWS)


class HubSource(DataSetSource):
    """`hf:name[:config][:split]`: a data set by its hub name, or a local folder of one; split train by default."""

    def __init__(self, name: str, text: str | None, label: str | None, need_label: bool) -> None:
        parts = name.removeprefix("hf:").split(":")
        if not parts[0] or len(parts) > 3:
            raise SourceError(f"{name}: expected hf:name, hf:name:split or hf:name:config:split")
        path, config, split = parts[0], None, "train"
        if len(parts) == 3:
            config, split = parts[1:]
        elif len(parts) == 2 and parts[1].split("[")[0] in SPLITS:
            split = parts[1]
        elif len(parts) == 2:
            config = parts[1]
        super().__init__(name, self._load(name, path, config, split), text, label, need_label)

    @staticmethod
    def _load(name: str, path: str, config: str | None, split: str) -> Any:
        try:
            import datasets
        except ImportError:
            raise SourceError(f"{name}: needs the datasets library: pip install 'penstock[hub]'") from None
        try:
            if (Path(path) / "state.json").is_file():
                return datasets.load_from_disk(path)
            if (Path(path) / "dataset_dict.json").is_file():
                return datasets.load_from_disk(path)[split]
            return datasets.load_dataset(path, config, split=split)
        except Exception as error:
            raise SourceError(f"{name}: cannot be loaded: {first_line(error)}") from error


@contextmanager
def columnar_errors(name: str) -> Iterator[None]:
    """Turns Arrow's refusals to read a file into a SourceError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"{name}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{name}: cannot be read: {first_line(error)}") from None


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _slices(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Parts of a batch that bound the memory that their texts take as Python strings."""
    rows = BATCH_ROWS
    if batch.num_rows:
        mean = max(1, sum(batch.column(name).nbytes for name in columns) // batch.num_rows)
        rows = max(1, min(BATCH_ROWS, BATCH_CHARACTERS // mean))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def label_values(column: pa.Array) -> list[Any]:
    """The values as they are meant: a float32 of 0.1 is not its nearest double, a moment ends where its zeros begin."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if is_list(kind):
        items = iter(label_values(column.flatten()))
        from pyarrow.compute import list_value_length

        sizes = list_value_length(column).to_pylist()
        return [None if size is None else list(islice(items, size)) for size in sizes]
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        return [
            None if value is None else float(str(number))
            for value, number in zip(column.to_pylist(), column.to_numpy(zero_copy_only=False), strict=True)
        ]
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        if pa.types.is_duration(kind):
            return column.cast(pa.int64()).to_pylist()
        zone = getattr(kind, "tz", None)
        if zone is not None:
            column = column.cast(pa.timestamp(kind.unit, "UTC")).cast(pa.timestamp(kind.unit))
        moments = (moment for moment in column.cast(pa.string()).to_pylist())
        suffix = "Z" if zone is not None else ""
        return [None if moment is None else _without_zeros(moment) + suffix for moment in moments]
    return _to_list(column)


def _without_zeros(moment: str) -> str:
    return moment.rstrip("0").rstrip(".") if "." in moment else moment


def _to_list(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return [value if value is None else _decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
