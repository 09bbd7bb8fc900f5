"""Checking that a store still holds what `prepare` wrote."""

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from penstock.engine.data.manifest import LABELS_NAME, SECONDS_NAME, TOKENIZER_NAME
from penstock.engine.errors import StoreError

if TYPE_CHECKING:
    from penstock.engine.data.store import Store


def verify(store: "Store", deep: bool) -> Iterator[str]:
    """See `Store.verify`."""
    manifest = store.manifest
    for name, crc32 in manifest.tokenizer.files.items():
        path = store.path / TOKENIZER_NAME / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
        if zlib.crc32(content) != crc32:
            raise StoreError(f"{path}: damaged: its checksum is not the manifest's; prepare the store again")
        yield f"{TOKENIZER_NAME}/{name}"
    store.check_crc32(manifest.index)
    yield manifest.index.name
    if manifest.label_index is not None:
        store.check_crc32(manifest.label_index)
        if deep:
            _check_label_lists(store)
        yield manifest.label_index.name
    if manifest.seconds is not None:
        store.check_crc32(manifest.seconds)
        yield manifest.seconds.name
    begin = 0
    for number, entry in enumerate(manifest.shards):
        store.check_crc32(entry)
        if deep:
            _check_rows(store, number, begin)
        begin += entry.rows
        yield entry.name
    if deep:
        _check_tokenizer(store)


def _check_rows(store: "Store", number: int, begin: int) -> None:
    """Rows of one shard against the index and the vocabulary."""
    entry = store.manifest.shards[number]
    path = store.path / entry.name
    shard = store.map_shard(number)
    rows = slice(begin, begin + entry.rows)
    if shard.offsets[0] != 0 or not np.array_equal(np.diff(shard.offsets), store.lengths[rows]):
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


def _check_label_lists(store: "Store") -> None:
    """Lists of labels that are lists, of labels that there are, none twice; and what stands for each row."""
    assert store.manifest.label_index is not None
    path = store.path / store.manifest.label_index.name
    offsets, ids = store.label_offsets, store.label_ids
    sizes = np.diff(offsets)
    if len(sizes) and int(sizes.min()) < 0:
        raise StoreError(f"{path}: damaged: a list of labels ends before it begins")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < store.num_labels:
        raise StoreError(f"{path}: damaged: a label outside the {store.num_labels} there are")
    first = np.zeros(len(ids) + 1, bool)
    first[offsets[:-1]] = True
    if len(ids) > 1 and not (first[1:-1] | (np.diff(ids) > 0)).all():
        raise StoreError(f"{path}: damaged: a row's labels are not in order")
    if np.bincount(ids, minlength=store.num_labels).tolist() != store.manifest.label_counts:
        raise StoreError(f"{path}: damaged: its labels are not as many as the manifest says")


def _check_tokenizer(store: "Store") -> None:
    from penstock.engine.data.pair_tokenizing import text_tokenizer

    manifest = store.manifest
    tokenizer = text_tokenizer(store.tokenizer(), manifest.max_length, manifest.truncation, manifest.is_pair)
    if tokenizer.probes() != store.manifest.tokenizer.probes:
        raise StoreError(
            f"{store.path}: the installed tokenizers library gives other tokens than the one that prepared the store; "
            "prepare it again, or install that version"
        )
