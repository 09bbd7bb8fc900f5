"""Tango's score interval of a difference between two shares of the same rows: right for few rows that differ too."""

import numpy as np

_KNOTS = np.linspace(-5, 5, 401)  # normal deviates, between which is interpolated: 4,000 draws reach 3.8


def score(difference: np.ndarray, first: float, second: float, rows: float) -> np.ndarray:
    """How many standard errors what was seen lies above `difference`, which is taken for the truth.

    Tango (1998, Statistics in Medicine 17, 891-908): the standard error is that under the difference, with the most
    likely share of rows that only the second has right.

    Args:
        difference: float64, within (-1, 1), of the share that the first has right minus the second's.
        first, second: rows that only the first, only the second has right, of `rows`.
    """
    a = 2 * rows
    b = -first - second + (2 * rows - first + second) * difference
    c = -second * difference * (1 - difference)
    share = (np.sqrt(np.maximum(b**2 - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = rows * (2 * share + difference * (1 - difference))
    return (first - second - rows * difference) / np.sqrt(np.maximum(variance, 1e-300))


def differences(deviates: np.ndarray, first: float, second: float, rows: float) -> np.ndarray:
    """The difference whose score is -z, for each z of `deviates`: of z = -1.96 and 1.96 the 95% interval, of normal
    deviates draws whose quantiles are the ends of all intervals."""
    low, high = np.full(len(_KNOTS), -1.0), np.full(len(_KNOTS), 1.0)
    for _ in range(50):  # the score falls as the difference rises
        middle = (low + high) / 2
        above = score(middle, first, second, rows) > -_KNOTS
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.interp(deviates, _KNOTS, (low + high) / 2)
