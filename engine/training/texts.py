"""Batches straight from a source's texts, without a store: for a look at new data with a trained model."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from penstock.engine.data.loader import Batch
from penstock.engine.data.sources import Source
from penstock.engine.data.sources.labels import LabelNames
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
        SourceError: a row cannot be used, or its label is none of `label_names`; labels are wanted and there is no row.
    """
    numbers = {name: number for number, name in enumerate(label_names)}
    named = LabelNames(label_names)  # 5, 5.0 and "5" are one class where the training labels are numbers
    first = 0
    for rows in source.rows():
        if rows.bad:
            bad = rows.bad[0]
            raise SourceError(f"{source.position(bad.position)}: {bad.reason}{source.advice(bad)}")
        names = [label_names[0] if source.label is None else named(label) for label in rows.labels]
        for name, label, position in zip(names, rows.labels, rows.positions, strict=True):
            if name is None:
                known = ", ".join(label_names[:20]) + (", ..." if len(label_names) > 20 else "")
                raise SourceError(
                    f"{source.position(position)}: the label {label!r} was not there in training ({known})"
                )
        labels = np.array([numbers[name] for name in names if name is not None], dtype=np.int64)
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
    if first == 0 and source.label is not None:
        raise SourceError(f"{source.name}: empty: no row in it")


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
