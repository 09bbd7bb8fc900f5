"""Test rows that belong together: turns of one case, reviews of one film. They are resampled whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FEW = 30  # below which percentiles of resampled clusters say little


@dataclass(frozen=True)
class Clusters:
    """
    Attributes:
        of_row: int64, (rows,), the cluster of each row, numbered from 0.
        sizes: float64, (clusters,), its rows.
    """

    of_row: np.ndarray
    sizes: np.ndarray

    @classmethod
    def single(cls, rows: int) -> "Clusters":
        """Rows that are independent of each other."""
        return cls(np.arange(rows), np.ones(rows))

    @classmethod
    def of(cls, values: Sequence[Any] | np.ndarray) -> "Clusters":
        """Rows with the same value belong together."""
        _, of_row, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        return cls(of_row.reshape(-1), counts.astype(np.float64))

    @property
    def rows(self) -> int:
        return len(self.of_row)

    @property
    def count(self) -> int:
        return len(self.sizes)

    def sums(self, scores: np.ndarray) -> np.ndarray:
        """(..., rows) to (..., clusters)."""
        if self.count == self.rows:
            ordered = np.empty(scores.shape)
            ordered[..., self.of_row] = scores
            return ordered
        flat = scores.reshape(-1, self.rows)
        sums = [np.bincount(self.of_row, weights=each, minlength=self.count) for each in flat]
        return np.array(sums).reshape(*scores.shape[:-1], self.count)

    def resampled_means(self, scores: np.ndarray, draws: int, random: np.random.Generator) -> np.ndarray:
        """Means over rows of `draws` samples of as many clusters, drawn with replacement.

        Deviations from the mean are stretched by sqrt(C / (C - 1)): of C clusters, the plain bootstrap's variance is
        too small by that.

        Args:
            scores: float64, (series, rows).
        Returns:
            float64, (draws, series): all series are resampled alike, so differences between them are paired.
        """
        sums = np.concatenate([self.sums(scores), self.sizes[None]]).T
        found = np.empty((draws, sums.shape[1]))
        chunk = max(1, 4_000_000 // self.count)
        for start in range(0, draws, chunk):
            number = min(chunk, draws - start)
            drawn = random.integers(self.count, size=(number, self.count))
            drawn += np.arange(number)[:, None] * self.count
            weights = np.bincount(drawn.ravel(), minlength=number * self.count).reshape(number, self.count)
            found[start : start + number] = weights.astype(np.float64) @ sums
        means = found[:, :-1] / found[:, -1:]
        mean = scores.mean(-1)
        return mean + (means - mean) * np.sqrt(self.count / max(self.count - 1, 1))

    def variance_of_mean(self, scores: np.ndarray) -> np.ndarray:
        """The variance of the mean over rows, (...,) of scores (..., rows); linearised for clusters unlike in size."""
        if self.count < 2:
            return np.zeros(scores.shape[:-1])
        centred = self.sums(scores - scores.mean(-1, keepdims=True))
        return self.count / (self.count - 1) * (centred**2).sum(-1) / self.rows**2
