"""McNemar's exact test, and Holm's correction for several tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Discordant:
    """Rows (times seeds) that one model has right and the other wrong.

    Attributes:
        first, second: how many only the first, only the second has right.
        pairs: all that were compared.
        p_value: two-sided and exact: a fair coin for each discordant pair. It is about these trained models, not about
            what others of their family, trained with other seeds, would do.
    """

    first: int
    second: int
    pairs: int
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> Discordant:
    """
    Args:
        first, second: bool, of the same shape: which pairs each model has right.
    Raises:
        ValueError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} rows cannot be paired")
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    count = only_first + only_second
    p_value = float(binomtest(only_first, count, 0.5).pvalue) if count else 1.0
    return Discordant(only_first, only_second, first.size, p_value)


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
