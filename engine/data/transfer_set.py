"""What a student learns from: one or two stores seen as one, some rows with their true label, all with the logits of
teachers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from penstock._native import Shards
from penstock.engine.data.label_lists import NO_LABEL
from penstock.engine.data.logits import Logits, digest_of_rows
from penstock.engine.data.manifest import Manifest, digest
from penstock.engine.data.store import Reader, SoftTargets, Store
from penstock.engine.errors import StoreError


class TransferSet(Store):
    """A store to the plan, the loader and the training loop; its rows are those of its parts, one after the other.

    `labels` has the true label of a row where that is known, else the one that the teachers give it, and -1 for rows
    that they have not read, which are not to be trained on.

    Attributes:
        parts: the stores.
        labelled: bool (num_examples,): whether a row's true label may be learned from.
        logits: the teachers', of rows of each part.
        origin: what run.json says of where all this is from.
    """

    def __init__(
        self, parts: Sequence[Store], labelled: Sequence[np.ndarray], logits: Sequence[Logits], origin: dict[str, Any]
    ) -> None:
        """
        Args:
            labelled: bool (rows,) for each part.

        Raises:
            StoreError: the parts have other tokenizers, or keep other parts of long texts.
        """
        first = parts[0]
        for part in parts[1:]:
            check_alike(first, part)
        self.parts, self.labelled, self.logits, self.origin = parts, np.concatenate(labelled), logits, origin
        self._masks = labelled
        self.path, self.reader = first.path, first.reader
        self.max_length, self.truncation = first.max_length, first.truncation
        self.cut = next((part.cut for part in parts if part.cut is not None), None)
        self.stored_lengths = np.concatenate([part.stored_lengths for part in parts])
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.num_tokens = sum(part.num_tokens for part in parts)
        self.seconds = None
        if first.seconds is not None:
            self.seconds = np.concatenate([part.seconds for part in parts if part.seconds is not None])
        self.clusters = None
        self.labels = np.concatenate(
            [_labels(part, mask, own) for part, mask, own in zip(parts, labelled, logits, strict=True)]
        )
        self._starts = np.cumsum([0, *(part.num_examples for part in parts)])
        self.manifest = _joined(parts, self.labels, labelled, logits)
        self.shards = Shards(np.dtype(first.manifest.dtype).itemsize, first.vocab_size)
        for part in parts:
            part.add_shards(self.shards)

    def read_with(self, reader: Reader) -> "TransferSet":
        return self._of([part.read_with(reader) for part in self.parts])

    def cut_to(self, max_length: int, truncation: str | None = None) -> "TransferSet":
        return self._of([part.cut_to(max_length, truncation) for part in self.parts])

    def soft_targets(self, rows: np.ndarray) -> SoftTargets:
        found = np.empty((len(rows), self.num_labels), np.float32)
        number = np.searchsorted(self._starts, rows, side="right") - 1
        for place, logits in enumerate(self.logits):
            own = np.flatnonzero(number == place)
            found[own] = logits.of_rows(rows[own] - self._starts[place])
        return SoftTargets(found, self.labelled[rows])

    def _of(self, parts: list[Store]) -> "TransferSet":
        same = all(one is other for one, other in zip(parts, self.parts, strict=True))
        return self if same else TransferSet(parts, self._masks, self.logits, self.origin)


def check_alike(first: Store, other: Store) -> None:
    """
    Raises:
        StoreError: two stores cannot be read as one.
    """
    here, there = other.manifest, first.manifest
    for what, a, b in (
        ("another tokenizer", here.tokenizer.fingerprint, there.tokenizer.fingerprint),
        ("other columns of text", here.is_pair, there.is_pair),
        ("another --max-length", here.max_length, there.max_length),
        ("another --truncation", here.truncation, there.truncation),
    ):
        if a != b:
            raise StoreError(
                f"{other.path} was prepared with {what} than {first.path}: prepare it with --unlabelled --like "
                f"{first.path}"
            )


def _labels(store: Store, labelled: np.ndarray, logits: Logits) -> np.ndarray:
    found = np.full(store.num_examples, NO_LABEL, np.int64)
    found[logits.rows] = logits.labels()
    if labelled.any():
        found[labelled] = store.labels[labelled]
    return found


def _joined(
    parts: Sequence[Store], labels: np.ndarray, labelled: Sequence[np.ndarray], logits: Sequence[Logits]
) -> Manifest:
    """A manifest of the whole, whose fingerprint is that of all that can be learned from it."""
    manifests, names = [part.manifest for part in parts], logits[0].of.label_names
    known = [digest_of_rows(np.flatnonzero(mask)) for mask in labelled]
    return replace(
        manifests[0],
        label_names=names,
        label_counts=np.bincount(labels[labels != NO_LABEL], minlength=len(names)).tolist(),
        num_examples=len(labels),
        num_tokens=sum(manifest.num_tokens for manifest in manifests),
        truncated_texts=sum(manifest.truncated_texts for manifest in manifests),
        empty_texts=sum(manifest.empty_texts for manifest in manifests),
        bad_rows=sum(manifest.bad_rows for manifest in manifests),
        content=digest([[part.fingerprint for part in parts], known, [own.fingerprint for own in logits]]),
        shards=[shard for manifest in manifests for shard in manifest.shards],
        clusters=None,
    )
