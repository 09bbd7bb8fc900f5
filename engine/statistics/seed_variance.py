"""The variance over seeds, which three seeds tell little of: each place's own is drawn towards what all places say.

Smyth's moderated variances (2004, doi.org/10.2202/1544-6115.1027) with a trend in the size, as in R's limma: true
variances are taken to scatter around the trend like a scaled inverse chi-square; how much they do is estimated from
the sample variances themselves. Where they scatter no more than chance makes them, all are pooled; where they scatter
widely, each stays its own.
"""

from collections.abc import Callable

import numpy as np

_LEAST = 2.0  # degrees of freedom: two seeds at one place say nothing of another


def moderate(variances: np.ndarray, freedoms: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Args:
        variances: float64, (places,), sample variances over seeds.
        freedoms: (places,), their degrees of freedom, at least 1.
        sizes: (places,), training examples.
    Returns:
        the moderated variances and their degrees of freedom, float64, (places,) each.
    """
    variances, freedoms = np.asarray(variances, np.float64), np.asarray(freedoms, np.float64)
    expected, prior = _together(variances, freedoms, sizes)
    if not prior:
        return variances, freedoms
    return (freedoms * variances + prior * expected(sizes)) / (freedoms + prior), freedoms + prior


def lend(
    variances: np.ndarray, freedoms: np.ndarray, sizes: np.ndarray, alike: np.ndarray, size: float
) -> tuple[float, float] | None:
    """The variance over seeds at a place that has one seed, and its degrees of freedom: what places like it have, by
    the trend, counts as its own would and is moderated. Beyond the sizes of the others no trend is followed.

    Args:
        variances, freedoms, sizes: of the places that have several, as in `moderate`.
        alike: bool, (places,): those that are expected to vary as this one, as of the same family.
        size: of the place.
    Returns:
        None where the others say too little.
    """
    variances, freedoms = np.asarray(variances, np.float64), np.asarray(freedoms, np.float64)
    expected, prior = _together(variances, freedoms, sizes)
    if not prior:
        known = alike if freedoms[alike].sum() >= _LEAST else np.ones_like(alike)
        freedom = float(freedoms[known].sum())
        return (float((freedoms * variances)[known].sum() / freedom), freedom) if freedom >= _LEAST else None
    ratios = (freedoms * variances / expected(sizes))[alike]
    freedom = float(freedoms[alike].sum()) + prior
    here = float(expected(np.clip([size], min(sizes), max(sizes)))[0])
    return here * (float(ratios.sum()) + prior) / freedom, max(freedom, _LEAST)


def _together(
    variances: np.ndarray, freedoms: np.ndarray, sizes: np.ndarray
) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """What all places say of the variance at a size, and the degrees of freedom that this counts for; 0 where they are
    too few to say anything together."""
    if len(variances) < 3 or not (variances > 0).any():
        return np.zeros_like, 0.0
    from scipy.special import polygamma, psi

    # a sample variance of zero, as of two seeds that agree by chance, has no logarithm
    logs = np.log(np.maximum(variances, 1e-4 * np.median(variances[variances > 0])))
    unbiased = logs - psi(freedoms / 2) + np.log(freedoms / 2)
    slope, level = _trend(unbiased, np.log(np.asarray(sizes, np.float64)), 1 / polygamma(1, freedoms / 2))
    away = unbiased - level - slope * np.log(sizes)
    parameters = 2 if len(set(sizes)) > 2 else 1
    scatter = (away**2).sum() / max(len(variances) - parameters, 1) - polygamma(1, freedoms / 2).mean()
    prior = 2 * _inverse_trigamma(scatter) if scatter > 0 else np.inf
    level += 0.0 if np.isinf(prior) else psi(prior / 2) - np.log(prior / 2)
    # what the places say together is an estimate too, and places that share a reference say less than they seem to
    return lambda sizes: np.exp(level + slope * np.log(sizes)), float(min(prior, freedoms.sum() / 3))


def _trend(values: np.ndarray, log_sizes: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Slope and level."""
    if len(set(log_sizes)) <= 2:
        return 0.0, float(np.average(values, weights=weights))
    slope, level = np.polyfit(log_sizes, values, 1, w=np.sqrt(weights))
    return float(slope), float(level)


def _inverse_trigamma(value: float) -> float:
    from scipy.optimize import brentq
    from scipy.special import polygamma

    if value < 1e-5:  # trigamma(x) ~ 1 / x
        return np.inf
    return float(np.exp(brentq(lambda logarithm: polygamma(1, np.exp(logarithm)) - value, -10, 12)))
