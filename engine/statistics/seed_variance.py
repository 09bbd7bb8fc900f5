"""The variance over seeds, which three seeds tell little of: each place's own is drawn towards what all places say.

Smyth's moderated variances (2004, doi.org/10.2202/1544-6115.1027) with a trend in the size, as in R's limma: true
variances are taken to scatter around the trend like a scaled inverse chi-square; how much they do is estimated from
the sample variances themselves. Where they scatter no more than chance makes them, all are pooled; where they scatter
widely, each stays its own.
"""

import numpy as np


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
    if len(variances) < 3 or not (variances > 0).any():
        return variances, freedoms
    from scipy.special import polygamma, psi

    # a sample variance of zero, as of two seeds that agree by chance, has no logarithm
    logs = np.log(np.maximum(variances, 1e-4 * np.median(variances[variances > 0])))
    unbiased = logs - psi(freedoms / 2) + np.log(freedoms / 2)
    trend = _trend(unbiased, np.log(np.asarray(sizes, np.float64)), 1 / polygamma(1, freedoms / 2))
    parameters = 2 if len(set(sizes)) > 2 else 1
    scatter = ((unbiased - trend) ** 2).sum() / max(len(variances) - parameters, 1) - polygamma(1, freedoms / 2).mean()
    prior = 2 * _inverse_trigamma(scatter) if scatter > 0 else np.inf
    expected = np.exp(trend if np.isinf(prior) else trend + psi(prior / 2) - np.log(prior / 2))
    # what the places say together is an estimate too, and places that share a reference say less than they seem to
    prior = min(prior, freedoms.sum() / 3)
    return (freedoms * variances + prior * expected) / (freedoms + prior), freedoms + prior


def _trend(values: np.ndarray, log_sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if len(set(log_sizes)) <= 2:
        return np.full(len(values), np.average(values, weights=weights))
    slope, level = np.polyfit(log_sizes, values, 1, w=np.sqrt(weights))
    return level + slope * log_sizes


def _inverse_trigamma(value: float) -> float:
    from scipy.optimize import brentq
    from scipy.special import polygamma

    if value < 1e-5:  # trigamma(x) ~ 1 / x
        return np.inf
    return float(np.exp(brentq(lambda logarithm: polygamma(1, np.exp(logarithm)) - value, -10, 12)))
