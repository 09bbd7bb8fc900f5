"""Files of predictions that anybody may have made: a label for each row."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engine.data.clusters import carried_values
from penstock.engine.data.sources import open_source
from penstock.engine.data.sources.columnar import columnar_errors, label_values
from penstock.engine.data.sources.fields import Names, Steps, value_at
from penstock.engine.data.sources.labels import spelling
from penstock.engine.data.sources.open import form_of
from penstock.engine.errors import SourceError

FORMS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
LABEL = "label"
IdColumn = Callable[[str, Sequence[str]], str | None]  # (file, its columns) -> the one that says which row it is


@dataclass(frozen=True)
class PredictionFile:
    """
    Attributes:
        columns: that the file has.
        spelled: each row's label as it is spelled. ids: which row it is of; None where nothing says that.
    """

    name: str
    columns: Sequence[str]
    spelled: list[str]
    ids: list[str] | None


def read_prediction_file(name: str, id_column: IdColumn, content: bytes | None = None) -> PredictionFile:
    """
    Args:
        content: of a parquet file that has been read already.

    Raises:
        SourceError: there is no such file, it is of another form, it has no labels or two columns of them, or not that
            of the ids, or a row lacks a label.
    """
    path = Path(os.path.expanduser(name))
    if not path.is_file():
        raise SourceError(f"{name}: no such file of predictions")
    if form_of(path) not in FORMS:
        raise SourceError(f"{name}: predictions are csv, tsv, jsonl or parquet files")
    if form_of(path) == ".parquet":
        columns, labels, ids = _from_parquet(name, id_column, read_content(name) if content is None else content)
    else:
        columns, labels, ids = _from_text(name, id_column)
    spelled = []
    for number, label in enumerate(labels, 1):
        try:
            spelled.append(spelling(label, LABEL))
        except ValueError as error:
            raise SourceError(f"{name}: row {number}: {error}: every row needs a prediction") from None
    return PredictionFile(name, columns, spelled, None if ids is None else [str(value) for value in ids])


def read_content(name: str) -> bytes:
    try:
        return Path(os.path.expanduser(name)).read_bytes()
    except OSError as error:
        raise SourceError(f"{name}: cannot be read: {error.strerror}") from None


def _from_text(name: str, id_column: IdColumn) -> tuple[Sequence[str], list[Any], list[Any] | None]:
    """csv, tsv, jsonl. The label is read as a text, and what it cannot be is found by its spelling."""
    try:
        source = open_source(name, text=LABEL, need_label=False)
    except SourceError as error:
        if "no column" in str(error):
            raise SourceError(f"{error}; a file of predictions has such a column") from None
        raise
    wanted = id_column(name, source.columns)
    source.carry([LABEL, *([wanted] if wanted else [])])
    labels: list[Any] = []
    ids: list[Any] = []
    for rows in source.rows():
        count = len(rows.texts) + len(rows.bad)
        labels += carried_values(rows.carried, LABEL, count)
        ids += carried_values(rows.carried, wanted, count) if wanted else []
    return source.columns, labels, ids if wanted else None


def _from_parquet(name: str, id_column: IdColumn, content: bytes) -> tuple[Sequence[str], list[Any], list[Any] | None]:
    """A column of any type has the labels that a store has which is prepared from it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with columnar_errors(name):
        file = pq.ParquetFile(pa.BufferReader(content))
        columns = file.schema_arrow.names
        names = Names(columns, lambda steps: _fields_in(file.schema_arrow, steps))
        if LABEL not in columns:
            raise SourceError(
                f"{name}: no column {LABEL!r}; {names.there_are(LABEL)}; a file of predictions has such a column"
            )
        wanted = id_column(name, columns)
        steps = names.steps(wanted) if wanted else ()
        if steps is None:
            raise SourceError(f"{name}: no column {wanted!r}; {names.there_are(wanted or '')}")
        for column in (LABEL, *steps[:1]):
            if columns.count(column) > 1:
                raise SourceError(f"{name}: two columns are called {column!r}; rename one of them")
        table = file.read([LABEL, *steps[:1]])
    labels = [value for chunk in table[LABEL].chunks for value in label_values(chunk)]
    ids = [value_at(value, steps[1:]) for value in table[steps[0]].to_pylist()] if steps else None
    return columns, labels, ids


def _fields_in(schema: Any, steps: Steps) -> list[str]:
    """The names of the fields of the objects to which the steps lead; none where there are no objects."""
    from pyarrow.types import is_struct

    kind = schema.field(steps[0]).type
    for name in steps[1:]:
        kind = kind.field(name).type
    return [field.name for field in kind] if is_struct(kind) else []
