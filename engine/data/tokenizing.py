"""The rows of the sources on their way into shards."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from penstock.engine.data.job import Job, ShardRows
from penstock.engine.data.sources import Rows, Source
from penstock.engine.data.survey import ContentHash, usable_rows
from penstock.engine.data.tokenizers import Encoded, TextTokenizer
from penstock.engine.errors import TokenizerError

ENCODING_AHEAD = 3  # batches being tokenized at a time


@dataclass(frozen=True)
class Piece:
    """Rows of one source that fall into one shard; `labels` are their numbers."""

    source: int
    rows: Rows
    labels: list[int]
    wanted: bool


def cut_into_shards(sources: Sequence[Source], job: Job, wanted: set[int], content: ContentHash) -> Iterator[Piece]:
    """The usable rows, cut where shards end; `content` sees all of them."""
    label_ids = {name: number for number, name in enumerate(job.label_names)}
    begin = 0
    for source, rows in usable_rows(sources, job.label_names):
        content.update(rows)
        at = 0
        while at < len(rows.texts):
            shard = begin // job.rows_per_shard
            end = min(len(rows.texts), at + (shard + 1) * job.rows_per_shard - begin)
            cut = Rows(rows.texts[at:end], rows.labels[at:end], rows.positions[at:end], [])
            yield Piece(source, cut, [label_ids[name] for name in cut.labels], shard in wanted)
            begin += end - at
            at = end


def encode_pieces(pieces: Iterator[Piece], tokenizer: TextTokenizer) -> Iterator[tuple[Piece, Encoded | None]]:
    """The pieces in order with their tokens (None where they are not wanted), a few of them tokenized ahead.

    The tokenizer's own threads do the work without the GIL; a second batch keeps them busy while the first is read
    from, and put into arrays, under it.
    """
    ahead: deque[tuple[Piece, Future[Encoded] | None]] = deque()
    pool = ThreadPoolExecutor(ENCODING_AHEAD - 1, "tokenize")
    try:
        for piece in pieces:
            ahead.append((piece, pool.submit(tokenizer.encode, piece.rows.texts) if piece.wanted else None))
            while len(ahead) >= ENCODING_AHEAD:
                first, future = ahead.popleft()
                yield first, None if future is None else future.result()
        for piece, future in ahead:
            yield piece, None if future is None else future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class ShardBuilder:
    """Gathers the rows of one shard, as narrow arrays."""

    def __init__(self, job: Job, number: int) -> None:
        self.number = number
        self.seen = 0
        self._job = job
        self._values: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._sources: list[np.ndarray] = []
        self._source_rows: list[np.ndarray] = []
        self._truncated = 0
        self._empty = 0

    def add(self, piece: Piece, encoded: Encoded) -> None:
        if len(encoded.values) and int(encoded.values.max()) >= self._job.vocab_size:
            raise TokenizerError(
                f"the tokenizer gave token {int(encoded.values.max())}, its vocabulary has {self._job.vocab_size}"
            )
        self._values.append(encoded.values.astype(self._job.dtype))
        self._lengths.append(encoded.lengths)
        self._labels.append(np.array(piece.labels, np.int32))
        self._sources.append(np.full(len(piece.labels), piece.source, np.int32))
        self._source_rows.append(np.array(piece.rows.positions, np.int64))
        self._truncated += encoded.truncated
        self._empty += piece.rows.texts.count("")

    def rows(self) -> ShardRows:
        return ShardRows(
            self._values,
            np.concatenate(self._lengths),
            np.concatenate(self._labels),
            np.concatenate(self._sources),
            np.concatenate(self._source_rows),
            self._truncated,
            self._empty,
        )
