"""Several labels a row: how a store keeps them, and the one label that stands for a row where only one can.

The lists of all rows lie end to end, with the offsets at which each begins (CSR).
"""

from collections.abc import Sequence

import numpy as np

NO_LABEL = -1  # what stands for a row without labels


def lists_of(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int64 (rows + 1,), ids int32), each row's ids in rising order and once."""
    sorted_rows = [sorted(set(row)) for row in rows]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in sorted_rows], out=offsets[1:])
    return offsets, np.array([one for row in sorted_rows for one in row], np.int32)


def rarest(offsets: np.ndarray, ids: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """int64 (rows,): each row's label that the fewest rows have, by which a split keeps rare labels on both sides.

    Args:
        offsets, ids: as `lists_of` gives them.
        counts: rows of each label; between equals the lower number wins.
    """
    by_count = np.argsort(np.asarray(counts, np.int64), kind="stable")
    rank = np.empty(len(by_count), np.int64)
    rank[by_count] = np.arange(len(by_count))
    found = np.full(len(offsets) - 1, NO_LABEL, np.int64)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        found[filled] = by_count[np.minimum.reduceat(rank[ids], offsets[filled])]
    return found


def multi_hot(offsets: np.ndarray, ids: np.ndarray, rows: np.ndarray, num_labels: int) -> np.ndarray:
    """float32 (rows, num_labels): 1 where a row has a label, 0 elsewhere."""
    sizes = offsets[rows + 1] - offsets[rows]
    targets = np.zeros((len(rows), num_labels), np.float32)
    first = np.cumsum(sizes) - sizes
    places = np.arange(int(sizes.sum())) + np.repeat(offsets[rows] - first, sizes)
    targets[np.repeat(np.arange(len(rows)), sizes), ids[places]] = 1.0
    return targets


def counts_of(offsets: np.ndarray, ids: np.ndarray, rows: np.ndarray, num_labels: int) -> np.ndarray:
    """int64 (num_labels,): how many of the rows have each label."""
    chosen = np.zeros(len(offsets) - 1, bool)
    chosen[rows] = True
    return np.bincount(ids[np.repeat(chosen, np.diff(offsets))], minlength=num_labels)
