"""Batches straight from a source's texts, without a store: for a look at new data with a trained model."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from penstock.engine.data.loader import Batch
from penstock.engine.data.sources import Source
from penstock.engine.data.tokenizers import TextTokenizer
from penstock.engine.errors import SourceError
from penstock.kernels import Ragged


def text_batches(
    source: Source, tokenizer: TextTokenizer, label_names: Sequence[str], tokens_per_batch: int
) -> Iterator[Batch]:
    """Batches of a source's texts, in bounded memory, grouped by length within what is read at a time.

    Yields:
        Batches whose ids are the texts' numbers from 0 in the source; labels are 0 where the source was opened without.

    Raises:
        SourceError: a row cannot be used, or its label is none of `label_names`.
    """
    numbers = {name: number for number, name in enumerate(label_names)}
    first = 0
    for rows in source.rows():
        if rows.bad:
            bad = rows.bad[0]
            raise SourceError(f"{source.position(bad.position)}: {bad.reason}")
        for name, position in zip(rows.labels, rows.positions, strict=True):
            if source.label is not None and name not in numbers:
                known = ", ".join(label_names)
                raise SourceError(
                    f"{source.position(position)}: the label {name!r} was not there in training ({known})"
                )
        labels = np.array([numbers.get(name, 0) for name in rows.labels], dtype=np.int64)
        encoded = tokenizer.encode(rows.texts)
        ends = np.cumsum(encoded.lengths, dtype=np.int64)
        for chosen in _groups(encoded.lengths, tokens_per_batch):
            pieces = [encoded.values[ends[i] - encoded.lengths[i] : ends[i]] for i in chosen]
            values = torch.from_numpy(np.concatenate(pieces).astype(np.int32))
            tokens = Ragged.from_lengths(
                values, torch.from_numpy(encoded.lengths[chosen]), ids=torch.from_numpy(first + chosen)
            )
            yield Batch(tokens, torch.from_numpy(labels[chosen]))
        first += len(rows.texts)


def _groups(lengths: np.ndarray, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Rows of similar length, `tokens_per_batch` tokens together at most unless a single one has more."""
    order = np.argsort(lengths, kind="stable")
    start, used = 0, 0
    for place, row in enumerate(order):
        cost = max(int(lengths[row]), 1)
        if used + cost > tokens_per_batch and place > start:
            yield order[start:place]
            start, used = place, 0
        used += cost
    if start < len(order):
        yield order[start:]
