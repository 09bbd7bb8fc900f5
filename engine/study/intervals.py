"""Means with their 95% intervals: from draws over seeds and test rows, or Student's t over seeds alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from penstock.engine.statistics.resample import Drawn

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` seeds and its 95% interval.

    Attributes:
        low, high: None for a single seed whose predictions of the test rows are not known.
        rows: whether the interval is also over test rows; that of a single seed is over them alone, unless `borrowed`.
        borrowed: whether that of a single seed holds how seeds differ, as other figures of the study tell it.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    rows: bool = False
    borrowed: bool = False

    @classmethod
    def of(cls, drawn: Drawn) -> "Estimate":
        return cls(drawn.mean, *drawn.interval, drawn.seeds, rows=True, borrowed=drawn.borrowed)

    @property
    def over_seeds(self) -> bool:
        """Whether the interval, where there is one, holds how seeds differ."""
        return self.count > 1 or self.borrowed

    @property
    def half_width(self) -> float | None:
        """Half of the interval, whose ends need not be as far from the mean as each other."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def within(self, low: float, high: float) -> "Estimate":
        """An interval of a mean that lies between these limits: as wide near the mean, on the log-odds of the range,
        so that it does not leave it."""
        if self.high is None:
            return self
        width = high - low
        share, half = (self.mean - low) / width, (self.high - self.mean) / width
        if not 0 < share < 1:
            return replace(self, low=max(self.mean - half * width, low), high=min(self.mean + half * width, high))
        odds = np.log(share / (1 - share))
        steps = odds + np.array([-1, 1]) * half / (share * (1 - share))
        ends = low + width * (0.5 + 0.5 * np.tanh(steps / 2))
        return replace(self, low=float(ends[0]), high=float(ends[1]))


def t_interval(values: Sequence[float]) -> Estimate:
    """The mean of independent values and mean ± t(0.975, n - 1) s / sqrt(n).

    Raises:
        ValueError: there are no values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("a mean needs at least one value")
    mean = float(data.mean())
    if data.size == 1:
        return Estimate(mean, None, None, 1)
    from scipy import stats  # half a second, which no message should wait for

    half = float(stats.t.ppf((1 + LEVEL) / 2, data.size - 1) * data.std(ddof=1) / np.sqrt(data.size))
    return Estimate(mean, mean - half, mean + half, int(data.size))


def percentile_interval(samples: np.ndarray) -> tuple[float, float]:
    """The central 95% of bootstrap samples, which may hold infinities."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return float(low), float(high)
