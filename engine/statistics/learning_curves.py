"""Forms of learning curves: the error as a function of the number of training examples. Plain arrays in and out.

| form | error(n), n in units of the smallest size | parameters | source |
|---|---|---|---|
| power law | s n^-b + f | 3 | Hestness et al. (2017), arxiv.org/abs/1712.00409 |
| broken power law | s n^-b (1 + (n / d)^2)^(-c / 2) | 4 | Caballero et al. (2022), arxiv.org/abs/2210.14891 |
| M4 | (e - f) / (e0 - e)^a = s n^-b, solved for e | 5 | Alabdulmohsin et al. (2022), arxiv.org/abs/2209.06640 |

By their names (`Fit.values`): s scale, b exponent, f floor, d break (in examples), b + c then, e0 start, a power.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EXPONENTS = (0.02, 3.0)
_GRID = np.geomspace(*EXPONENTS, 120)
_MARGIN = 0.8  # of the power law's loss on what was held out: what another form has to be below to replace it


@dataclass(frozen=True)
class Form:
    """
    Attributes:
        parameters: how many are fitted.
        error: (theta, n) -> errors; theta, float64 (parameters,), n in units of the smallest size.
        fit: (n, errors, weights, start) -> (theta, weighted sum of squares); start: a theta near by, or None.
        named: (theta, unit) -> {name: value} of what a reader wants to know.
    """

    name: str
    parameters: int
    error: Callable[[np.ndarray, np.ndarray], np.ndarray]
    fit: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None], tuple[np.ndarray, float]]
    named: Callable[[np.ndarray, float], dict[str, float]]


@dataclass(frozen=True)
class Fit:
    """A form with its parameters; `unit` is the smallest size of the data, `loss` the weighted sum of squares."""

    form: Form
    theta: np.ndarray
    unit: float
    loss: float

    @property
    def values(self) -> dict[str, float]:
        """The parameters by name; sizes among them in examples."""
        return self.form.named(self.theta, self.unit)

    def error(self, size: np.ndarray | float) -> np.ndarray:
        return self.form.error(self.theta, np.asarray(size, dtype=np.float64) / self.unit)


def fit(form: Form, sizes: np.ndarray, errors: np.ndarray, variances: np.ndarray, start: Fit | None = None) -> Fit:
    """The weighted least-squares fit.

    Args:
        sizes, errors, variances: float64, (points,); the variance of each error.
        start: a fit of the form to nearly the same points, from where the search begins.
    """
    unit = float(sizes.min()) if start is None else start.unit
    theta, loss = form.fit(sizes / unit, errors, variances.min() / variances, None if start is None else start.theta)
    return Fit(form, theta, unit, loss)


def choose(sizes: np.ndarray, errors: np.ndarray, variances: np.ndarray) -> tuple[Form, dict[str, float]]:
    """The form that best predicts the larger sizes from the smaller ones, and each form's loss on them.

    Each form is fitted to the smallest k sizes, for every k from its number of parameters plus one, and from half of
    them, and judged by the weighted squared error of the sizes left out. The power law stays unless another form has
    clearly less: of few sizes every choice is noisy.

    Args:
        as `fit`, sizes ascending.
    """
    losses = {}
    for form in FORMS:
        if len(sizes) < form.parameters + 2:
            continue
        found = []
        for known in range(max(form.parameters + 1, len(sizes) // 2), len(sizes)):
            fitted = fit(form, sizes[:known], errors[:known], variances[:known])
            away = (fitted.error(sizes[known:]) - errors[known:]) ** 2 / variances[known:]
            found.append(float(away.mean()))
        losses[form.name] = float(np.mean(found))
    best, least = FORMS[0], losses.get(FORMS[0].name, np.inf) * _MARGIN
    for form in FORMS[1:]:
        if losses.get(form.name, np.inf) < least:
            best, least = form, losses[form.name]
    return best, losses


def _power_law(theta: np.ndarray, n: np.ndarray) -> np.ndarray:
    scale, exponent, floor = theta
    return scale * n**-exponent + floor


def _fit_power_law(
    n: np.ndarray, errors: np.ndarray, weights: np.ndarray, start: np.ndarray | None
) -> tuple[np.ndarray, float]:
    """For a given exponent the curve is linear in scale and floor: a search in one dimension (variable projection,
    Golub & Pereyra 1973)."""
    from scipy import optimize  # half a second, which no message should wait for

    def projected(exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Best (loss, scale, floor) for each exponent, (exponents,) each."""
        return _two_parameters(n ** -exponents[:, None], errors, weights)

    losses, _, _ = projected(_GRID)
    best = int(losses.argmin())
    low, high = _GRID[max(best - 1, 0)], _GRID[min(best + 1, len(_GRID) - 1)]
    found = optimize.minimize_scalar(
        lambda logarithm: projected(np.array([np.exp(logarithm)]))[0][0],
        bounds=(np.log(low), np.log(high)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    exponent = float(np.exp(found.x)) if found.fun < losses[best] else float(_GRID[best])
    loss, scale, floor = (float(value[0]) for value in projected(np.array([exponent])))
    return np.array([scale, exponent, floor]), loss


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


def _broken(theta: np.ndarray, n: np.ndarray) -> np.ndarray:
    log_scale, first, log_place, second = theta
    return np.exp(log_scale - first * np.log(n) - second / 2 * np.log1p((n / np.exp(log_place)) ** 2))


def _fit_broken(
    n: np.ndarray, errors: np.ndarray, weights: np.ndarray, start: np.ndarray | None
) -> tuple[np.ndarray, float]:
    reach = np.log(n.max())
    level = np.log(max(errors[0], 1e-6))
    slope = max(EXPONENTS[0], (level - np.log(max(errors[-1], 1e-6))) / max(reach, 1e-9))
    # the exponents before and after the break are `first` and `first + second`; neither is negative
    starts = (
        [start]
        if start is not None
        else [
            np.array([level, first, share * reach, second])
            for share, first, second in ((0.5, slope, 0.0), (0.5, slope / 3, slope), (0.5, 2 * slope, -slope))
        ]
    )

    def unbound(theta: np.ndarray) -> np.ndarray:
        return np.array([theta[0], theta[1], theta[2], max(theta[3], -theta[1])])

    low = np.array([-20.0, 0.0, 0.0, -EXPONENTS[1]])
    high = np.array([5.0, EXPONENTS[1], max(reach, 1e-6), EXPONENTS[1]])
    theta, loss = _least_squares(lambda theta: _broken(unbound(theta), n), starts, low, high, errors, weights)
    return unbound(theta), loss


def _m4(theta: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Bisection: the left side of the equation rises with e from 0 at f to infinity at e0."""
    floor, width, log_scale, exponent, power = theta
    right = log_scale - exponent * np.log(n)  # logarithms of both sides
    low, high = np.zeros_like(right), np.ones_like(right)
    for _ in range(32):
        middle = (low + high) / 2  # e = f + middle (e0 - f)
        left = np.log(middle * width) - power * np.log((1 - middle) * width)
        low, high = np.where(left < right, middle, low), np.where(left < right, high, middle)
    return floor + (low + high) / 2 * width


def _fit_m4(
    n: np.ndarray, errors: np.ndarray, weights: np.ndarray, start: np.ndarray | None
) -> tuple[np.ndarray, float]:
    starts = (
        [start]
        if start is not None
        else [
            np.array([share * errors.min(), 1 - share * errors.min(), np.log(max(errors[0], 1e-3)), exponent, power])
            for share, exponent, power in ((0.3, 0.3, 0.3), (0.8, 0.6, 1.0))
        ]
    )
    low = np.array([0.0, 1e-3, -20.0, EXPONENTS[0], 0.0])
    high = np.array([1.0, 1.0, 20.0, EXPONENTS[1], 3.0])
    return _least_squares(lambda theta: _m4(theta, n), starts, low, high, errors, weights)


def _least_squares(
    curve: Callable[[np.ndarray], np.ndarray],
    starts: list[np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    errors: np.ndarray,
    weights: np.ndarray,
) -> tuple[np.ndarray, float]:
    """The best end of a bounded search from each start."""
    from scipy import optimize

    root = np.sqrt(weights)
    best, least = starts[0], np.inf
    for start in starts:
        found = optimize.least_squares(
            lambda theta: root * (curve(theta) - errors), np.clip(start, low, high), bounds=(low, high), max_nfev=40
        )
        if 2 * found.cost < least:
            best, least = found.x, float(2 * found.cost)
    return best, least


def _name_power_law(theta: np.ndarray, unit: float) -> dict[str, float]:
    return dict(zip(("scale", "exponent", "floor"), theta.tolist(), strict=True))


def _name_broken(theta: np.ndarray, unit: float) -> dict[str, float]:
    log_scale, first, log_place, second = theta.tolist()
    far = first + second
    return {"scale": float(np.exp(log_scale)), "exponent": first, "break": unit * float(np.exp(log_place)), "then": far}


def _name_m4(theta: np.ndarray, unit: float) -> dict[str, float]:
    floor, width, log_scale, exponent, power = theta.tolist()
    scale = float(np.exp(log_scale))
    return {"scale": scale, "exponent": exponent, "floor": floor, "start": floor + width, "power": power}


POWER_LAW = Form("power law", 3, _power_law, _fit_power_law, _name_power_law)
FORMS = (
    POWER_LAW,
    Form("broken power law", 4, _broken, _fit_broken, _name_broken),
    Form("M4", 5, _m4, _fit_m4, _name_m4),
)
# the names of all parameters, in the order of tables; no form has all of them
PARAMETERS = ("scale", "exponent", "floor", "break", "then", "start", "power")
