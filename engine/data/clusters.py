"""Which test rows belong together: the column of the sources that says it, kept beside a store.

A store holds tokens and labels only. `NAME.clusters.parquet` beside the store `NAME` has one int32 column, `cluster`,
with a number for each row of the store; rows with the same number had the same value in the column that the file's
metadata names, which also has the store's fingerprint.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from penstock.engine.data.sources import Source
from penstock.engine.data.store import Store
from penstock.engine.errors import SourceError, StoreError
from penstock.engine.files import committed

FORMAT = "1"


def cluster_file(store: Path) -> Path:
    """Where the clusters of a store's rows are kept."""
    return store.with_name(f"{store.name}.clusters.parquet")


def write_cluster_file(path: Path, store: Store, sources: Sequence[Source], column: str) -> int:
    """Reads the column from the sources that the store was prepared from; returns the number of clusters.

    Raises:
        SourceError: there is no such column, or a row of the store has no value in it.
        StoreError: the store was prepared from other sources.
        DiskError: the disk is full or cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    codes = _codes(store, sources, column)
    metadata = {
        "penstock.clusters": FORMAT,
        "penstock.column": column,
        "penstock.store": store.fingerprint,
    }
    table = pa.table({"cluster": codes}).replace_schema_metadata(metadata)
    with committed(path) as file:
        pq.write_table(table, pa.PythonFile(file, "w"), compression="zstd", write_page_checksum=True)
    return int(codes.max(initial=-1)) + 1


def read_cluster_file(path: Path, fingerprint: str) -> tuple[str, np.ndarray]:
    """The column's name and int32 (rows,), the cluster of each row of the store with that fingerprint.

    Raises:
        StoreError: it is missing, damaged, or of another store.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        metadata = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
        if metadata["penstock.clusters"] != FORMAT:
            raise StoreError(f"{path}: of another version of penstock")
        codes = file.read()["cluster"].to_numpy()
        column, store = metadata["penstock.column"], metadata["penstock.store"]
    except FileNotFoundError:
        raise StoreError(f"{path}: missing: give the test data as a source with --cluster COLUMN") from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: damaged: {' '.join(str(error).split())}; remove it, and run again") from None
    if store != fingerprint:
        raise StoreError(f"{path}: of another store than the test data; remove it, and run again")
    if codes.dtype.kind != "i" or not len(codes) or int(codes.min()) < 0:
        raise StoreError(f"{path}: damaged: its clusters are no numbers of clusters; remove it, and run again")
    return column, codes


def read_clusters(store: Store, column: str) -> np.ndarray:
    """int32 (rows,): the clusters kept beside a store.

    Raises:
        StoreError: none are, or those of another column.
    """
    path = cluster_file(store.path)
    if not path.exists():
        raise StoreError(
            f"{store.path}: a store keeps no column {column!r}, and there is no {path.name} beside it: give the "
            "source that it was prepared from"
        )
    there, codes = read_cluster_file(path, store.fingerprint)
    if there != column:
        raise StoreError(f"{path} has the clusters of column {there!r}, not {column!r}")
    if len(codes) != store.num_examples:
        raise StoreError(f"{path}: damaged: {len(codes):,} rows, the store has {store.num_examples:,}; remove it")
    return codes


class ClusterCodes:
    """Numbers for values, equal ones for equal values."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._codes: dict[str, int] = {}

    def of(self, value: object, place: str) -> int:
        """
        Raises:
            SourceError: there is no value, or it is a list or an object.
        """
        if value is None or value != value or value == "":
            raise SourceError(f"{place}: column {self._column!r} is empty: --cluster needs a value in every row")
        if isinstance(value, list | dict):
            raise SourceError(
                f"{place}: column {self._column!r} holds lists or objects: --cluster takes a single value"
            )
        return self._codes.setdefault(str(value), len(self._codes))


def carried_values(carried: object, column: str, rows: int) -> list[object]:
    """A carried column's value in each of the rows that were read, good or bad."""
    if isinstance(carried, list):
        return [None if row is None else row.get(column) for row in carried]
    return carried.column(column).to_pylist() if carried is not None else [None] * rows  # type: ignore[attr-defined]


def _codes(store: Store, sources: Sequence[Source], column: str) -> np.ndarray:
    shards = [store.map_shard(number).batch for number in range(len(store.manifest.shards))]
    numbers = np.concatenate([shard["source"].to_numpy() for shard in shards])
    positions = np.concatenate([shard["source_row"].to_numpy() for shard in shards])
    if len(sources) != len(store.manifest.sources):
        raise StoreError(f"{store.path}: prepared from {len(store.manifest.sources)} sources, not {len(sources)}")
    codes, found = ClusterCodes(column), np.full(store.num_examples, -1, np.int32)
    for number, source in enumerate(sources):
        wanted = np.flatnonzero(numbers == number)
        ours, begin = positions[wanted], 0  # ascending, as the source's are
        source.carry([column])
        for rows in source.rows():
            good = np.asarray(rows.positions, np.int64)
            everything = np.sort(np.concatenate([good, np.array([bad.position for bad in rows.bad], np.int64)]))
            if not len(everything):
                continue
            values = carried_values(rows.carried, column, len(everything))
            end = int(np.searchsorted(ours, everything[-1], "right"))
            for row, position in zip(wanted[begin:end], ours[begin:end], strict=True):
                place = int(np.searchsorted(everything, position))
                if everything[place] == position:
                    found[row] = codes.of(values[place], source.position(int(position)))
            begin = end
    if (found < 0).any():
        raise StoreError(f"{store.path}: {(found < 0).sum():,} of its rows are not in the sources: they have changed")
    return found
