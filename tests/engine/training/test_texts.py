"""Batches of raw texts."""

import threading
from itertools import pairwise

import numpy as np
from subtested import as_subtests

from penstock.engine.data.sources import MemorySource
from penstock.engine.data.tokenizers import Encoded
from penstock.engine.training.texts import Window, windows


@as_subtests("budget", [1, 7, 64, 10_000])
def test_every_text_once_in_batches_that_hold_the_budget(budget):
    draw = np.random.default_rng(budget)
    lengths = draw.integers(1, 20, 100).astype(np.int32)
    values = draw.integers(0, 1000, lengths.sum()).astype(np.uint32)
    rows = np.split(values, np.cumsum(lengths)[:-1])
    source = MemorySource([("text")] * 100, [0] * 100)
    labels = draw.integers(-1, 3, 100)  # those of a negative label are left out
    seen = []
    for batch in Window(source, next(source.rows()), Encoded(values, lengths, 0)).batches(budget, labels):
        assert batch.num_tokens <= budget or len(batch) == 1
        assert batch.labels.tolist() == labels[batch.tokens.ids.numpy()].tolist()
        for row, tokens in zip(batch.tokens.ids, batch.tokens.values.split(batch.tokens.lengths.tolist()), strict=True):
            assert tokens.tolist() == rows[row].tolist()
        seen += batch.tokens.ids.tolist()
    assert sorted(seen) == np.flatnonzero(labels >= 0).tolist()


class OneTokenEach:
    """Tokenizes each text as its number, and knows the threads that it did so in."""

    def __init__(self):
        self.threads = set()

    def encode(self, texts):
        self.threads.add(threading.current_thread())
        return Encoded(np.array(list(map(int, texts)), np.uint32), np.ones(len(texts), np.int32), 0)


@as_subtests("sizes", [[], [3], [0, 3, 0], [5, 5], [2, 0, 40, 7, 1]])
def test_windows_in_their_order_and_a_thread_only_for_several(sizes):
    ends = np.cumsum([0, *sizes])
    sources = [MemorySource([str(i) for i in range(a, b)]) for a, b in pairwise(ends)]
    tokenizer = OneTokenEach()
    found = list(windows(sources, tokenizer))
    assert [window.source for window in found] == [source for source, size in zip(sources, sizes, strict=True) if size]
    assert np.concatenate([[], *(window.encoded.values for window in found)]).tolist() == list(range(ends[-1]))
    assert (threading.current_thread() in tokenizer.threads) == (len(found) == 1)
    assert len(tokenizer.threads) == min(len(found), 1)
