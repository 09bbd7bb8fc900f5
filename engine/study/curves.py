"""The learning curves of a study's families, with honest intervals; forms are in statistics/learning_curves.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from penstock.engine.statistics.learning_curves import EXPONENTS, POWER_LAW, Fit, Form, choose, fit
from penstock.engine.study.intervals import percentile_interval

MIN_SIZES = 5  # the power law's three parameters, and something left to judge them by
RESAMPLES = {"power law": 400}
_RESAMPLES = 100  # of the forms whose fit takes tens of milliseconds
_BEYOND = 4  # times the largest size: how far a curve that is extrapolated has to be pinned down


@dataclass(frozen=True)
class Curve:
    """A fit with what a bootstrap over seeds and sizes says of it.

    Attributes:
        resamples: the fits of the resampled data.
        losses: {form: its loss on sizes that it was not fitted to}, by which the form was chosen.
        held_out: (size, predicted error, measured error) of the largest size, predicted from the others, where enough
            remain.
        identified: whether the data pin the curve down, so that it may be extrapolated; if not, `reason` says why.
    """

    fit: Fit
    resamples: list[Fit]
    held_out: tuple[int, float, float] | None
    losses: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def identified(self) -> bool:
        return not self.reason

    def interval(self, name: str) -> tuple[float, float]:
        """The 95% interval of a parameter, one of `fit.values`."""
        return percentile_interval(np.array([fit.values[name] for fit in self.resamples]))

    def error_interval(self, size: float) -> tuple[float, float]:
        return percentile_interval(np.array([float(fit.error(size)) for fit in self.resamples]))


def fit_curve(errors: Mapping[int, Mapping[int, float]], seed: int = 0) -> Curve | str:
    """Fits a family's learning curve, or says in one line why there is none.

    Args:
        errors: {size: {seed: error as a share}}, at least one seed for each size.
    """
    if len(errors) < MIN_SIZES:
        return f"no curve is fitted to {len(errors)} sizes: it takes {MIN_SIZES}"
    sizes = sorted(errors)
    values = [np.array(list(errors[size].values())) for size in sizes]
    pooled = _pooled_variance(values)
    if pooled is None:
        return "no curve is fitted: no size has two seeds, so nothing is known of the noise"
    form, losses = choose(*_points(sizes, values, pooled))
    whole = _fit(form, sizes, values, pooled)
    random = np.random.default_rng(seed)
    count = RESAMPLES.get(form.name, _RESAMPLES)
    resamples = [_fit(form, *_resample(random, sizes, values, pooled), pooled, whole) for _ in range(count)]
    held_out = None
    if len(sizes) > max(MIN_SIZES, form.parameters):
        predicted = _fit(form, sizes[:-1], values[:-1], pooled).error(sizes[-1])
        held_out = (sizes[-1], float(predicted), float(values[-1].mean()))
    curve = Curve(whole, resamples, held_out, losses)
    return replace(curve, reason=_why_unidentified(curve, sizes[-1], values[0].mean() - values[-1].mean()))


def _why_unidentified(curve: Curve, largest: int, fall: float) -> str:
    if curve.fit.form is not POWER_LAW:
        low, high = curve.error_interval(_BEYOND * largest)
        if high - low > max(fall, 0.0):
            return f"it is not pinned down (95% interval {low:.1%} to {high:.1%} error at {_BEYOND * largest:,})"
        return ""
    low, high = curve.interval("exponent")
    if low < EXPONENTS[0] * 1.05 or high > EXPONENTS[1] * 0.95:
        return f"the exponent is not pinned down (95% interval {low:.2f} to {high:.2f})"
    low, high = curve.interval("floor")
    if high - low > max(fall, 0.0):
        return f"the floor is not pinned down (95% interval {low:.1%} to {high:.1%} error)"
    return ""


def _pooled_variance(values: list[np.ndarray]) -> float | None:
    """The variance of one run's error over seeds, pooled over the sizes that have several."""
    freedom = sum(len(own) - 1 for own in values)
    if freedom == 0:
        return None
    # a variance of exactly zero would turn the weights infinite
    return max(sum(float(((own - own.mean()) ** 2).sum()) for own in values) / freedom, 1e-8)


def _fit(form: Form, sizes: list[int], values: list[np.ndarray], pooled: float, start: Fit | None = None) -> Fit:
    return fit(form, *_points(sizes, values, pooled), start)


def _points(sizes: list[int], values: list[np.ndarray], pooled: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, mean errors and their variances."""
    counts = np.array([len(own) for own in values])
    means = np.array([own.mean() for own in values])
    # one size's own variance over three seeds is itself mostly noise: it is mixed half and half with the pooled one
    own = np.array([own.var(ddof=1) if len(own) > 1 else pooled for own in values])
    return np.array(sizes, dtype=np.float64), means, (0.5 * own + 0.5 * pooled) / counts


def _resample(
    random: np.random.Generator, sizes: list[int], values: list[np.ndarray], pooled: float
) -> tuple[list[int], list[np.ndarray]]:
    """Sizes drawn with replacement, four different ones at least, and seeds within each; a lone seed gets noise."""
    while True:
        drawn = np.sort(random.integers(len(sizes), size=len(sizes)))
        if len(set(drawn)) >= MIN_SIZES - 1:
            break
    chosen = []
    for place in drawn:
        own = values[place]
        if len(own) > 1:
            chosen.append(random.choice(own, size=len(own)))
        else:
            chosen.append(own + random.normal(0.0, np.sqrt(pooled), size=1))
    return [sizes[place] for place in drawn], chosen
