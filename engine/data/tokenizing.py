"""The rows of the sources on their way into shards."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from penstock.engine.data.job import Job, ShardRows
from penstock.engine.data.label_lists import NO_LABEL, lists_of, rarest
from penstock.engine.data.sources import Rows, Source
from penstock.engine.data.survey import ContentHash, usable_rows
from penstock.engine.data.tokenizers import Encoded, TextTokenizer
from penstock.engine.errors import SourceError, TokenizerError

ENCODING_AHEAD = 3  # batches being tokenized at a time


@dataclass(frozen=True)
class Piece:
    """Rows of one source that fall into one shard; `labels` are their numbers, or a list of numbers each."""

    shard: int
    source: int
    rows: Rows
    labels: list[Any]


def cut_into_shards(sources: Sequence[Source], job: Job, wanted: set[int]) -> Iterator[Piece]:
    """The rows of the wanted shards, in order. A source that has none of them is not even read.

    Raises:
        SourceError: at the end of a source that is not what the survey found.
    """
    label_ids = {name: number for number, name in enumerate(job.label_names)}
    size = job.rows_per_shard
    begin = 0
    for number, (source, entry, content) in enumerate(zip(sources, job.sources, job.source_contents, strict=True)):
        end = begin + entry.rows
        if wanted.isdisjoint(range(begin // size, -(-end // size))):
            begin = end
            continue
        found = ContentHash(job.multi_label)
        for rows in usable_rows(source, job.label_names or None):
            found.update(rows)
            at, count = 0, min(len(rows.texts), end - begin)
            while at < count:
                shard = begin // size
                to = min(count, at + (shard + 1) * size - begin)
                if shard in wanted:
                    cut = Rows(rows.texts[at:to], rows.labels[at:to], rows.positions[at:to], [])
                    yield Piece(shard, number, cut, _numbers(cut.labels, label_ids, job.multi_label))
                begin += to - at
                at = to
        if found.content() != content:
            raise SourceError(f"{source.name}: has changed while it was read; prepare again")


def _numbers(labels: list[Any], ids: dict[str, int], multi_label: bool) -> list[Any]:
    if multi_label:
        return [[ids[name] for name in names] for names in labels]
    return [ids[name] for name in labels] if ids else [NO_LABEL] * len(labels)


def encode_pieces(pieces: Iterator[Piece], tokenizer: TextTokenizer) -> Iterator[tuple[Piece, Encoded]]:
    """The pieces in order with their tokens, a few of them tokenized ahead.

    The tokenizer's own threads do the work without the GIL; a second batch keeps them busy while the first is read
    from, and put into arrays, under it.
    """
    ahead: deque[tuple[Piece, Future[Encoded]]] = deque()
    workers = ThreadPoolExecutor(ENCODING_AHEAD - 1, "tokenize")
    try:
        for piece in pieces:
            ahead.append((piece, workers.submit(tokenizer.encode, piece.rows.texts)))
            while len(ahead) >= ENCODING_AHEAD:
                first, future = ahead.popleft()
                yield first, future.result()
        for piece, future in ahead:
            yield piece, future.result()
    finally:
        workers.shutdown(cancel_futures=True)


class ShardBuilder:
    """Gathers the rows of one shard, as narrow arrays."""

    def __init__(self, job: Job, number: int) -> None:
        self.number = number
        self.seen = 0
        self._job = job
        self._values: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._label_lists: list[list[int]] = []
        self._sources: list[np.ndarray] = []
        self._source_rows: list[np.ndarray] = []
        self._seconds: list[np.ndarray] = []
        self._truncated = 0
        self._empty = 0

    def add(self, piece: Piece, encoded: Encoded) -> None:
        if len(encoded.values) and int(encoded.values.max()) >= self._job.vocab_size:
            raise TokenizerError(
                f"the tokenizer gave token {int(encoded.values.max())}, its vocabulary has {self._job.vocab_size}"
            )
        self._values.append(encoded.values.astype(self._job.dtype))
        self._lengths.append(encoded.lengths)
        if self._job.multi_label:
            self._label_lists += piece.labels
        else:
            self._labels.append(np.array(piece.labels, np.int32))
        self._sources.append(np.full(len(piece.labels), piece.source, np.int32))
        self._source_rows.append(np.array(piece.rows.positions, np.int64))
        if encoded.seconds is not None:
            self._seconds.append(encoded.seconds)
        self._truncated += encoded.truncated
        self._empty += piece.rows.texts.count(("", "") if self._job.is_pair else "")
        self.seen += len(piece.labels)

    def rows(self) -> ShardRows:
        lists = None
        if self._job.multi_label:
            lists = lists_of(self._label_lists)
            self._labels = [rarest(*lists, self._job.label_counts).astype(np.int32)]
        return ShardRows(
            self._values,
            np.concatenate(self._lengths),
            np.concatenate(self._labels),
            np.concatenate(self._sources),
            np.concatenate(self._source_rows),
            self._truncated,
            self._empty,
            lists,
            np.concatenate(self._seconds) if self._seconds else None,
        )
