"""Nested stratified subsets of the training data."""

import numpy as np


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order of all rows whose every prefix has the classes in proportion, so that prefixes are nested subsets.

    The j-th row of a class with m rows is due at the quantile (j + 1/2) / m. The first row of each class comes first of
    all: no subset of at least as many rows as classes lacks a class.

    Args:
        labels: int64, (rows,).
    Returns:
        int64, (rows,): row numbers.
    """
    random = np.random.default_rng([seed, 0x57A7])
    shuffled = random.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, counts = np.unique(labels, return_counts=True)
    due = np.concatenate([np.r_[-1.0, (np.arange(1, count) + 0.5) / count] for count in counts] or [np.empty(0)])
    # rows of different classes that are due at the same quantile: in random order
    return by_class[np.lexsort((random.random(len(due)), due))].astype(np.int64)


def subset(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The first `size` rows of the stratified order, ascending."""
    return np.sort(stratified_order(labels, seed)[:size])
