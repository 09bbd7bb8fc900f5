"""A store's files compared with what its manifest says of them, byte by byte."""

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penstock.engine.checked import crc32_of
from penstock.engine.data.manifest import LABELS_NAME, SECONDS_NAME, TOKENIZER_NAME, FileEntry, Manifest
from penstock.engine.errors import StoreError
from penstock.engine.records import read_file

if TYPE_CHECKING:
    from penstock.engine.data.store import Store


def verify(store: "Store", deep: bool) -> Iterator[str]:
    """See `Store.verify`."""
    manifest = store.manifest
    yield from verify_tokenizer(store.path, manifest)
    _check_crc32(store.path, manifest.index)
    _ = store.stored_lengths, store.labels  # which checks them
    yield manifest.index.name
    if manifest.label_index is not None:
        _check_crc32(store.path, manifest.label_index)
        _ = store.label_offsets
        if deep:
            _check_label_order(store)
        yield manifest.label_index.name
    if manifest.seconds is not None:
        _check_crc32(store.path, manifest.seconds)
        _ = store.seconds
        yield manifest.seconds.name
    if manifest.clusters is not None:
        _check_crc32(store.path, manifest.clusters.file)
        _ = store.clusters
        yield manifest.clusters.file.name
    begin = 0
    for number, entry in enumerate(manifest.shards):
        _check_crc32(store.path, entry)
        if deep:
            _check_rows(store, number, begin)
        begin += entry.rows
        yield entry.name
    if deep:
        _check_tokenizer(store)


def check_files(store: "Store") -> None:
    """Compares all files with the manifest's checksums, at some gigabytes a second, before they decide a result: a bit
    that has turned may be another token or label like any other. Not again in this process while they stay as they are.

    Raises:
        StoreError: names the first file that is damaged.
    """
    state = (str(store.path.resolve()), store.fingerprint, *_states(store))
    if state not in _checked:
        list(verify(store, deep=False))
        _checked.add(state)


_checked: set[tuple] = set()


def _states(store: "Store") -> Iterator[tuple[int, ...]]:
    manifest = store.manifest
    clusters = None if manifest.clusters is None else manifest.clusters.file
    entries = (manifest.index, manifest.label_index, manifest.seconds, clusters, *manifest.shards)
    names = [entry.name for entry in entries if entry is not None]
    for name in [*names, *(f"{TOKENIZER_NAME}/{name}" for name in manifest.tokenizer.files)]:
        with contextlib.suppress(OSError):  # which `verify` reports
            found = os.stat(store.path / name)
            yield found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def verify_tokenizer(store: Path, manifest: Manifest) -> Iterator[str]:
    """Yields the tokenizer's files. One that the manifest does not name is damage too: the transformers library looks
    for several by name, and what stands beside a tokenizer is copied with it.

    Raises:
        StoreError: a file is damaged, missing, or too many.
    """
    folder, files = store / TOKENIZER_NAME, manifest.tokenizer.files
    for name, crc32 in files.items():
        path = folder / name
        try:
            content = read_file(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
        if zlib.crc32(content) != crc32:
            raise StoreError(f"{path}: damaged: its checksum is not the manifest's; prepare the store again")
        yield f"{TOKENIZER_NAME}/{name}"
    for path in folder.iterdir():
        if path.name not in files and not path.name.startswith("."):
            raise StoreError(f"{path}: not of the store: its manifest does not name it; remove it")


def _check_crc32(folder: Path, entry: FileEntry) -> None:
    """
    Raises:
        StoreError: the file's bytes are not those that were written.
    """
    path = folder / entry.name
    try:
        crc32 = crc32_of(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    if crc32 != entry.crc32:
        raise StoreError(f"{path}: damaged: its checksum is not the manifest's; prepare the store again")


def _check_rows(store: "Store", number: int, begin: int) -> None:
    """Rows of one shard against the index and the vocabulary."""
    entry = store.manifest.shards[number]
    path = store.path / entry.name
    shard = store.map_shard(number)
    rows = slice(begin, begin + entry.rows)
    if shard.offsets[0] != 0 or not np.array_equal(np.diff(shard.offsets), store.stored_lengths[rows]):
        raise StoreError(f"{path}: damaged: its rows' lengths are not the index's")
    if not np.array_equal(np.asarray(shard.batch["label"]), store.labels[rows]):
        raise StoreError(f"{path}: damaged: its labels are not the index's")
    if store.multi_label:
        offsets = store.label_offsets[begin : begin + entry.rows + 1]
        lists = shard.batch["labels"]
        same_sizes = np.array_equal(np.asarray(lists.offsets), offsets - offsets[0])
        if not same_sizes or not np.array_equal(np.asarray(lists.values), store.label_ids[offsets[0] : offsets[-1]]):
            raise StoreError(f"{path}: damaged: its lists of labels are not those of {LABELS_NAME}")
    if store.seconds is not None and not np.array_equal(np.asarray(shard.batch["second"]), store.seconds[rows]):
        raise StoreError(f"{path}: damaged: its second texts do not begin where {SECONDS_NAME} says")
    if len(shard.values) and int(shard.values.max()) >= store.vocab_size:
        raise StoreError(f"{path}: damaged: a token outside the vocabulary of {store.vocab_size}")


def _check_label_order(store: "Store") -> None:
    """In each row's list each label once and in order: what a lookup by row relies on."""
    path = store.path / LABELS_NAME
    offsets, ids = store.label_offsets, store.label_ids
    first = np.zeros(len(ids) + 1, bool)
    first[offsets[:-1]] = True
    if len(ids) > 1 and not (first[1:-1] | (np.diff(ids) > 0)).all():
        raise StoreError(f"{path}: damaged: a row's labels are not in order")


def _check_tokenizer(store: "Store") -> None:
    from penstock.engine.data.pair_tokenizing import text_tokenizer

    manifest = store.manifest
    tokenizer = text_tokenizer(store.tokenizer(), manifest.max_length, manifest.truncation, manifest.is_pair)
    if tokenizer.probes() != store.manifest.tokenizer.probes:
        raise StoreError(
            f"{store.path}: the installed tokenizers library gives other tokens than the one that prepared the store; "
            "prepare it again, or install that version"
        )
