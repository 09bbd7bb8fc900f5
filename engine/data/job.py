"""A preparation under way: what its folder holds until the manifest makes a store of it.

    preparing.json      what is prepared, from what; written first
    clusters.arrow      which rows belong together, where that was asked for: the survey knows it
    tokenizer/          the tokenizer's files
    shard-00000.arrow   a finished shard, and
    shard-00000.json    its receipt: size, checksum and counts; written after it

Shard k holds the usable rows k * rows_per_shard and on, in the order of the sources: whoever makes it, whenever, its
bytes are the same. So an interrupted preparation can be resumed, and several machines can share one.
"""

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from penstock.engine.checked import crc32_of, read_checked, with_checksum
from penstock.engine.data.manifest import (
    CLUSTERS_FORMAT,
    CLUSTERS_NAME,
    INDEX_NAME,
    INDEX_SCHEMA,
    LABELS_NAME,
    LABELS_SCHEMA,
    MANIFEST_NAME,
    MAX_VOCABULARY,
    SECONDS_NAME,
    SECONDS_SCHEMA,
    TOKENIZER_NAME,
    ClusterEntry,
    FileEntry,
    Manifest,
    SourceEntry,
    TokenizerEntry,
    Truncation,
    canonical_json,
    clusters_schema,
    is_tokenizer_file,
    shard_name,
    shard_schema,
)
from penstock.engine.errors import SourceError, StoreError
from penstock.engine.files import (
    CommittedFile,
    FolderLock,
    committed,
    disk_errors,
    remove_committed,
    sync_folder,
    temporary_files,
    write_committed,
)
from penstock.engine.records import check_range, read_record

JOB_NAME = "preparing.json"


@dataclass(frozen=True)
class Job:
    """What is prepared; `preparation` is the digest of all that decides the store's bytes."""

    preparation: str
    max_length: int
    truncation: Truncation
    dtype: Literal["uint16", "uint32"]
    vocab_size: int
    label_names: list[str]
    label_counts: list[int]
    content: str
    source_contents: list[str]
    rows_per_shard: int
    sources: list[SourceEntry]
    tokenizer: TokenizerEntry
    reading: dict[str, str | None] = field(default_factory=dict)  # as `sources.Reading`
    multi_label: bool = False
    like: str | None = None  # the store whose tokenizer and labels were taken
    is_pair: bool = False  # whether a row has two texts,
    token_types: bool = False  # and their tokens types
    cluster: str | None = None  # the column of rows that belong together, and
    cluster_content: str | None = None  # a digest of their keys
    cluster_format: int = 1  # as `ClusterEntry`

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def num_shards(self) -> int:
        return -(-self.rows // self.rows_per_shard)

    def rows_of(self, shard: int) -> int:
        return min(self.rows_per_shard, self.rows - shard * self.rows_per_shard)

    @classmethod
    def read(cls, folder: Path) -> "Job | None":
        """None when no preparation is under way there."""
        try:
            job = read_record(cls, read_checked(folder / JOB_NAME))
            check_range("rows_per_shard", job.rows_per_shard, 1, 1 << 40)
            check_range("max_length", job.max_length, 1, (1 << 31) - 1)
            check_range("vocab_size", job.vocab_size, 1, MAX_VOCABULARY)
            check_range("the sources' rows", min((source.rows for source in job.sources), default=-1), 0, 1 << 40)
            if not all(is_tokenizer_file(name) for name in job.tokenizer.files):
                raise ValueError("tokenizer.files names what is no file of a tokenizer")
            return job
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, OSError) as error:
            raise StoreError(
                f"{folder / JOB_NAME}: damaged: {error}; remove the folder {folder}, and prepare it again"
            ) from None


@dataclass(frozen=True)
class Receipt:
    """A finished shard."""

    preparation: str
    file: FileEntry
    truncated_texts: int
    empty_texts: int

    @classmethod
    def read(cls, folder: Path, shard: int) -> "Receipt | None":
        try:
            receipt = read_record(cls, read_checked(_receipt_path(folder, shard)))
        except (OSError, ValueError):
            return None
        return receipt if receipt.file.name == shard_name(shard) else None


@dataclass(frozen=True)
class ShardRows:
    """The contents of one shard."""

    values: list[np.ndarray]  # uint16 or uint32, parts of (tokens,)
    lengths: np.ndarray  # int32, (rows,)
    labels: np.ndarray  # int32, (rows,)
    sources: np.ndarray  # int32, (rows,)
    source_rows: np.ndarray  # int64, (rows,)
    truncated_texts: int
    empty_texts: int
    label_lists: tuple[np.ndarray, np.ndarray] | None = None  # offsets and ids, see `label_lists.lists_of`
    seconds: np.ndarray | None = None  # with token types: int32, (rows,), tokens before the first of type 1


def locked(folder: Path, shared: bool) -> FolderLock:
    """Keeps a second `prepare` out of the folder; shared ones only keep out others."""
    return FolderLock(folder, StoreError(f"{folder}: another penstock prepare is writing to it"), shared=shared)


def start_job(folder: Path, job: Job, shared: bool) -> None:
    """Makes the folder this job's: afterwards nothing in it is of another, and nothing is lost if it was this one's.

    The job's file comes first and a store that is overwritten goes after it: at every moment one of them says whose the
    folder is.

    Args:
        shared: other processes may be working on the same job.
    """
    if _read_or_none(folder) != job:
        content = json.dumps(with_checksum(asdict(job)), indent=2, ensure_ascii=False)
        write_committed(folder / JOB_NAME, content.encode())
    if (folder / MANIFEST_NAME).exists():
        remove_committed(folder / MANIFEST_NAME)
    of_job = set()
    for shard in range(job.num_shards):
        receipt = Receipt.read(folder, shard)
        if receipt is not None and receipt.preparation == job.preparation:
            of_job |= {_receipt_path(folder, shard), folder / shard_name(shard)}
    if not shared:
        _remove([*_data_files(folder, without=of_job), *_leftovers(folder)])


def digest_of_keys(keys: np.ndarray) -> str:
    """The rows' clusters, int64 (rows,), in one line of text."""
    return hashlib.sha256(np.ascontiguousarray(keys, "<i8").tobytes()).hexdigest()


def write_clusters(folder: Path, preparation: str, column: str, keys: np.ndarray) -> ClusterEntry:
    """Keeps which rows belong together; keys, int64 (rows,), as `clusters.ClusterKeys` gives them."""
    batch = pa.record_batch([pa.array(keys)], schema=clusters_schema(column, preparation))
    with committed(folder / CLUSTERS_NAME) as file:
        write_batch(file, batch)
    entry = FileEntry(CLUSTERS_NAME, file.size, file.crc32, len(keys), 0)
    return ClusterEntry(column, len(np.unique(keys)), entry, CLUSTERS_FORMAT)


def _cluster_entry(folder: Path, job: Job) -> ClusterEntry | None:
    """
    Raises:
        StoreError: the clusters are not there, or not those that the survey found.
    """
    if job.cluster is None:
        return None
    path = folder / CLUSTERS_NAME
    try:
        content = path.read_bytes()
        keys = np.asarray(pa.ipc.open_file(pa.BufferReader(content)).get_batch(0)["cluster"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: missing or damaged ({error}): begin the preparation again") from None
    if len(keys) != job.rows or digest_of_keys(keys) != job.cluster_content:
        raise StoreError(f"{path}: damaged: not the clusters that were found; begin the preparation again")
    entry = FileEntry(CLUSTERS_NAME, len(content), zlib.crc32(content), job.rows, 0)
    return ClusterEntry(job.cluster, len(np.unique(keys)), entry, job.cluster_format)


def write_tokenizer(folder: Path, files: dict[str, bytes]) -> None:
    with disk_errors(folder / TOKENIZER_NAME):
        (folder / TOKENIZER_NAME).mkdir(exist_ok=True)
        sync_folder(folder)
    _remove([path for path in folder.glob(f"{TOKENIZER_NAME}/*") if path.name not in files])
    for name, content in files.items():
        write_committed(folder / TOKENIZER_NAME / name, content)


def write_shard(folder: Path, job: Job, shard: int, rows: ShardRows) -> None:
    """Writes one shard, then its receipt."""
    schema = shard_schema(job.dtype, shard, job.preparation, job.multi_label, job.token_types)
    offsets = np.zeros(len(rows.lengths) + 1, np.int64)
    np.cumsum(rows.lengths, out=offsets[1:])
    values = np.concatenate(rows.values) if rows.values else np.empty(0, job.dtype)
    tokens = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values), type=schema.field("tokens").type)
    columns = [tokens, pa.array(rows.labels), pa.array(rows.sources), pa.array(rows.source_rows)]
    if rows.label_lists is not None:
        columns.append(_list_column(rows.label_lists))
    if job.token_types:
        columns.append(pa.array(rows.seconds))
    path = folder / shard_name(shard)
    with committed(path) as file:
        write_batch(file, pa.record_batch(columns, schema=schema))
    entry = FileEntry(path.name, file.size, file.crc32, len(rows.lengths), len(values))
    receipt = Receipt(job.preparation, entry, rows.truncated_texts, rows.empty_texts)
    write_committed(_receipt_path(folder, shard), canonical_json(with_checksum(asdict(receipt))))


def write_batch(file: CommittedFile, batch: pa.RecordBatch) -> None:
    with pa.PythonFile(file, mode="w") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _list_column(lists: tuple[np.ndarray, np.ndarray]) -> pa.Array:
    offsets, ids = lists
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids), type=LABELS_SCHEMA.field("labels").type)


def finished_shard(folder: Path, job: Job, shard: int) -> Receipt | None:
    """The receipt of a shard, if it is there, of this preparation, and its bytes are what the receipt says."""
    receipt = Receipt.read(folder, shard)
    if receipt is None or receipt.preparation != job.preparation or receipt.file.rows != job.rows_of(shard):
        return None
    file = folder / receipt.file.name
    try:
        same = (file.stat().st_size, crc32_of(file)) == (receipt.file.bytes, receipt.file.crc32)
    except OSError:
        return None
    return receipt if same else None


def discard_shard(folder: Path, shard: int) -> None:
    remove_committed(_receipt_path(folder, shard))


def check_tokens(job: Job, receipts: Sequence[Receipt]) -> None:
    """Raises SourceError unless some text has a token."""
    if not any(receipt.file.tokens for receipt in receipts):
        raise SourceError(
            f"{job.sources[0].name}: no text gives a single token: either column {job.sources[0].text!r} is empty in "
            "every row (--text names another), or the tokenizer knows nothing of what stands there"
        )


def finish_job(folder: Path, job: Job, receipts: list[Receipt]) -> Manifest:
    """Writes the index, then the manifest, and removes what is no longer needed.

    Raises:
        StoreError: the rows' clusters are damaged.
    """
    clusters = _cluster_entry(folder, job)
    lengths, labels = np.empty(job.rows, np.int32), np.empty(job.rows, np.int64)
    sizes = np.zeros(job.rows + 1, np.int64)  # of the rows' lists of labels
    ids: list[np.ndarray] = []
    seconds = np.empty(job.rows if job.token_types else 0, np.int32)
    begin = 0
    for receipt in receipts:
        with pa.memory_map(str(folder / receipt.file.name)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
            end = begin + batch.num_rows
            lengths[begin:end] = np.diff(np.asarray(batch["tokens"].offsets))
            labels[begin:end] = np.asarray(batch["label"])
            if job.multi_label:
                column = batch["labels"]
                sizes[begin + 1 : end + 1] = np.diff(np.asarray(column.offsets))
                ids.append(np.array(column.values))
            if job.token_types:
                seconds[begin:end] = np.asarray(batch["second"])
        begin = end
    num_tokens = sum(receipt.file.tokens for receipt in receipts)
    with committed(folder / INDEX_NAME) as file:
        write_batch(file, pa.record_batch([pa.array(lengths), pa.array(labels)], schema=INDEX_SCHEMA))
    label_counts, label_index = job.label_counts, None
    if job.multi_label:
        lists = np.cumsum(sizes), np.concatenate(ids)
        # the survey counts spellings: two of them in one row are one label
        label_counts = np.bincount(lists[1], minlength=len(job.label_names)).tolist()
        with committed(folder / LABELS_NAME) as of_labels:
            write_batch(of_labels, pa.record_batch([_list_column(lists)], schema=LABELS_SCHEMA))
        label_index = FileEntry(LABELS_NAME, of_labels.size, of_labels.crc32, job.rows, len(lists[1]))
    seconds_entry = None
    if job.token_types:
        with committed(folder / SECONDS_NAME) as seconds_file:
            write_batch(seconds_file, pa.record_batch([pa.array(seconds)], schema=SECONDS_SCHEMA))
        seconds_entry = FileEntry(SECONDS_NAME, seconds_file.size, seconds_file.crc32, job.rows, num_tokens)
    manifest = Manifest(
        preparation=job.preparation,
        max_length=job.max_length,
        truncation=job.truncation,
        dtype=job.dtype,
        vocab_size=job.vocab_size,
        label_names=job.label_names,
        label_counts=label_counts,
        num_examples=job.rows,
        num_tokens=num_tokens,
        truncated_texts=sum(receipt.truncated_texts for receipt in receipts),
        empty_texts=sum(receipt.empty_texts for receipt in receipts),
        bad_rows=sum(source.bad_rows for source in job.sources),
        content=job.content,
        sources=job.sources,
        tokenizer=job.tokenizer,
        index=FileEntry(INDEX_NAME, file.size, file.crc32, job.rows, num_tokens),
        shards=[receipt.file for receipt in receipts],
        multi_label=job.multi_label,
        label_separator=job.reading.get("label_separator") if job.multi_label else None,
        label_index=label_index,
        is_pair=job.is_pair,
        seconds=seconds_entry,
        clusters=clusters,
    )
    write_committed(folder / MANIFEST_NAME, manifest.to_json())
    remove_leftovers(folder)
    return manifest


def remove_leftovers(folder: Path) -> None:
    """Removes what a finished store has no use for: receipts, the job and temporary files of killed runs."""
    _remove([*folder.glob("shard-*.json"), *_leftovers(folder), folder / JOB_NAME])


def clear(folder: Path) -> None:
    """Removes a job, its file last; files that penstock did not write stay."""
    _remove([*_data_files(folder), *_leftovers(folder), *folder.glob(f"{TOKENIZER_NAME}/*")])
    with disk_errors(folder):
        if (folder / TOKENIZER_NAME).is_dir():
            (folder / TOKENIZER_NAME).rmdir()
    _remove([folder / JOB_NAME])


def is_ours(folder: Path) -> bool:
    """Whether the folder holds a store, finished or not, or nothing at all."""
    if (folder / MANIFEST_NAME).exists() or (folder / JOB_NAME).exists():
        return True
    return set(folder.iterdir()) <= set(_leftovers(folder))


def _leftovers(folder: Path) -> list[Path]:
    return [*temporary_files(folder), *temporary_files(folder / TOKENIZER_NAME)]


def _data_files(folder: Path, without: Collection[Path] = ()) -> list[Path]:
    found = [
        *folder.glob("shard-*.arrow"),
        *folder.glob("shard-*.json"),
        *folder.glob(INDEX_NAME),
        *folder.glob(LABELS_NAME),
        *folder.glob(SECONDS_NAME),
        *folder.glob(CLUSTERS_NAME),
    ]
    return [path for path in found if path not in without]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with disk_errors(path):
            path.unlink(missing_ok=True)


def _read_or_none(folder: Path) -> Job | None:
    try:
        return Job.read(folder)
    except StoreError:
        return None


def _receipt_path(folder: Path, shard: int) -> Path:
    return (folder / shard_name(shard)).with_suffix(".json")
