"""Predictions: the source's rows, each with its label and probability."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from penstock.engine.data.sources import BadRow, Source
from penstock.engine.data.sources.base import Carried, unique_names


@dataclass(frozen=True)
class Predicted:
    """Consecutive rows of a source.

    Attributes:
        carried: their columns, see `Rows.carried`.
        probabilities: float32 (rows, num_labels); NaN where a row has no usable text.
        bad: those rows.
    """

    source: Source
    carried: Carried
    probabilities: np.ndarray
    bad: list[BadRow]

    def __len__(self) -> int:
        return len(self.probabilities)


class Columns:
    """The columns of an output: the source's own, then the predictions'.

    `label` and `probability`, its probability, always have these names; so have `label_2`, `probability_2` and so on
    of the `top_k` most probable labels, and `probability_NAME` of each label NAME, in which anything but letters,
    digits and underscores becomes an underscore. A column of the source that has one of these names comes out as
    `source_` and it.

    Args:
        carried: the source's columns.
        label_names: of the model.
        top_k: how many labels for each row.
        probabilities: whether each label's probability is wanted.
    """

    def __init__(
        self, carried: Sequence[str], label_names: Sequence[str], *, top_k: int = 1, probabilities: bool = False
    ) -> None:
        self._label_names = pa.array(label_names, pa.string())
        self._top_k = min(top_k, len(label_names))
        self._all = probabilities
        names = [f"{kind}{place}" for place in self._places() for kind in ("label", "probability")]
        if probabilities:
            keys = [re.sub(r"\W+", "_", name) for name in label_names]
            keys = [key if key.strip("_") else f"class_{number}" for number, key in enumerate(keys)]
            names += [f"probability_{key}" for key in unique_names(keys)]
        self.predicted = names
        self.renamed = self._renamed(carried)

    def _kind(self, name: str) -> pa.DataType:
        return pa.string() if name.startswith("label") else pa.float32()

    def _places(self) -> list[str]:
        return ["", *(f"_{place}" for place in range(2, self._top_k + 1))]

    def _renamed(self, carried: Sequence[str]) -> dict[str, str]:
        """The carried columns' names in the output, by their own."""
        taken = {*carried, *self.predicted}
        names = {}
        for name in carried:
            names[name] = name
            if name in self.predicted:
                names[name] = next(new for new in _variants(f"source_{name}") if new not in taken)
                taken.add(names[name])
        return names

    @property
    def moved(self) -> dict[str, str]:
        """The carried columns that had to give way."""
        return {old: new for old, new in self.renamed.items() if old != new}

    def schema(self, carried: pa.Schema) -> pa.Schema:
        """The output's, given that of the carried columns."""
        fields = [field.with_name(self.renamed[field.name]) for field in carried]
        kinds = [self._kind(name) for name in self.predicted]
        return pa.schema([*fields, *(pa.field(name, kind) for name, kind in zip(self.predicted, kinds, strict=True))])

    def of(self, probabilities: np.ndarray) -> list[pa.Array]:
        """The predictions' columns, from (rows, num_labels); null where the probabilities are NaN."""
        missing = np.isnan(probabilities[:, 0])
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : self._top_k]
        arrays = []
        for place in range(self._top_k):
            numbers = pa.array(best[:, place], mask=missing)
            arrays.append(self._label_names.take(numbers))
            arrays.append(pa.array(probabilities[np.arange(len(best)), best[:, place]], pa.float32(), mask=missing))
        if self._all:
            arrays += [pa.array(column, pa.float32(), mask=missing) for column in probabilities.T]
        return arrays


class ListColumns(Columns):
    """As `Columns`, of a model that gives each text a list of labels.

    `label` has those whose probability is at least their threshold, the most probable first, and `probability` theirs.

    Args:
        thresholds: (num_labels,).
        top_k: that many of the most probable labels, whatever the thresholds; None for those that reach theirs.
    """

    def __init__(
        self,
        carried: Sequence[str],
        label_names: Sequence[str],
        thresholds: np.ndarray,
        *,
        top_k: int | None = None,
        probabilities: bool = False,
    ) -> None:
        super().__init__(carried, label_names, probabilities=probabilities)
        self._thresholds, self._most = thresholds, None if top_k is None else min(top_k, len(label_names))

    def _kind(self, name: str) -> pa.DataType:
        kinds = {"label": pa.list_(pa.string()), "probability": pa.list_(pa.float32())}
        return kinds.get(name, pa.float32())

    def of(self, probabilities: np.ndarray) -> list[pa.Array]:
        missing = np.isnan(probabilities[:, 0])
        order = np.argsort(-probabilities, axis=1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=1)
        if self._most is None:
            chosen = ranked >= self._thresholds[order]
        else:
            chosen = np.broadcast_to(np.arange(ranked.shape[1]) < self._most, ranked.shape)
        chosen = chosen & ~missing[:, None]
        ends = np.cumsum(chosen.sum(1))
        offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32), mask=np.append(missing, False))
        names = self._label_names.take(pa.array(order[chosen]))
        arrays = [
            pa.ListArray.from_arrays(offsets, names),
            pa.ListArray.from_arrays(offsets, pa.array(ranked[chosen], pa.float32())),
        ]
        if self._all:
            arrays += [pa.array(column, pa.float32(), mask=missing) for column in probabilities.T]
        return arrays


def place_rows(good: Sequence[int], bad: Sequence[BadRow]) -> np.ndarray:
    """int64: the places of the good rows among all that were read, from the positions of good and bad."""
    positions = np.concatenate([np.asarray(good, np.int64), np.asarray([row.position for row in bad], np.int64)])
    places = np.empty(len(positions), np.int64)
    places[np.argsort(positions, kind="stable")] = np.arange(len(positions))
    return places[: len(good)]


def batch_of(part: Predicted, columns: Columns, carried: pa.Schema) -> pa.RecordBatch:
    """A part of the output as Arrow."""
    schema = columns.schema(carried)
    return pa.RecordBatch.from_arrays(
        [*_arrow(part.carried, carried, len(part)), *columns.of(part.probabilities)], schema=schema
    )


def table_of(parts: Iterable[Predicted], columns: Columns, carried: pa.Schema) -> pa.Table:
    """The whole output as Arrow, in memory."""
    return pa.Table.from_batches([batch_of(part, columns, carried) for part in parts], columns.schema(carried))


def common_schema(sources: Sequence[Source]) -> pa.Schema:
    """The carried columns of all the sources; text where they differ in a type."""
    fields: dict[str, pa.DataType] = {}
    for source in sources:
        for field in source.carried_schema():
            known = fields.setdefault(field.name, field.type)
            if known != field.type:
                fields[field.name] = pa.string()
    return pa.schema(list(fields.items()))


def _arrow(carried: Carried, schema: pa.Schema, rows: int) -> Iterator[pa.Array]:
    from penstock.engine.training.plain_values import as_text, plain_list

    for field in schema:
        if isinstance(carried, pa.RecordBatch):
            if field.name not in carried.schema.names:
                yield pa.nulls(rows, field.type)
                continue
            column = carried.column(field.name)
            same = column.type == field.type
            yield column if same else pa.array([as_text(value) for value in plain_list(column)], field.type)
        else:
            values = [None if row is None else row.get(field.name) for row in carried]
            if pa.types.is_string(field.type):
                values = [as_text(value) for value in values]
            yield pa.array(values, field.type)


def _variants(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1
