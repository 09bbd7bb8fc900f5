"""Where pretraining stops paying: the size from which the gap to the encoder stays below a threshold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.engine.study.curves import Curve
from penstock.engine.study.intervals import percentile_interval

THRESHOLD = 0.01  # one point of accuracy
RESAMPLES = 2000
FARTHEST = 100  # times the largest size: no curve is followed beyond


@dataclass(frozen=True)
class BreakEven:
    """
    Attributes:
        size: the size, in examples; None if it was not reached, 0 if the gap was below the threshold from the start.
        low, high: the ends of its 95% interval; None without several seeds; `inf` and 0 as for `size`.
        smallest, largest: the sizes that both families were measured at.
        extrapolated: the size that the fitted curves predict beyond the largest one, with its interval.
        note: why there is nothing, or what was not done.
    """

    size: float | None
    low: float | None = None
    high: float | None = None
    smallest: int = 0
    largest: int = 0
    extrapolated: tuple[float, float, float] | None = None
    note: str = ""

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
        if self.extrapolated is not None:
            size, low, high = (_far(value, self.largest) for value in self.extrapolated)
            text += f"; the fitted curves, extrapolated, put it at {size} (95% interval {low} to {high})"
        return text + (f"; {self.note}" if self.note else "")

    def _end(self, value: float) -> str:
        if value == 0:
            return f"below {self.smallest:,}"
        return f"above {self.largest:,}" if math.isinf(value) else rounded(value)


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
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> BreakEven:
    """
    Args:
        gaps: {size: {seed: gap as a share}} of the sizes that both families were measured at.
        curves: the family's curve and the encoder's, or why there is none: followed where the measured sizes end
            before the break-even.
    """
    sizes = sorted(size for size in gaps if gaps[size])
    if not sizes:
        return BreakEven(None, note="no size has both families")
    values = [np.array(list(gaps[size].values())) for size in sizes]
    size = crossing(sizes, [float(own.mean()) for own in values], threshold)
    draws = _draw_means(values, seed)
    low, high = None, None
    if draws is not None:
        low, high = percentile_interval(np.array([crossing(sizes, row, threshold) for row in draws]))
    extrapolated, note = None, ""
    if math.isinf(size) and curves is not None:
        extrapolated, note = _extrapolate(curves, sizes[-1], threshold)
    found = None if math.isinf(size) else size
    return BreakEven(found, low, high, sizes[0], sizes[-1], extrapolated, note)


def equivalent_size(
    accuracies: Mapping[int, Mapping[int, float]], target: Mapping[int, float], seed: int = 0
) -> tuple[float, float | None, float | None]:
    """The size at which a family reaches the mean of `target`, and its 95% interval.

    Args:
        accuracies: {size: {seed: accuracy as a share}} of the family.
        target: {seed: accuracy as a share} of the encoder at one size.

    Returns:
        (size, low, high): 0 where the smallest size is enough, infinity where the largest is not; no interval without
            several seeds.
    """
    sizes = sorted(accuracies)
    own = [np.array(list(accuracies[size].values())) for size in sizes]
    aim = np.array(list(target.values()))
    size = crossing(sizes, [float(aim.mean() - values.mean()) for values in own], 0.0)
    draws = _draw_means([*own, aim], seed)
    if draws is None:
        return size, None, None
    return size, *percentile_interval(np.array([crossing(sizes, row[-1] - row[:-1], 0.0) for row in draws]))


def _draw_means(values: Sequence[np.ndarray], seed: int) -> np.ndarray | None:
    """(RESAMPLES, len(values)): means drawn from their t distributions with the variance over seeds, pooled over all;
    None where nothing has two seeds."""
    freedom = sum(len(own) - 1 for own in values)
    if freedom == 0:
        return None
    pooled = sum(float(((own - own.mean()) ** 2).sum()) for own in values) / freedom
    deviations = np.sqrt(pooled / np.array([len(own) for own in values]))
    noise = np.random.default_rng(seed).standard_t(freedom, size=(RESAMPLES, len(values)))
    return np.array([own.mean() for own in values]) + deviations * noise


def _extrapolate(
    curves: tuple[Curve | str, Curve | str], largest: int, threshold: float
) -> tuple[tuple[float, float, float] | None, str]:
    for curve in curves:
        if isinstance(curve, str):
            return None, f"not extrapolated: {curve}"
        if not curve.identified:
            return None, f"not extrapolated: {curve.reason}"
    own, reference = (curve for curve in curves if isinstance(curve, Curve))
    grid = np.geomspace(largest, largest * FARTHEST, 400)

    def first_below(mine, theirs) -> float:
        below = mine.error(grid) - theirs.error(grid) < threshold
        # as with the measured sizes: from where it stays below
        return (
            math.inf
            if not below[-1]
            else float(grid[len(below) - int(np.argmin(below[::-1])) if not below.all() else 0])
        )

    samples = [first_below(*pair) for pair in zip(own.resamples, reference.resamples, strict=True)]
    return (first_below(own.fit, reference.fit), *percentile_interval(np.array(samples))), ""


def _far(value: float, largest: int) -> str:
    return f"more than {largest * FARTHEST:,}" if math.isinf(value) else rounded(value)


def rounded(value: float) -> str:
    """Two significant digits: more would be pretence."""
    digits = max(0, math.floor(math.log10(value)) - 1)
    return f"{round(value / 10**digits) * 10**digits:,}"
