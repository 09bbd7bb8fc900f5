"""Checking that a store still holds what `prepare` wrote."""

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from penstock.engine.data.manifest import SECONDS_NAME, TOKENIZER_NAME
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
    if store.seconds is not None and not np.array_equal(np.asarray(shard.batch["second"]), store.seconds[rows]):
        raise StoreError(f"{path}: damaged: its second texts do not begin where {SECONDS_NAME} says")
    if len(shard.values) and int(shard.values.max()) >= store.vocab_size:
        raise StoreError(f"{path}: damaged: a token outside the vocabulary of {store.vocab_size}")


def _check_tokenizer(store: "Store") -> None:
    from penstock.engine.data.pair_tokenizing import text_tokenizer

    manifest = store.manifest
    tokenizer = text_tokenizer(store.tokenizer(), manifest.max_length, manifest.truncation, manifest.is_pair)
    if tokenizer.probes() != store.manifest.tokenizer.probes:
        raise StoreError(
            f"{store.path}: the installed tokenizers library gives other tokens than the one that prepared the store; "
            "prepare it again, or install that version"
        )
