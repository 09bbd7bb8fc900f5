"""Where pretraining stops paying: the size from which the gap to the encoder stays below a threshold, on average and
reliably."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.engine.statistics.resample import LEVEL, Drawn
from penstock.engine.statistics.seed_variance import lend, moderate
from penstock.engine.study.curves import Curve
from penstock.engine.study.intervals import percentile_interval, t_interval

THRESHOLD = 0.01  # one point of accuracy
RESAMPLES = 2000
_AS_ACCURATE = 1e-12  # of accuracy: two that differ by nothing but rounding are as accurate as each other
FARTHEST = 100  # times the largest size: no curve is followed beyond


@dataclass(frozen=True)
class BreakEven:
    """
    Attributes:
        size: on average, in examples; None if it was not reached, 0 if the gap was below the threshold from the start.
        low, high: the ends of its 95% interval; None where nothing tells how the gap varies; `inf` and 0 as for `size`.
        reliable: the size from which the gap stays below the threshold in 95% of draws; `inf` as for `low`, and None
            too where nothing tells how seeds differ.
        smallest, largest: the sizes that both families were measured at.
        extrapolated: the size that the fitted curves put it at, with its interval; 0 and `inf` as for `size`.
        note: why there is nothing, or what was not done.
        of_rows: the interval is over test rows alone at sizes that have one seed.
    """

    size: float | None
    low: float | None = None
    high: float | None = None
    smallest: int = 0
    largest: int = 0
    extrapolated: tuple[float, float, float] | None = None
    note: str = ""
    reliable: float | None = None
    of_rows: bool = False

    def __str__(self) -> str:
        if not self.largest:
            return self.note
        if self.size is None:
            text = f"not reached within the sizes measured (up to {self.largest:,})"
        elif self.size == 0:
            text = f"reached at the smallest size already ({self.smallest:,})"
        else:
            text = f"about {rounded(self.size)} examples"
        ends = (self.low, self.high)
        # an interval that repeats what was said already is left out
        if self.low is not None and self.high is not None and ends not in ((0, 0), (math.inf, math.inf)):
            text += f", 95% interval {self._end(self.low)} to {self._end(self.high)}"
            text += ", over test rows alone where there is one seed" if self.of_rows else ""
        text += self._reliably()
        if self.extrapolated is not None:
            size, low, high = map(self._far, self.extrapolated)
            text += f"; the fitted curves, extrapolated, put it at {size} (95% interval {low} to {high})"
        return text + (f"; {self.note}" if self.note else "")

    def _reliably(self) -> str:
        if self.reliable is None:
            return ""
        share = f"in {100 * LEVEL:g}% of draws"
        if math.isinf(self.reliable):
            # what is not reached on average is not reached reliably
            return "" if self.size is None else f"; reliably ({share}) not within the sizes measured"
        if self.reliable == 0:
            return f"; reliably ({share}) at the smallest size too"
        return f"; reliably ({share}) from about {rounded(self.reliable)} examples"

    def _end(self, value: float) -> str:
        if value == 0:
            return f"below {self.smallest:,}"
        return f"above {self.largest:,}" if math.isinf(value) else rounded(value)

    def _far(self, value: float) -> str:
        return f"more than {self.largest * FARTHEST:,}" if math.isinf(value) else self._end(value)


def crossing(sizes: Sequence[int], gaps: Sequence[float] | np.ndarray, threshold: float = THRESHOLD) -> float:
    """The size from which the gap stays below the threshold through the largest size.

    Between two sizes the gap is taken as linear in the logarithm of the size. 0 if it lies below from the first size
    on, infinity if it does not at the last one.
    """
    if gaps[-1] >= threshold:
        return math.inf
    above = [place for place, gap in enumerate(gaps) if gap >= threshold]
    if not above:
        return 0.0
    last = above[-1]
    share = (gaps[last] - threshold) / (gaps[last] - gaps[last + 1])
    return float(sizes[last] * (sizes[last + 1] / sizes[last]) ** share)


def break_even(
    gaps: Mapping[int, Mapping[int, float]],
    curves: tuple[Curve | str, Curve | str] | None = None,
    *,
    drawn: Mapping[int, Drawn] | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> BreakEven:
    """
    In each draw the gaps of all sizes, which share their rows and seeds, have a crossing of their own. Its central 95%
    are the interval; the reliable break-even is what 95% of the crossings do not exceed: there, and through all larger
    sizes at once, the gap is below the threshold.

    Args:
        gaps: {size: {seed: gap as a share}} of the sizes that both families were measured at.
        curves: the family's curve and the encoder's, or why there is none: followed where the measured sizes end
            before the break-even.
        drawn: {size: the gap's draws}, over seeds and test rows; without them the gap varies over seeds alone.
    """
    sizes = sorted(size for size in gaps if gaps[size])
    if not sizes:
        return BreakEven(None, note="no size has both families")
    values = [np.array(list(gaps[size].values())) for size in sizes]
    size = crossing(sizes, [float(own.mean()) for own in values], threshold)
    low, high, reliable = None, None, None
    of_rows = False
    if drawn is not None and all(own in drawn for own in sizes):
        draws: np.ndarray | None = np.stack([drawn[own].draws for own in sizes], 1)
        limits, of_rows = (0.0, math.inf), not all(drawn[own].over_seeds for own in sizes)
    else:
        draws, limits = _draw_means(values, sizes, seed), _not_ruled_out(values, sizes, threshold)
    if draws is not None:
        crossings = np.clip([crossing(sizes, row, threshold) for row in draws], *limits)
        low, high = percentile_interval(crossings)
        low, high = min(low, size), max(high, size)
        reliable = None if of_rows else float(np.quantile(crossings, LEVEL, method="inverted_cdf"))
    extrapolated, note = None, ""
    if math.isinf(size) and curves is not None:
        extrapolated, note = _extrapolate(curves, sizes[0], sizes[-1], threshold)
    found = None if math.isinf(size) else size
    return BreakEven(found, low, high, sizes[0], sizes[-1], extrapolated, note, reliable, of_rows)


def equivalent_size(
    accuracies: Mapping[int, Mapping[int, float]],
    target: Mapping[int, float],
    seed: int = 0,
    drawn: tuple[Mapping[int, Drawn], Drawn] | None = None,
) -> tuple[float, float | None, float | None]:
    """The size at which a family reaches the mean of `target`, and its 95% interval.

    Args:
        accuracies: {size: {seed: accuracy as a share}} of the family.
        target: {seed: accuracy as a share} of the encoder at one size.
        drawn: the draws of both, over seeds and test rows; without them both vary over seeds alone.

    Returns:
        (size, low, high): 0 where the smallest size is enough, infinity where the largest is not; no interval where
            nothing tells how they vary.
    """
    sizes = sorted(accuracies)
    own = [np.array(list(accuracies[size].values())) for size in sizes]
    aim = np.array(list(target.values()))
    size = crossing(sizes, [float(aim.mean() - values.mean()) for values in own], _AS_ACCURATE)
    if drawn is not None:
        draws: np.ndarray | None = np.stack([*(drawn[0][own].draws for own in sizes), drawn[1].draws], 1)
    else:
        draws = _draw_means([*own, aim], [1] * (len(own) + 1), seed)
    if draws is None:
        return size, None, None
    low, high = percentile_interval(np.array([crossing(sizes, row[-1] - row[:-1], _AS_ACCURATE) for row in draws]))
    return size, min(low, size), max(high, size)


def _draw_means(values: Sequence[np.ndarray], sizes: Sequence[int], seed: int) -> np.ndarray | None:
    """(RESAMPLES, len(values)): means drawn from their t distributions, with moderated variances over seeds; a single
    seed has that of the others. None where nothing tells how seeds differ."""
    spreads = _spreads(values, sizes)
    if spreads is None:
        return None
    errors, freedoms = spreads
    noise = np.random.default_rng(seed).standard_t(freedoms, size=(RESAMPLES, len(values)))
    return np.array([own.mean() for own in values]) + noise * errors


def _spreads(values: Sequence[np.ndarray], sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Standard errors of means over seeds, and their degrees of freedom; None where one is not known."""
    counts, several = np.array([len(own) for own in values]), np.array([len(own) > 1 for own in values])
    known = np.array([own.var(ddof=1) for own in values if len(own) > 1]), counts[several] - 1, np.array(sizes)[several]
    variances, freedoms = np.empty(len(values)), np.empty(len(values))
    variances[several], freedoms[several] = moderate(*known)
    for place in np.flatnonzero(~several):
        lent = lend(*known, np.ones(several.sum(), bool), sizes[int(place)])
        if lent is None:
            return None
        variances[place], freedoms[place] = lent
    return np.sqrt(variances / counts), freedoms


def _not_ruled_out(values: Sequence[np.ndarray], sizes: Sequence[int], threshold: float) -> tuple[float, float]:
    """Where a crossing may lie by each size's own interval over seeds: not before a size whose gap is surely above the
    threshold, nor after one from which on all are surely below."""
    spreads, intervals = _spreads(values, sizes), [t_interval(own.tolist()) for own in values]
    if spreads is None:
        return 0.0, math.inf
    from scipy import stats

    halves = stats.t.ppf((1 + LEVEL) / 2, spreads[1]) * spreads[0]
    lows = [one.mean - half if one.low is None else one.low for one, half in zip(intervals, halves, strict=True)]
    highs = [one.mean + half if one.high is None else one.high for one, half in zip(intervals, halves, strict=True)]
    surely_above = [place for place, low in enumerate(lows) if low >= threshold]
    maybe_above = [place for place, high in enumerate(highs) if high >= threshold]
    ends = [*map(float, sizes), math.inf]
    first = 0.0 if not surely_above else math.inf if surely_above[-1] == len(sizes) - 1 else ends[surely_above[-1]]
    return first, 0.0 if not maybe_above else ends[maybe_above[-1] + 1]


def _extrapolate(
    curves: tuple[Curve | str, Curve | str], smallest: int, largest: int, threshold: float
) -> tuple[tuple[float, float, float] | None, str]:
    for curve in curves:
        if isinstance(curve, str):
            return None, f"not extrapolated: {curve}"
        if not curve.identified:
            return None, f"not extrapolated: {curve.reason}"
    own, reference = (curve for curve in curves if isinstance(curve, Curve))
    # where they meet may lie among the measured sizes, whatever the largest one's own figures say
    grid = np.geomspace(smallest, largest * FARTHEST, 800)

    def first_below(mine, theirs) -> float:
        return crossing(grid.tolist(), mine.error(grid) - theirs.error(grid), threshold)

    # forms of curves have fewer or more resamples; any two may be compared
    count = max(len(own.resamples), len(reference.resamples))
    samples = [first_below(*(one.resamples[i % len(one.resamples)] for one in (own, reference))) for i in range(count)]
    return (first_below(own.fit, reference.fit), *percentile_interval(np.array(samples))), ""


def rounded(value: float) -> str:
    """Two significant digits: more would be pretence."""
    digits = max(0, math.floor(math.log10(value)) - 1)
    return f"{round(value / 10**digits) * 10**digits:,}"
