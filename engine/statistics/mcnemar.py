"""McNemar's exact test, also of rows that several seeds or a group have in common, and Holm's correction for several
tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.engine.statistics.clusters import Clusters


@dataclass(frozen=True)
class Discordant:
    """Rows (times seeds) that one model has right and the other wrong.

    Attributes:
        first, second: how many only the first, only the second has right.
        pairs: all that were compared.
        p_value: two-sided and exact: a fair coin for each discordant row, whatever the number of seeds, or for each
            group of rows. It is about these trained models, not about what others of their family, trained with other
            seeds, would do.
    """

    first: int
    second: int
    pairs: int
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray, clusters: Clusters | None = None) -> Discordant:
    """
    Args:
        first, second: bool, (..., rows), of the same shape: which rows each model has right, for each seed.
        clusters: rows that belong together; None for independent ones.
    Raises:
        ValueError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} rows cannot be paired")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    leads = (first.astype(np.float64) - second).reshape(-1, first.shape[-1]).sum(0)
    p_value = sign_flips(leads if clusters is None else clusters.sums(leads))
    return Discordant(only_first, only_second, first.size, p_value)


def sign_flips(leads: np.ndarray) -> float:
    """The share of all ways to choose the signs of `leads`, whole numbers, whose sum is as far from 0 as theirs: of
    leads of 1 and -1 that is McNemar's exact test, or the sign test."""
    sizes, counts = np.unique(np.abs(leads[leads != 0]).astype(np.int64), return_counts=True)
    if not len(sizes):
        return 1.0
    if len(sizes) == 1:
        from scipy.stats import binomtest

        return float(binomtest(int((leads > 0).sum()), int(counts[0]), 0.5).pvalue)
    # each lead of size m counts m or nothing; how likely is a sum of `far` or more?
    total = int(sizes @ counts)
    far = (total + abs(int(leads.sum()))) // 2
    least = 2.0 ** (1 - min(counts.sum(), 1000))
    if 2 * far == total or far == total:
        return 1.0 if 2 * far == total else least
    from scipy.optimize import brentq
    from scipy.special import expit, log_expit

    # by its characteristic function, of leads that count so often that `far` is what is expected: a chance of 1e-300
    # comes out to as many digits as one of a half (Esscher 1932; Butler 2007, doi.org/10.1017/CBO9780511619083)
    tilt = brentq(lambda tilt: (sizes * counts) @ expit(tilt * sizes) - far, 0.0, 100.0)
    angles = -2j * np.pi * np.arange((total + 1) // 2 + 1) / (total + 1)
    logs = sum(
        count * np.log(expit(-tilt * size) + expit(tilt * size) * np.exp(angles * size) + 1e-300)
        for size, count in zip(sizes, counts, strict=True)
    )
    chances = np.fft.irfft(np.exp(logs), total + 1)[far:]
    sums = np.arange(far, total + 1)
    untilted = -tilt * sums - counts @ (log_expit(-tilt * sizes) + np.log(2.0))
    return float(np.clip(2 * (chances * np.exp(untilted)).sum(), least, 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: below 0.05 exactly for what Holm's step-down procedure rejects at that level in the family."""
    order = np.argsort(p_values)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def resolvable(discordant: float, rows: int, power: float = 0.8, level: float = 0.05) -> float:
    """The difference in accuracy that this number of independent test rows settles with this power, two-sided.

    Args:
        discordant: the share of rows that exactly one of the models has right.
    Returns:
        a share; formula of Connor (1987, doi.org/10.2307/2531961), solved for the difference.
    """
    from scipy.stats import norm

    z_level, z_power = norm.ppf(1 - level / 2), norm.ppf(power)
    # rows = (z_level sqrt(d) + z_power sqrt(d - x^2))^2 / x^2, which falls with x in (0, d]
    difference = discordant
    low, high = 0.0, discordant
    for _ in range(60):
        difference = (low + high) / 2
        needed = (z_level * discordant**0.5 + z_power * (discordant - difference**2) ** 0.5) ** 2
        low, high = (difference, high) if needed > rows * difference**2 else (low, difference)
    return float(difference)


def rows_needed(discordant: float, difference: float, power: float = 0.8, level: float = 0.05) -> int:
    """The independent test rows that settle such a difference in accuracy; see `resolvable`."""
    from scipy.stats import norm

    root = norm.ppf(1 - level / 2) * discordant**0.5 + norm.ppf(power) * (discordant - difference**2) ** 0.5
    return int(np.ceil((root / difference) ** 2))
