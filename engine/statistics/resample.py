"""Means over seeds and test rows, with intervals: a two-way bootstrap whose variances are right for few seeds.

A score of seed s on row i is taken as mean + a_s + b_i + e_si. Rows (or clusters of rows) are drawn with replacement,
the same ones for every series, so that whatever is compared is paired. Seeds are few: drawing three of three again
would give two thirds of their variance and no tails. In its place each series has a Student's t of its own variance
over seeds. Those of two series are independent: how alike seeds are across series cannot be told from two or three of
them (combining the seeds' deviations with common normal weights makes a correlation of 1 or -1 of two seeds, and
intervals of what follows from several series that hold the truth in 85% of studies); what is compared seed by seed is a
series of its own. Both parts contain the interaction e; it is counted once (as Hillis 2007, doi.org/10.1002/sim.2532,
for readers and cases).
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from penstock.engine.statistics.clusters import Clusters
from penstock.engine.statistics.seed_variance import moderate

LEVEL = 0.95
DRAWS = 4000
Key = TypeVar("Key")
Scale = Literal["share", "difference"]  # within [0, 1], within [-1, 1]


@dataclass(frozen=True)
class Series:
    """One quantity: a mean over seeds and test rows.

    Attributes:
        scores: float64, (seeds, rows): right or wrong (0 or 1), or a difference of two such.
        size: training examples.
        fixed: nothing about it depends on the seed, as of the most frequent class: it says nothing of how others do.
    """

    scores: np.ndarray
    size: int
    fixed: bool = False

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.scores)


@dataclass(frozen=True)
class Drawn:
    """A quantity's value and draws of it.

    Attributes:
        mean: over seeds and rows.
        draws: float64, (DRAWS,).
        seeds: how many; with one, the draws know nothing of how seeds differ.
        rows, clusters: test rows and the groups that they were drawn in.
        unrejected: a value that an exact test does not reject, which the interval therefore holds: four resampled rows
            that speak for one side leave no other in 98% of the draws. None for none.
    """

    mean: float
    draws: np.ndarray
    seeds: int
    rows: int
    clusters: int
    unrejected: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        held = [self.mean] if self.unrejected is None else [self.mean, self.unrejected]
        ends = np.quantile(self.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        return min(*ends, *held), max(*ends, *held)

    def p_value(self, threshold: float = 0.0) -> float:
        """Two-sided, of the quantity being the threshold; at least 2 / (DRAWS + 1)."""
        tail = min((self.draws <= threshold).sum(), (self.draws >= threshold).sum())
        return float(min(1.0, 2 * (tail + 1) / (len(self.draws) + 1)))


def draw(
    series: Mapping[Key, Series], clusters: Clusters, scale: Scale, *, seed: int = 0, draws: int = DRAWS
) -> dict[Key, Drawn]:
    """Draws of several quantities over the same rows, paired: what a row does to one it does to the others.

    Raises:
        ValueError: a series has no seed, or other rows than the clusters.
    """
    return draw_groups([(series, scale)], clusters, seed=seed, draws=draws)[0]


def draw_groups(
    groups: Sequence[tuple[Mapping[Key, Series], Scale]], clusters: Clusters, *, seed: int = 0, draws: int = DRAWS
) -> list[dict[Key, Drawn]]:
    """`draw` of several groups, paired too, for little more than the time of one: the rows are resampled once. The
    seeds' variances, which are moderated within a group, are of quantities of one kind.

    Raises:
        ValueError: as `draw`.
    """
    for series, _ in groups:
        _check(series, clusters)
    over_seeds = [own.scores.mean(0) for series, _ in groups for own in series.values()]
    if not over_seeds:
        return [{} for _ in groups]
    stacked = np.stack(over_seeds)
    of_rows = clusters.resampled_means(stacked, draws, np.random.default_rng(seed)) - stacked.mean(-1)
    found, begin = [], 0
    for series, scale in groups:
        end = begin + len(series)
        # each series has its own chances, the same whatever is drawn beside it
        randoms = [np.random.default_rng([seed, zlib.crc32(repr((scale, key)).encode())]) for key in series]
        found.append(_draw(series, clusters, scale, of_rows[:, begin:end], stacked[begin:end].mean(-1), randoms))
        begin = end
    return found


def _check(series: Mapping[Key, Series], clusters: Clusters) -> None:
    for key, own in series.items():
        if own.scores.ndim != 2 or not own.seeds:
            raise ValueError(f"{key}: scores must be (seeds, rows), got {own.scores.shape}")
        if own.scores.shape[1] != clusters.rows:
            raise ValueError(f"{key}: scores are of {own.scores.shape[1]} rows, the clusters of {clusters.rows}")


def _draw(
    series: Mapping[Key, Series],
    clusters: Clusters,
    scale: Scale,
    of_rows: np.ndarray,
    means: np.ndarray,
    randoms: Sequence[np.random.Generator],
) -> dict[Key, Drawn]:
    """of_rows: float64, (draws, series), the rows' part of each draw; means: (series,)."""
    draws, found = len(of_rows), {}
    of_seeds = _of_seeds(list(series.values()), draws, randoms)
    for place, (key, own) in enumerate(series.items()):
        rows = of_rows[:, place] * _rows_alone(own.scores, clusters)
        if not of_rows[:, place].any():  # the same in every resample
            rows = _of_unseen_rows(means[place], scale, clusters.count, draws, randoms[place]) - means[place]
        drawn = _on_scale(means[place], rows, of_seeds[place], scale, clusters.count)
        found[key] = Drawn(float(means[place]), drawn, own.seeds, clusters.rows, clusters.count)
    return found


def _of_unseen_rows(mean: float, scale: Scale, clusters: int, draws: int, random: np.random.Generator) -> np.ndarray:
    """Draws of the mean where every row has the same score: Jeffreys' prior, with that many rows seen."""
    if scale == "share":
        return random.beta(mean * clusters + 0.5, (1 - mean) * clusters + 0.5, draws)
    seen = np.array([max(mean, 0.0), max(-mean, 0.0), 1 - abs(mean)]) * clusters
    better, worse, _ = random.dirichlet(seen + 0.5, draws).T
    return better - worse


def _rows_alone(scores: np.ndarray, clusters: Clusters) -> float:
    """By how much the rows' part is scaled down: the interaction with the seeds is in the seeds' part already."""
    seeds = len(scores)
    if seeds == 1:
        return 1.0
    of_rows = float(clusters.variance_of_mean(scores.mean(0)))
    interaction = float(clusters.variance_of_mean(scores - scores.mean(0)).sum() / (seeds - 1))
    return float(np.sqrt(max(of_rows - interaction / seeds, 0.0) / of_rows)) if of_rows > 0 else 1.0


def _of_seeds(series: Sequence[Series], draws: int, randoms: Sequence[np.random.Generator]) -> list[np.ndarray]:
    """The seeds' part of each series, (draws,) each; zero for a lone seed, and for what is fixed."""
    several = [place for place, own in enumerate(series) if own.seeds > 1 and not own.fixed]
    counts = np.array([series[place].seeds for place in several])
    variances, freedoms = moderate(
        np.array([series[place].scores.mean(1).var(ddof=1) for place in several]),
        counts - 1,
        np.array([series[place].size for place in several]),
    )
    found = [np.zeros(draws) for _ in series]
    for place, count, variance, freedom in zip(several, counts, variances, freedoms, strict=True):
        found[place] = randoms[place].standard_t(freedom, draws) * np.sqrt(variance / count)
    return found


def _on_scale(mean: float, rows: np.ndarray, seeds: np.ndarray, scale: Scale, clusters: int) -> np.ndarray:
    """mean + rows + seeds, the sum taken on the log-odds of the range, which no draw leaves."""
    from scipy import special

    low = 0.0 if scale == "share" else -1.0
    width = 1.0 - low
    edge = 0.5 / (clusters + 1)
    share = np.clip((mean - low) / width, edge, 1 - edge)
    drawn = np.clip(share + rows / width, edge / 2, 1 - edge / 2)
    logits = np.log(drawn / (1 - drawn)) + seeds / width / (share * (1 - share))
    return low + width * special.expit(logits)
