"""Which rows belong together: the values of a column of the sources, as `prepare --cluster` keeps them in a store.

A row has a key, 64 bits of a hash of its value: rows of one store and of two belong together where their keys are
equal, whoever made them. `clusters.arrow` in a store has one int64 column, `cluster`. A study of other sources keeps
the same beside its own store `NAME`, in `NAME.clusters.parquet` with the store's fingerprint. Earlier penstocks
numbered the values there, then had other keys for `17.0` in a csv than for 17: neither says anything of another store's
rows.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.data.manifest import CLUSTERS_FORMAT
from penstock.engine.data.sources import Rows, Source
from penstock.engine.data.sources.labels import spelling
from penstock.engine.data.store import Store
from penstock.engine.errors import SourceError, StoreError
from penstock.engine.files import committed

FORMAT = "3"
_NUMBERED = "1"  # of the format that has numbers in place of keys
_OTHER_KEYS = "2"
_REMEMBERED = 1 << 18  # values whose keys are kept at hand
# What tables with a null in a column of whole numbers make of these, and csv then keeps as text.
_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")


@dataclass(frozen=True)
class KeptClusters:
    """
    Attributes:
        column: of the sources. keys: int, (rows,), equal for rows that belong together.
        comparable: whether they are keys as they are made now, so that those of another store's rows may be equal to
            them.
    """

    column: str
    keys: np.ndarray
    comparable: bool = True

    @property
    def count(self) -> int:
        return len(np.unique(self.keys))


class ClusterKeys:
    """Keys of a column's values."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._keys: dict[Any, int] = {}

    def of(self, value: object, source: Source, position: int) -> int:
        """
        Args:
            source, position: of the row, for the message.

        Raises:
            SourceError: there is no value, or it is a list or an object.
        """
        known = (type(value), value)
        try:
            return self._keys[known]
        except (KeyError, TypeError):  # not seen yet, or a list
            pass
        try:
            whole = isinstance(value, float) and value.is_integer()
            name = spelling(int(value) if whole else value, self._column)  # type: ignore[call-overload]
        except ValueError as error:
            place = source.position(position)
            raise SourceError(f"{place}: column {error}: --cluster needs a single value in every row") from None
        if (number := _WHOLE.fullmatch(name)) is not None:
            name = number[1]
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if len(self._keys) >= _REMEMBERED:
            self._keys.clear()
        key = self._keys[known] = int.from_bytes(digest, "little", signed=True)
        return key

    def of_rows(self, source: Source, rows: Rows, wanted: np.ndarray | None = None) -> np.ndarray:
        """int64: the keys of the good rows of a batch whose source carries the column.

        Args:
            wanted: bool, which of them; None for all.

        Raises:
            SourceError: as `of`.
        """
        good = np.asarray(rows.positions, np.int64)
        everything = np.sort(np.concatenate([good, np.array([row.position for row in rows.bad], np.int64)]))
        good = good if wanted is None else good[wanted]
        values = carried_values(rows.carried, self._column, len(everything))
        places = zip(np.searchsorted(everything, good).tolist(), good.tolist(), strict=True)
        keys = (self.of(values[place], source, position) for place, position in places)
        return np.fromiter(keys, np.int64, len(good))


def carried_values(carried: object, column: str, rows: int) -> list[object]:
    """A carried column's value in each of the rows that were read, good or bad."""
    if isinstance(carried, list):
        return [None if row is None else row.get(column) for row in carried]
    return carried.column(column).to_pylist() if carried is not None else [None] * rows  # type: ignore[attr-defined]


def check_several(keys: np.ndarray, column: str, what: str) -> None:
    """
    Raises:
        SourceError: all rows belong together, so that nothing can be resampled.
    """
    if len(keys) and (keys == keys[0]).all():
        raise SourceError(
            f"{what}: column {column!r} has the same value in all {len(keys):,} rows: --cluster resamples groups of "
            "rows, and one group says nothing of another; name another column, or leave it out"
        )


def cluster_file(store: Path) -> Path:
    """Where a study keeps the clusters of its own store's rows."""
    return store.with_name(f"{store.name}.clusters.parquet")


def write_cluster_file(path: Path, store: Store, sources: Sequence[Source], column: str) -> int:
    """Reads the column from the sources that the store was prepared from; returns the number of clusters.

    Raises:
        SourceError: there is no such column, or a row of the store has no value in it.
        StoreError: the store was prepared from other sources.
        DiskError: the disk is full or cannot be written.
    """
    found = KeptClusters(column, _keys(store, sources, column))
    keep_clusters(path, store, found)
    return found.count


def keep_clusters(path: Path, store: Store, clusters: KeptClusters) -> None:
    """Writes the file of a store's clusters.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {
        "penstock.clusters": FORMAT if clusters.comparable else _OTHER_KEYS,
        "penstock.column": clusters.column,
        "penstock.store": store.fingerprint,
    }
    table = pa.table({"cluster": clusters.keys}).replace_schema_metadata(metadata)
    with committed(path) as file:
        pq.write_table(table, pa.PythonFile(file, "w"), compression="zstd", write_page_checksum=True)


def read_cluster_file(path: Path, fingerprint: str) -> KeptClusters:
    """The clusters of the store with that fingerprint.

    Raises:
        StoreError: the file is missing, damaged, or of another store.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        metadata = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
        version = metadata["penstock.clusters"]
        if version not in (FORMAT, _OTHER_KEYS, _NUMBERED):
            raise StoreError(f"{path}: of another version of penstock")
        keys = file.read()["cluster"].to_numpy()
        column, store = metadata["penstock.column"], metadata["penstock.store"]
    except FileNotFoundError:
        raise StoreError(f"{path}: missing: give the test data as a source with --cluster COLUMN") from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: damaged: {' '.join(str(error).split())}; remove it, and run again") from None
    if store != fingerprint:
        raise StoreError(f"{path}: of another store than the test data; remove it, and run again")
    if keys.dtype.kind != "i" or not len(keys) or (version == _NUMBERED and int(keys.min()) < 0):
        raise StoreError(f"{path}: damaged: its clusters are no numbers of clusters; remove it, and run again")
    return KeptClusters(column, keys, version == FORMAT)


def kept_clusters(store: Store) -> KeptClusters | None:
    """Those that are kept in the store, or beside it; None where none are.

    Raises:
        StoreError: they are damaged.
    """
    if store.manifest.clusters is not None:
        assert store.clusters is not None
        entry = store.manifest.clusters
        return KeptClusters(entry.column, store.clusters, entry.format == CLUSTERS_FORMAT)
    path = cluster_file(store.path)
    if not path.exists():
        return None
    found = read_cluster_file(path, store.fingerprint)
    if len(found.keys) != store.num_examples:
        raise StoreError(f"{path}: damaged: {len(found.keys):,} rows, the store has {store.num_examples:,}; remove it")
    return found


def read_clusters(store: Store, column: str) -> KeptClusters:
    """The clusters kept in a store, or beside it.

    Raises:
        StoreError: none are, or those of another column.
    """
    found = kept_clusters(store)
    if found is None:
        raise StoreError(
            f"{store.path}: a store keeps no column {column!r} unless it is prepared with --cluster {column}: prepare "
            "it so, or give the source that it was prepared from"
        )
    if found.column != column:
        raise StoreError(f"{store.path} has the clusters of column {found.column!r}, not {column!r}")
    return found


@dataclass(frozen=True)
class ClusterOverlap:
    """
    Attributes:
        column: of the sources. clusters, rows: of the test data.
        shared, shared_rows: those of which the training data has rows too.
    """

    column: str
    clusters: int
    rows: int
    shared: int
    shared_rows: int

    @classmethod
    def of(cls, train: KeptClusters, test: KeptClusters) -> "ClusterOverlap | None":
        """None where they cannot be compared."""
        if not (train.comparable and test.comparable and train.column == test.column):
            return None
        keys, counts = np.unique(test.keys, return_counts=True)
        shared = np.isin(keys, train.keys)
        return cls(test.column, len(keys), len(test.keys), int(shared.sum()), int(counts[shared].sum()))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if not self.shared:
            return f"none of the {self.clusters:,} groups of test rows by {self.column!r} has rows in the training data"
        has = "has" if self.shared == 1 else "have"
        return (
            f"{self.shared:,} of {self.clusters:,} groups of test rows by {self.column!r} ({self.shared_rows:,} of "
            f"{self.rows:,} rows) {has} rows in the training data too"
        )


def _keys(store: Store, sources: Sequence[Source], column: str) -> np.ndarray:
    shards = [store.map_shard(number).batch for number in range(len(store.manifest.shards))]
    numbers = np.concatenate([shard["source"].to_numpy() for shard in shards])
    positions = np.concatenate([shard["source_row"].to_numpy() for shard in shards])
    if len(sources) != len(store.manifest.sources):
        raise StoreError(f"{store.path}: prepared from {len(store.manifest.sources)} sources, not {len(sources)}")
    keys, found = ClusterKeys(column), np.zeros(store.num_examples, np.int64)
    missing = 0
    for number, source in enumerate(sources):
        wanted = np.flatnonzero(numbers == number)
        ours, begin = positions[wanted], 0  # ascending, as the source's are
        source.carry([column])
        for rows in source.rows():
            good = np.asarray(rows.positions, np.int64)
            if not len(good):
                continue
            kept = np.isin(good, ours[begin : int(np.searchsorted(ours, good[-1], "right"))])
            count = int(kept.sum())
            found[wanted[begin : begin + count]] = keys.of_rows(source, rows, kept)
            begin += count
        missing += len(wanted) - begin
    if missing:
        raise StoreError(f"{store.path}: {missing:,} of its rows are not in the sources: they have changed")
    return found
