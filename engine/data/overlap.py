"""How many rows of one store stand in another: test texts that a model has been trained on.

Stores hold tokens, not texts, so rows are compared by the tokens that were kept of them.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from penstock.engine.data.cut import texts_cut_short
from penstock.engine.data.store import Store
from penstock.engine.errors import StoreError


@dataclass(frozen=True)
class Overlap:
    """
    Attributes:
        test_rows: rows of the test store.
        shared: those of them whose tokens are all those of a training row.
        other_label: those of the shared ones whose label none of these training rows has.
    """

    test_rows: int
    shared: int
    other_label: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if not self.shared:
            return f"none of the {self.test_rows:,} test rows agrees in all tokens kept with a training row"
        share = f"{self.shared:,} of {self.test_rows:,} test rows ({self.shared / self.test_rows:.1%})"
        agree = "agrees" if self.shared == 1 else "agree"
        return f"{share} {agree} in all tokens kept with a training row, {self.other_label:,} under another label"


def _tokens_of_shard(store: Store, number: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens in the store's dtype, end to end; the rows' bounds)"""
    if store.cut is None:
        shard = store.map_shard(number)
        return shard.values, shard.offsets
    values, bounds = store.gather(np.arange(start, start + store.manifest.shards[number].rows))
    return values.astype(store.manifest.dtype), bounds


def find_overlap(train: Store, test: Store) -> Overlap:
    """Reads both stores once; memory grows with the test store's rows and one shard of the training store's.

    Rows are compared by 128 bits of a hash. Where one of the two keeps fewer tokens of a text, both are compared as
    that one keeps them.

    Raises:
        StoreError: the stores have different tokenizers or keep other parts of long texts, so that their tokens cannot
            be compared, or one has lists of labels and the other has not.
    """
    if test.multi_label != train.multi_label:
        raise StoreError(f"one of {test.path} and {train.path} has lists of labels: prepare one --like the other")
    train, test = _cut_alike(train, test)
    wanted = np.concatenate([hashes for _, hashes in row_hashes(test)])
    keys, first, group = np.unique(wanted[:, 0], return_index=True, return_inverse=True)
    checks = wanted[first, 1]
    pairs = []  # (group, label) of training rows, as one number
    train_labels, test_labels, width = _comparable_labels(train, test)
    for start, hashes in row_hashes(train):
        place = np.minimum(np.searchsorted(keys, hashes[:, 0]), len(keys) - 1)
        rows = np.flatnonzero((keys[place] == hashes[:, 0]) & (checks[place] == hashes[:, 1]))
        pairs.append(np.unique(place[rows] * width + train_labels(start + rows)))
    found = np.unique(np.concatenate(pairs))
    shared = np.isin(group, found // width)
    same_label = np.isin(group * width + test_labels, found)
    return Overlap(test.num_examples, int(shared.sum()), int((shared & ~same_label).sum()))


def shared_rows(store: Store, test: Store) -> np.ndarray:
    """int64, ascending: the rows of a store whose tokens are all those of a test row; no label is read.

    Where one of the two keeps fewer tokens of a text, both are compared as that one keeps them.

    Raises:
        StoreError: the stores have different tokenizers or keep other parts of long texts, so that their tokens cannot
            be compared.
    """
    store, test = _cut_alike(store, test)
    wanted = np.unique(np.concatenate([_whole(hashes) for _, hashes in row_hashes(test)]))
    found = [start + np.flatnonzero(np.isin(_whole(hashes), wanted)) for start, hashes in row_hashes(store)]
    return np.concatenate(found).astype(np.int64)


def _cut_alike(first: Store, other: Store) -> tuple[Store, Store]:
    """The stores, cut so that both have the same tokens of the same text.

    Raises:
        StoreError: that cannot be had.
    """
    for what, here, there in (
        ("different tokenizers", other.manifest.tokenizer.fingerprint, first.manifest.tokenizer.fingerprint),
        ("different columns of text", other.is_pair, first.is_pair),
    ):
        if here != there:
            raise StoreError(f"{other.path} and {first.path} have {what}: prepare one --like the other")
    shorter = min(first, other, key=lambda one: one.max_length)
    length, truncation = shorter.max_length, shorter.truncation
    longer = other if shorter is first else first
    # pairs of texts are not cut after they were prepared
    unlike = first.is_pair and shorter.manifest.truncated_texts > 0 and longer.longest > length
    if unlike or texts_cut_short(longer, length, truncation):
        kept = [f"{one.max_length:,} tokens ({one.truncation})" for one in (other, first)]
        raise StoreError(
            f"{other.path} and {first.path} have long texts cut to {kept[0]} and {kept[1]}: which of them are the same "
            "cannot be seen; prepare one --like the other"
        )
    if first.is_pair:
        return first, other
    return first.cut_to(length, truncation), other.cut_to(length, truncation)


def _whole(hashes: np.ndarray) -> np.ndarray:
    """Hashes, uint64 (rows, 2), as 16 bytes each, (rows,), which can be sorted."""
    return hashes.view("S16")[:, 0]


def _comparable_labels(train: Store, test: Store) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray, int]:
    """Equal numbers for equal labels, or equal lists of labels.

    Returns:
        (training rows to their numbers, int64; int64 (test rows,): theirs; one more than the largest number)
    """
    if not test.multi_label:
        ids = {name: number for number, name in enumerate(test.label_names)}
        to_test = np.array([ids.get(name, len(ids)) for name in train.label_names], np.int64)
        return lambda rows: to_test[train.labels[rows]], test.labels, len(ids) + 1
    numbers: dict[tuple[str, ...], int] = {}
    test_labels = np.array([numbers.setdefault(labels, len(numbers)) for labels in _label_lists(test)], np.int64)
    other = len(numbers)
    return (
        lambda rows: np.array([numbers.get(labels, other) for labels in _label_lists(train, rows)], np.int64),
        test_labels,
        other + 1,
    )


def _label_lists(store: Store, rows: np.ndarray | None = None) -> Iterator[tuple[str, ...]]:
    names, offsets, ids = store.label_names, store.label_offsets, store.label_ids
    for row in range(store.num_examples) if rows is None else rows.tolist():
        yield tuple(sorted(names[number] for number in ids[offsets[row] : offsets[row + 1]]))


def row_hashes(store: Store) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, uint64 (rows, 2): the hashes of their tokens, as they are cut) of each shard."""
    start = 0
    for number, entry in enumerate(store.manifest.shards):
        values, offsets = _tokens_of_shard(store, number, start)
        data = np.ascontiguousarray(values).view(np.uint8).data
        bounds = (offsets.astype(np.int64) * values.itemsize).tolist()
        hashes = b"".join(
            [hashlib.blake2b(data[begin:end], digest_size=16).digest() for begin, end in itertools.pairwise(bounds)]
        )
        yield start, np.frombuffer(hashes, np.uint64).reshape(-1, 2)
        start += entry.rows
