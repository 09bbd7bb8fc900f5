"""Learning curves: error(n) = scale * n^-exponent + floor, fitted to the measured points, with honest intervals.

For a given exponent the curve is linear in scale and floor, so the fit is a search in one dimension
(variable projection, Golub & Pereyra 1973). The form is that of Hestness et al. (2017).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from penstock.engine.study.intervals import percentile_interval

MIN_SIZES = 5  # three parameters, and something left to judge them by
EXPONENTS = (0.02, 3.0)
RESAMPLES = 400
_GRID = np.geomspace(*EXPONENTS, 120)


@dataclass(frozen=True)
class Fit:
    """error(n) = scale * (n / unit)^-exponent + floor, with scale and floor at least 0; errors as shares.

    `unit` is the smallest size of the data.
    """

    scale: float
    exponent: float
    floor: float
    unit: float
    loss: float  # weighted sum of squares

    def error(self, size: np.ndarray | float) -> np.ndarray:
        return self.scale * (np.asarray(size, dtype=np.float64) / self.unit) ** -self.exponent + self.floor


@dataclass(frozen=True)
class Curve:
    """A fit with what a bootstrap over seeds and sizes says of it.

    Attributes:
        resamples: the fits of the resampled data.
        exponent_interval, floor_interval: 95% intervals.
        held_out: (size, predicted error, measured error) of the largest size, predicted from the others, where enough
            remain.
        identified: whether the data pin the curve down, so that it may be extrapolated; if not, `reason` says why.
    """

    fit: Fit
    resamples: list[Fit]
    exponent_interval: tuple[float, float]
    floor_interval: tuple[float, float]
    held_out: tuple[int, float, float] | None
    reason: str

    @property
    def identified(self) -> bool:
        return not self.reason

    def error_interval(self, size: float) -> tuple[float, float]:
        return percentile_interval(np.array([float(fit.error(size)) for fit in self.resamples]))


def fit_power_law(sizes: np.ndarray, errors: np.ndarray, variances: np.ndarray) -> Fit:
    """The weighted least-squares fit.

    Args:
        sizes, errors, variances: float64, (points,); the variance of each error.
    """
    unit = float(sizes.min())
    weights = variances.min() / variances
    relative = sizes / unit

    def projected(exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Best (loss, scale, floor) for each exponent, (exponents,) each."""
        basis = relative ** -exponents[:, None]
        return _two_parameters(basis, errors, weights)

    losses, _, _ = projected(_GRID)
    best = int(losses.argmin())
    low, high = _GRID[max(best - 1, 0)], _GRID[min(best + 1, len(_GRID) - 1)]
    from scipy import optimize  # half a second, which no message should wait for

    found = optimize.minimize_scalar(
        lambda logarithm: projected(np.array([np.exp(logarithm)]))[0][0],
        bounds=(np.log(low), np.log(high)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    exponent = float(np.exp(found.x)) if found.fun < losses[best] else float(_GRID[best])
    loss, scale, floor = (float(value[0]) for value in projected(np.array([exponent])))
    return Fit(scale, exponent, floor, unit, loss)


def _two_parameters(
    basis: np.ndarray, errors: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted least squares of errors ~ scale * basis + floor under scale, floor >= 0, for each row of the basis."""
    total = weights.sum()
    basis_mean = basis @ weights / total
    error_mean = errors @ weights / total
    centred = basis - basis_mean[:, None]
    spread = np.maximum((centred**2) @ weights, 1e-300)
    free = np.maximum((centred * (errors - error_mean)) @ weights / spread, 0.0)
    floor = error_mean - free * basis_mean
    through_origin = np.maximum((basis * errors) @ weights / np.maximum(basis**2 @ weights, 1e-300), 0.0)
    scale = np.where(floor < 0, through_origin, free)
    floor = np.maximum(floor, 0.0)
    loss = (scale[:, None] * basis + floor[:, None] - errors) ** 2 @ weights
    return loss, scale, floor


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
    fit = _fit(sizes, values, pooled)
    random = np.random.default_rng(seed)
    resamples = [_fit(*_resample(random, sizes, values, pooled), pooled) for _ in range(RESAMPLES)]
    exponents = np.array([resample.exponent for resample in resamples])
    floors = np.array([resample.floor for resample in resamples])
    held_out = None
    if len(sizes) > MIN_SIZES:
        predicted = _fit(sizes[:-1], values[:-1], pooled).error(sizes[-1])
        held_out = (sizes[-1], float(predicted), float(values[-1].mean()))
    curve = Curve(fit, resamples, percentile_interval(exponents), percentile_interval(floors), held_out, "")
    reason = _why_unidentified(curve, values[0].mean() - values[-1].mean())
    return Curve(fit, resamples, curve.exponent_interval, curve.floor_interval, held_out, reason)


def _why_unidentified(curve: Curve, fall: float) -> str:
    low, high = curve.exponent_interval
    if low < EXPONENTS[0] * 1.05 or high > EXPONENTS[1] * 0.95:
        return f"the exponent is not pinned down (95% interval {low:.2f} to {high:.2f})"
    floor_low, floor_high = curve.floor_interval
    if floor_high - floor_low > max(fall, 0.0):
        return f"the floor is not pinned down (95% interval {floor_low:.1%} to {floor_high:.1%} error)"
    return ""


def _pooled_variance(values: list[np.ndarray]) -> float | None:
    """The variance of one run's error over seeds, pooled over the sizes that have several."""
    freedom = sum(len(own) - 1 for own in values)
    if freedom == 0:
        return None
    # a variance of exactly zero would turn the weights infinite
    return max(sum(float(((own - own.mean()) ** 2).sum()) for own in values) / freedom, 1e-8)


def _fit(sizes: list[int], values: list[np.ndarray], pooled: float) -> Fit:
    counts = np.array([len(own) for own in values])
    means = np.array([own.mean() for own in values])
    # one size's own variance over three seeds is itself mostly noise: it is mixed half and half with the pooled one
    own = np.array([own.var(ddof=1) if len(own) > 1 else pooled for own in values])
    return fit_power_law(np.array(sizes, dtype=np.float64), means, (0.5 * own + 0.5 * pooled) / counts)


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
