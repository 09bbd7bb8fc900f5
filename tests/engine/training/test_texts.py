"""Batches of raw texts."""

import numpy as np
from subtested import as_subtests

from penstock.engine.data.sources import MemorySource
from penstock.engine.data.tokenizers import Encoded
from penstock.engine.training.texts import Window


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
