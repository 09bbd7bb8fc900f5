"""Batches straight from a source's texts, without a store: for a look at new data with a trained model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch

from penstock.engine.data.loader import Batch
from penstock.engine.data.sources import BadRow, Rows, Source
from penstock.engine.data.sources.base import excerpt
from penstock.engine.data.sources.labels import LabelNames
from penstock.engine.data.tokenizers import Encoded, TextTokenizer
from penstock.engine.errors import SourceError
from penstock.kernels import Ragged

WINDOWS_AHEAD = 2  # tokenized while the model is busy

BadRows = Callable[[Source, list[BadRow]], None]


@dataclass(frozen=True)
class Window:
    """Some thousand rows of a source and their tokens; within it, texts of similar length go together."""

    source: Source
    rows: Rows
    encoded: Encoded

    def batches(self, tokens_per_batch: int, labels: np.ndarray | None = None) -> Iterator[Batch]:
        """
        Args:
            labels: int64 (texts,), zeros by default; texts with a negative one are left out. Or float32
                (texts, num_labels), where texts with a negative number are.

        Yields:
            Batches by length; their ids are the texts' numbers from 0 in this window.
        """
        lengths = self.encoded.lengths
        labels = np.zeros(len(lengths), np.int64) if labels is None else labels
        wanted = np.flatnonzero(labels >= 0 if labels.ndim == 1 else labels.min(1) >= 0)
        ends = np.cumsum(lengths, dtype=np.int64)
        for group in _groups(lengths[wanted], tokens_per_batch):
            chosen = wanted[group]
            pieces = [self.encoded.values[ends[i] - lengths[i] : ends[i]] for i in chosen]
            values = torch.from_numpy(np.concatenate(pieces).astype(np.int32))
            tokens = Ragged.from_lengths(values, torch.from_numpy(lengths[chosen]), ids=torch.from_numpy(chosen))
            seconds = self.encoded.seconds
            yield Batch(
                tokens,
                torch.from_numpy(labels[chosen]),
                None if seconds is None else torch.from_numpy(seconds[chosen]),
            )


def windows(sources: Iterable[Source], tokenizer: TextTokenizer) -> Iterator[Window]:
    """The sources' rows in their order, in bounded memory, tokenized ahead of the model."""
    found = ((source, rows) for source in sources for rows in source.rows())
    first = list(islice(found, 2))
    if len(first) == 1:  # nobody would wait for less: a thread takes a millisecond, a short text a tenth of that
        ((source, rows),) = first
        yield Window(source, rows, tokenizer.encode(rows.texts))
        return
    ahead: deque[tuple[Source, Rows, Future[Encoded]]] = deque()
    workers = ThreadPoolExecutor(1, "tokenize")
    try:
        for source, rows in chain(first, found):
            ahead.append((source, rows, workers.submit(tokenizer.encode, rows.texts)))
            if len(ahead) > WINDOWS_AHEAD:
                yield _finished(*ahead.popleft())
        while ahead:
            yield _finished(*ahead.popleft())
    finally:
        workers.shutdown(cancel_futures=True)


def labelled_batches(
    windows: Iterable[Window], label_names: Sequence[str], tokens_per_batch: int, on_bad: BadRows
) -> Iterator[Batch]:
    """The windows' batches with labels; rows that cannot be used, or have another label, go to `on_bad`.

    Raises:
        whatever `on_bad` does.
    """
    numbers = {name: number for number, name in enumerate(label_names)}
    named = LabelNames(label_names)  # 5, 5.0 and "5" are one class where the training labels are numbers
    for window in windows:
        rows = window.rows
        labels = np.array([numbers.get(named(label) or "", -1) for label in rows.labels], np.int64)
        unknown = np.flatnonzero(labels < 0)
        bad = list(rows.bad)
        if len(unknown):
            bad += [
                BadRow(rows.positions[i], _unknown(rows.labels[i], label_names), excerpt(rows.texts[i]))
                for i in unknown.tolist()
            ]
            bad.sort(key=lambda row: row.position)
        if bad:
            on_bad(window.source, bad)
        yield from window.batches(tokens_per_batch, labels)


def list_labelled_batches(
    windows: Iterable[Window], label_names: Sequence[str], tokens_per_batch: int, on_bad: BadRows
) -> Iterator[Batch]:
    """As `labelled_batches`, of rows with lists of labels: `Batch.labels` is float32 (batch, num_labels)."""
    numbers = {name: number for number, name in enumerate(label_names)}
    named = LabelNames(label_names)
    for window in windows:
        rows = window.rows
        labels = np.zeros((len(rows.texts), len(label_names)), np.float32)
        bad = list(rows.bad)
        for row, spelled in enumerate(rows.labels):
            for label in spelled:
                number = numbers.get(named(label) or "", -1)
                if number < 0:
                    labels[row] = -1.0
                    bad.append(BadRow(rows.positions[row], _unknown(label, label_names), excerpt(rows.texts[row])))
                    break
                labels[row, number] = 1.0
        if bad:
            on_bad(window.source, sorted(bad, key=lambda row: row.position))
        yield from window.batches(tokens_per_batch, labels)


def fail_on_bad_rows(source: Source, bad: list[BadRow]) -> None:
    """Raises SourceError for the first."""
    raise SourceError(f"{source.position(bad[0].position)}: {bad[0].reason}{source.advice(bad[0])}")


def _unknown(label: str, label_names: Sequence[str]) -> str:
    known = ", ".join(label_names[:10]) + (", …" if len(label_names) > 10 else "")
    return f"the label {label!r} was not there in training ({known})"


def _finished(source: Source, rows: Rows, encoded: Future[Encoded]) -> Window:
    return Window(source, rows, encoded.result())


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
