"""Prepared data on the disk: a folder of Arrow shards of token ids, an index of lengths and labels, a manifest."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from penstock._native import Shards
from penstock.engine.data.cut import Cut
from penstock.engine.data.file_systems import file_system_of, is_remote
from penstock.engine.data.label_lists import NO_LABEL, multi_hot
from penstock.engine.data.manifest import (
    CLUSTERS_NAME,
    INDEX_SCHEMA,
    LABELS_NAME,
    LABELS_SCHEMA,
    SECONDS_NAME,
    SECONDS_SCHEMA,
    TOKENIZER_NAME,
    FileEntry,
    Manifest,
    clusters_schema,
    shard_schema,
)
from penstock.engine.data.rows import checked_rows
from penstock.engine.errors import ConfigError, StoreError, TokenizerError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Reader = Literal["auto", "mmap", "pread"]
READERS = ("auto", "mmap", "pread")


@dataclass(frozen=True)
class ShardBuffers:
    """A mapped shard: its two token buffers and where they begin in the file."""

    values: np.ndarray  # uint16 or uint32, (tokens,)
    offsets: np.ndarray  # int64, (rows + 1,)
    values_at: int
    offsets_at: int
    batch: pa.RecordBatch


@dataclass(frozen=True)
class SoftTargets:
    """What teachers say of some rows.

    Attributes:
        logits: float32 (rows, num_labels). labelled: bool (rows,): whether a row's true label is known too.
    """

    logits: np.ndarray
    labelled: np.ndarray


class Store:
    """A prepared data set, open for reading. Rows are numbered from 0 in the order of the sources.

    Opening takes no time or memory that grows with the rows: sizes, Arrow's marks at both ends of each file, types and
    counts are checked. Lengths and labels, which index other things, are checked when they are first asked for; the
    rest of the contents is not (see `verify`).

    Example:
        >>> from penstock.engine import Store
        >>> store = Store.open("train")
        >>> store.num_examples, store.label_names
        (60, ['bad', 'fair', 'good'])

    Attributes:
        path: the folder.
        manifest: what its manifest.json says.
        reader: "mmap" or "pread".
        lengths: int32, (num_examples,): tokens that are read of each row, special tokens included.
        stored_lengths: int32, (num_examples,): the same of the rows as they are stored.
        max_length, truncation: tokens of a row at most, and what is kept of a longer text.
        cut: what is read of rows that are stored longer than `max_length`; None where no row is.
        num_tokens: the sum of `lengths`.
        labels: int64, (num_examples,): indices into `label_names`. With several labels a row, the rarest of them, -1
            for none: what rows are split by. Without labels, -1.
        label_offsets, label_ids: int64 (num_examples + 1,) and int32: with several labels a row, row r has
            label_ids[label_offsets[r]:label_offsets[r + 1]]; otherwise empty.
        seconds: int32, (num_examples,): of pairs of texts, how many tokens of a row stand before the first of type 1;
            None where tokens have no types.
        clusters: int64, (num_examples,): equal for rows with the same value in the column that `prepare --cluster`
            named, in any store; None where none was.
        shards: the token buffers, for the loader.
    """

    path: Path
    manifest: Manifest
    max_length: int
    truncation: str
    cut: Cut | None
    num_tokens: int
    shards: Shards

    def __init__(self, path: Path, manifest: Manifest, reader: Reader) -> None:
        self.path = path
        self.manifest = manifest
        self.reader: Reader = reader
        self._lengths, self._labels = self._open_index()
        self.max_length, self.truncation, self.cut = manifest.max_length, manifest.truncation, None
        self.num_tokens = manifest.num_tokens
        self._cuts: dict[tuple[int, str], Cut] = {}  # those asked for: the tokenizer takes a while to load
        self._label_offsets, self._label_ids = self._open_label_index()
        self._seconds = self._open_seconds()
        self._clusters = self._open_clusters()
        self.shards = self._open_shards()

    @classmethod
    def open(cls, path: str | os.PathLike[str], reader: Reader = "auto", *, labelled: bool = True) -> "Store":
        """
        Args:
            path: the folder that `prepare` wrote.
            reader: "mmap" maps the shards. "pread" reads them with ordinary system calls, for file systems (networks,
                FUSE) where a map is slow or where a file that shrinks under it would kill the process; the index is
                then held in memory, 12 bytes a row. "auto": pread there, mmap on a disk of this machine.
            labelled: whether its labels are needed; False takes a store of `prepare --unlabelled` too.

        Raises:
            StoreError: no store, an incomplete one, one without labels that are needed, or a shard that is not what the
                manifest says: it is named.
        """
        if reader not in READERS:
            raise ValueError(f"reader must be one of {', '.join(READERS)}, got {reader!r}")
        folder = Path(path)
        manifest = Manifest.read(folder)
        if labelled and not manifest.is_labelled:
            raise StoreError(
                f"{folder} has no labels, which are needed here: it was prepared with --unlabelled, for penstock "
                "distil --unlabelled; give a store that was prepared without that"
            )
        if reader == "auto":
            reader = "pread" if is_remote(file_system_of(folder)) else "mmap"
        return cls(folder, manifest, reader)

    def read_with(self, reader: Reader) -> "Store":
        """The same store, its files read in another way, as `open` has it; "auto" changes nothing.

        Raises:
            StoreError: as `open`.
        """
        if reader in ("auto", self.reader):
            return self
        return _reopen(self.path, reader, self.max_length, self.truncation)

    @cached_property
    def stored_lengths(self) -> np.ndarray:
        """
        Raises:
            StoreError: on the first use, a row's length is not one.
        """
        lengths, manifest = self._lengths, self.manifest
        self._check_index(lengths, 0, manifest.max_length, "tokens, of {} at most")
        if int(lengths.sum(dtype=np.int64)) != manifest.num_tokens:
            raise StoreError(
                f"{self._index_path}: damaged: its lengths do not add up to {manifest.num_tokens:,} tokens"
            )
        return lengths

    @cached_property
    def lengths(self) -> np.ndarray:
        """Raises StoreError as `stored_lengths`."""
        return self.stored_lengths  # unless `cut_to` said otherwise

    @cached_property
    def labels(self) -> np.ndarray:
        """
        Raises:
            StoreError: on the first use, a label is none of the store's.
        """
        least = NO_LABEL if self.multi_label or not self.is_labelled else 0
        self._check_index(self._labels, least, self.num_labels - 1, "as its label, and the labels end at {}")
        return self._labels

    @cached_property
    def label_offsets(self) -> np.ndarray:
        """
        Raises:
            StoreError: on the first use, the lists of labels are none, or a label is none of the store's.
        """
        if self.manifest.label_index is not None:
            check_label_lists(self.path / LABELS_NAME, self._label_offsets, self._label_ids, self.manifest)
        return self._label_offsets

    @property
    def label_ids(self) -> np.ndarray:
        _ = self.label_offsets  # they are checked together
        return self._label_ids

    @cached_property
    def seconds(self) -> np.ndarray | None:
        """
        Raises:
            StoreError: on the first use, a second text begins outside of its row.
        """
        if self._seconds is not None and not ((self._seconds >= 0) & (self._seconds <= self.stored_lengths)).all():
            raise StoreError(f"{self.path / SECONDS_NAME}: damaged: a second text begins outside of its row")
        return self._seconds

    @cached_property
    def clusters(self) -> np.ndarray | None:
        """
        Raises:
            StoreError: on the first use, they are not as many as the manifest says.
        """
        entry = self.manifest.clusters
        if entry is not None and self._clusters is not None and len(np.unique(self._clusters)) != entry.count:
            raise StoreError(f"{self.path / CLUSTERS_NAME}: damaged: not the {entry.count:,} clusters of the manifest")
        return self._clusters

    @property
    def num_examples(self) -> int:
        return self.manifest.num_examples

    @property
    def label_names(self) -> list[str]:
        return self.manifest.label_names

    @property
    def num_labels(self) -> int:
        return len(self.manifest.label_names)

    @property
    def is_labelled(self) -> bool:
        """False for a store of `prepare --unlabelled`."""
        return self.manifest.is_labelled

    @property
    def multi_label(self) -> bool:
        """Whether a row has a list of labels."""
        return self.manifest.multi_label

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """float32 (rows, num_labels): 1 for each label of the rows, int64; of a store with lists of labels."""
        return multi_hot(self.label_offsets, self.label_ids, rows, self.num_labels)

    def soft_targets(self, rows: np.ndarray) -> SoftTargets | None:
        """What teachers say of rows, int64, see `TransferSet`; None of a store that none has read."""
        return None

    @property
    def vocab_size(self) -> int:
        return self.manifest.vocab_size

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return self.manifest.is_pair

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        counts = f"{self.num_examples} examples, {self.num_tokens} tokens, {self.num_labels} labels"
        counts += " in lists" if self.multi_label else ""
        return f"Store({str(self.path)!r}, {counts})"

    def __reduce__(self) -> tuple:
        return _reopen, (self.path, self.reader, self.max_length, self.truncation)

    def cut_to(self, max_length: int, truncation: str | None = None) -> "Store":
        """The same store, of whose rows only so much is read: token for token what `prepare` stores of the texts with
        this limit. Nothing is copied but the rows' lengths; the files and `fingerprint` are the store's.

        Texts that were longer than the store's own limit were cut when they were prepared, and are known to that
        limit only.

        Example:
            >>> from penstock.engine import Store
            >>> store = Store.open("train")
            >>> store.cut_to(4).tokens(0).size <= 4
            True

        Args:
            max_length: tokens of a row at most. From the store's own limit on, nothing is cut.
            truncation: "head", "tail" or "head+tail"; None for the store's own.

        Raises:
            ConfigError: there is no room for text beside the special tokens, or rows of pairs of texts would be cut.
        """
        manifest = self.manifest
        if max_length >= manifest.max_length:
            max_length, truncation = manifest.max_length, manifest.truncation
        truncation = truncation or manifest.truncation
        if (max_length, truncation) == (self.max_length, self.truncation):
            return self
        view = object.__new__(Store)
        view.__dict__.update(self.__dict__)
        view.max_length, view.truncation = max_length, truncation
        view.lengths, view.num_tokens, view.cut = self.stored_lengths, manifest.num_tokens, None
        if self.longest > max_length:
            view.cut = self._cut(max_length, truncation)
            view.lengths = view.cut.lengths(self.stored_lengths)
            view.num_tokens = int(view.lengths.sum(dtype=np.int64))
        return view

    @property
    def longest(self) -> int:
        """Tokens of the longest row as it is stored."""
        return int(self.stored_lengths.max(initial=0))

    def _cut(self, max_length: int, truncation: str) -> Cut:
        from penstock.engine.data.tokenizers import TextTokenizer

        if self.is_pair:
            raise ConfigError(
                f"{self.path}: its pairs of texts have up to {self.longest:,} tokens, more than {max_length:,}; pairs "
                f"are cut when they are prepared, not later: prepare the store with --max-length {max_length}"
            )
        if (max_length, truncation) not in self._cuts:
            try:
                kept = TextTokenizer(self.tokenizer(), max_length, truncation).kept
            except TokenizerError as error:
                raise ConfigError(f"{self.path}: {error}") from None
            self._cuts[max_length, truncation] = Cut(*kept)
        return self._cuts[max_length, truncation]

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer that made the tokens.

        Raises:
            StoreError: its files are not those that the manifest names.
        """
        from penstock.engine.data.tokenizers import check_ids, load_saved_tokenizer
        from penstock.engine.data.verify import verify_tokenizer

        list(verify_tokenizer(self.path, self.manifest))
        tokenizer = load_saved_tokenizer(self.path / TOKENIZER_NAME)
        ids = check_ids(tokenizer.backend_tokenizer, str(self.path / TOKENIZER_NAME))
        if ids != self.vocab_size:
            raise StoreError(f"{self.path}: damaged: its tokenizer has {ids:,} ids, its tokens {self.vocab_size:,}")
        return tokenizer

    def tokens(self, row: int) -> np.ndarray:
        """int32, (lengths[row],): the token ids of one row. For looking at data; batches come from a Loader."""
        return self.gather(np.array([range(self.num_examples)[row]]))[0]

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The token ids of rows end to end, as they are cut, and their bounds: int32 (tokens,), int32 (rows + 1,).

        Args:
            rows: integers, (count,).

        Raises:
            StoreError: the store is damaged. TypeError, ValueError: as `checked_rows`.
        """
        rows = checked_rows(rows, self.num_examples)
        values = np.empty(int(self.lengths[rows].sum(dtype=np.int64)), np.int32)
        cu_seqlens, labels = np.empty(len(rows) + 1, np.int32), np.empty(len(rows), np.int64)
        try:
            self.shards.gather(
                rows,
                self.labels,
                values.ctypes.data,
                values.size,
                cu_seqlens.ctypes.data,
                labels.ctypes.data,
                None if self.cut is None else (self.cut.head, self.cut.tail),
            )
        except RuntimeError as error:
            raise StoreError(f"{self.path}: {error}") from None
        return values, cu_seqlens

    def source_of(self, row: int) -> tuple[str, int]:
        """The input of one row and its line or row in it, from 1."""
        row = range(self.num_examples)[row]
        for number, entry in enumerate(self.manifest.shards):
            if row < entry.rows:
                batch = self.map_shard(number).batch
                return self.manifest.sources[batch["source"][row].as_py()].name, batch["source_row"][row].as_py()
            row -= entry.rows
        raise AssertionError("the manifest's rows add up to num_examples")

    def verify(self, deep: bool = False) -> Iterator[str]:
        """Reads every file and compares it with the manifest, yielding the name of each that is sound.

        Args:
            deep: besides the checksums, check that shards and index agree row by row, that ids are inside the
                vocabulary, and that the tokenizer still gives the ids that it gave when the store was prepared.

        Raises:
            StoreError: names the first file that is damaged.
        """
        from penstock.engine.data.verify import verify

        return verify(self, deep)

    def map_shard(self, number: int) -> ShardBuffers:
        """Maps one shard, its sizes and types checked."""
        entry = self.manifest.shards[number]
        manifest = self.manifest
        token_types = manifest.seconds is not None
        schema = shard_schema(manifest.dtype, number, manifest.preparation, self.multi_label, token_types)
        file, batch = self._map(entry, schema)
        if batch.schema.metadata != schema.metadata:
            raise StoreError(f"{self.path / entry.name}: belongs to another store or place; prepare the store again")
        tokens = batch.column(0)
        _, offsets, _, values = tokens.buffers()
        width = np.dtype(self.manifest.dtype)
        sizes_fit = tokens.offset == 0 and offsets.size >= 8 * (entry.rows + 1)
        if not sizes_fit or (values.size if values is not None else 0) < width.itemsize * entry.tokens:
            raise StoreError(f"{self.path / entry.name}: damaged: its buffers are shorter than the manifest says")
        return ShardBuffers(
            np.frombuffer(values, width, entry.tokens) if entry.tokens else np.empty(0, width),
            np.frombuffer(offsets, np.int64, entry.rows + 1),
            values.address - file.address if entry.tokens else 0,
            offsets.address - file.address,
            batch,
        )

    def _check_index(self, values: np.ndarray, least: int, most: int, what: str) -> None:
        """
        Raises:
            StoreError: a row's value lies outside; the first one is named.
        """
        if len(values) and not least <= int(values.min()) <= int(values.max()) <= most:
            row = int(np.flatnonzero((values < least) | (values > most))[0])
            raise StoreError(
                f"{self._index_path}: damaged: row {row:,} has {int(values[row])} {what.format(most)}; "
                "prepare the store again"
            )

    @property
    def _index_path(self) -> Path:
        return self.path / self.manifest.index.name

    def _open_index(self) -> tuple[np.ndarray, np.ndarray]:
        entry, rows = self.manifest.index, self.num_examples
        _, batch = self._map(entry, INDEX_SCHEMA)
        # Not np.asarray, by which pyarrow would load pandas: half a second, thirty megabytes.
        buffers = batch.column(0).buffers()[1], batch.column(1).buffers()[1]
        if not all(buffers) or buffers[0].size < 4 * rows or buffers[1].size < 8 * rows:
            raise StoreError(f"{self.path / entry.name}: damaged: its buffers are shorter than the manifest says")
        lengths, labels = np.frombuffer(buffers[0], np.int32, rows), np.frombuffer(buffers[1], np.int64, rows)
        return (lengths, labels) if self.reader == "mmap" else (lengths.copy(), labels.copy())

    def _open_label_index(self) -> tuple[np.ndarray, np.ndarray]:
        entry = self.manifest.label_index
        if entry is None:
            return np.empty(0, np.int64), np.empty(0, np.int32)
        _, batch = self._map(entry, LABELS_SCHEMA)
        column = batch.column(0)
        _, offsets, _, ids = column.buffers()
        short = column.offset or offsets is None or offsets.size < 8 * (entry.rows + 1)
        if short or (ids.size if ids is not None else 0) < 4 * entry.tokens:
            raise StoreError(f"{self.path / entry.name}: damaged: its buffers are shorter than the manifest says")
        bounds = np.frombuffer(offsets, np.int64, entry.rows + 1)
        if bounds[0] != 0 or bounds[-1] != entry.tokens:
            raise StoreError(f"{self.path / entry.name}: damaged: its labels are not as many as the manifest says")
        found = np.frombuffer(ids, np.int32, entry.tokens) if entry.tokens else np.empty(0, np.int32)
        return (bounds, found) if self.reader == "mmap" else (bounds.copy(), found.copy())

    def _open_seconds(self) -> np.ndarray | None:
        entry, rows = self.manifest.seconds, self.num_examples
        if entry is None:
            return None
        _, batch = self._map(entry, SECONDS_SCHEMA)
        buffer = batch.column(0).buffers()[1]
        if buffer is None or buffer.size < 4 * rows:
            raise StoreError(f"{self.path / entry.name}: damaged: its buffer is shorter than the manifest says")
        seconds = np.frombuffer(buffer, np.int32, rows)
        return seconds if self.reader == "mmap" else seconds.copy()

    def _open_clusters(self) -> np.ndarray | None:
        entry, manifest = self.manifest.clusters, self.manifest
        if entry is None:
            return None
        schema = clusters_schema(entry.column, manifest.preparation)
        _, batch = self._map(entry.file, schema)
        if batch.schema.metadata != schema.metadata:
            raise StoreError(f"{self.path / CLUSTERS_NAME}: belongs to another store or column; prepare it again")
        buffer = batch.column(0).buffers()[1]
        if buffer is None or buffer.size < 8 * self.num_examples:
            raise StoreError(f"{self.path / CLUSTERS_NAME}: damaged: its buffer is shorter than the manifest says")
        keys = np.frombuffer(buffer, np.int64, self.num_examples)
        return keys if self.reader == "mmap" else keys.copy()

    def _open_shards(self) -> Shards:
        shards = Shards(np.dtype(self.manifest.dtype).itemsize, self.vocab_size)
        self.add_shards(shards)
        return shards

    def add_shards(self, shards: Shards) -> None:
        """Adds the token buffers behind those that are there."""
        for number, entry in enumerate(self.manifest.shards):
            mapped = self.map_shard(number)
            if self.reader == "mmap":
                shards.add_mapped(entry.name, mapped.values, mapped.offsets)
            else:
                path = str(self.path / entry.name)
                shards.add_file(entry.name, path, entry.rows, entry.tokens, mapped.values_at, mapped.offsets_at)

    def _map(self, entry: FileEntry, schema: pa.Schema) -> tuple[pa.Buffer, pa.RecordBatch]:
        """The whole file and its one record batch, mapped."""
        path = self.path / entry.name
        try:
            state = os.stat(path)
            size = state.st_size
            if not stat.S_ISREG(state.st_mode):
                raise StoreError(f"{path}: damaged: not a file")
            if size != entry.bytes:
                raise StoreError(f"{path}: damaged: {size} bytes where the manifest says {entry.bytes}")
            source = pa.memory_map(str(path))
            file = source.read_buffer(size)
            reader = pa.ipc.open_file(pa.BufferReader(file))
            if not reader.schema.equals(schema):
                raise StoreError(f"{path}: damaged: its columns are not a store's")
            if reader.num_record_batches != 1:
                raise StoreError(f"{path}: damaged: {reader.num_record_batches} record batches instead of one")
            batch = reader.get_batch(0)
        except FileNotFoundError:
            raise StoreError(f"{path}: missing; prepare the store again") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(f"{path}: damaged: {first_line(error)}") from None
        if batch.num_rows != entry.rows:
            raise StoreError(f"{path}: damaged: {batch.num_rows} rows where the manifest says {entry.rows}")
        if batch.num_columns != len(schema) or not _inside(batch, file):
            raise StoreError(f"{path}: damaged: its columns do not lie in it as they are used")
        return file, batch


def _reopen(path: Path, reader: Reader, max_length: int, truncation: str) -> Store:
    return Store.open(path, reader, labelled=False).cut_to(max_length, truncation)


def _inside(batch: pa.RecordBatch, file: pa.Buffer) -> bool:
    """Whether all buffers are parts of the mapped file: compressed ones would have been unpacked elsewhere."""
    ends = file.address, file.address + file.size
    buffers = [buffer for column in batch.columns for buffer in column.buffers() if buffer is not None and buffer.size]
    return all(ends[0] <= buffer.address and buffer.address + buffer.size <= ends[1] for buffer in buffers)


def check_label_lists(path: Path, offsets: np.ndarray, ids: np.ndarray, manifest: Manifest) -> None:
    """
    Raises:
        StoreError: lists of labels that are none, or of labels that there are not.
    """
    sizes = np.diff(offsets)
    if len(sizes) and int(sizes.min()) < 0:
        raise StoreError(f"{path}: damaged: a list of labels ends before it begins")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(manifest.label_names):
        raise StoreError(f"{path}: damaged: a label outside the {len(manifest.label_names)} there are")
    if np.bincount(ids, minlength=len(manifest.label_names)).tolist() != manifest.label_counts:
        raise StoreError(f"{path}: damaged: its labels are not as many as the manifest says")


def check_stores(**stores: Any) -> None:
    """Raises TypeError for what is neither a Store nor None."""
    for name, store in stores.items():
        if not isinstance(store, Store | None):
            raise TypeError(f"{name} must be a Store, got {type(store).__name__}: give Store.open(path)")
