"""Means over seeds and test rows, with intervals: a two-way bootstrap whose variances are right for few seeds.

A score of seed s on row i is taken as mean + a_s + b_i + e_si. Rows (or clusters of rows) are drawn with replacement,
the same ones for every series, so that whatever is compared is paired. Seeds are few: drawing three of three again
would give two thirds of their variance and no tails. In its place each series has a Student's t of its own variance
over seeds. Those of two series are independent: how alike seeds are across series cannot be told from two or three of
them (combining the seeds' deviations with common normal weights makes a correlation of 1 or -1 of two seeds, and
intervals of what follows from several series that hold the truth in 85% of studies); what is compared seed by seed is a
series of its own. Both parts contain the interaction e; it is counted once (as Hillis 2007, doi.org/10.1002/sim.2532,
for readers and cases).

A lone seed tells nothing of how others would do. Its series has the variance over seeds of those that have several, of
its family and of all (`seed_variance.lend`); where no series has, its draws are over rows alone, and say so.

Rows on which two classifiers differ may be few, and resamples of few have too little spread towards the side that none
speaks for: a difference of one seed on independent rows has Tango's score interval, any other one too while few rows or
groups differ.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from penstock.engine.statistics.clusters import Clusters
from penstock.engine.statistics.seed_variance import lend, moderate
from penstock.engine.statistics.tango import differences

LEVEL = 0.95
DRAWS = 4000
LEAST_P = 2 / (DRAWS + 1)  # that draws can tell: it stands for itself and for everything below
_FEW = 15  # rows or groups that differ: fewer say little of how they would differ in other samples
Key = TypeVar("Key")
Scale = Literal["share", "difference"]  # within [0, 1], within [-1, 1]


@dataclass(frozen=True)
class Series:
    """One quantity: a mean over seeds and test rows.

    Attributes:
        scores: float64, (seeds, rows): right or wrong (0 or 1), or a difference of two such.
        size: training examples.
        fixed: nothing about it depends on the seed, as of the most frequent class: it says nothing of how others do.
        family: whose seeds differ alike.
    """

    scores: np.ndarray
    size: int
    fixed: bool = False
    family: str = ""

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
        seeds: how many.
        rows, clusters: test rows and the groups that they were drawn in.
        exact: the p-value of an exact test that it is 0, which the interval holds where that does not reject it: four
            resampled rows that speak for one side leave no other in 98% of the draws. None for no test.
        borrowed: there is one seed, and how seeds differ is known from other series.
    """

    mean: float
    draws: np.ndarray
    seeds: int
    rows: int
    clusters: int
    exact: float | None = None
    borrowed: bool = False

    @property
    def over_seeds(self) -> bool:
        """Whether the draws know how seeds differ."""
        return self.seeds > 1 or self.borrowed

    @property
    def may_be_nothing(self) -> bool:
        """Whether the exact test does not reject that it is 0."""
        return self.exact is not None and self.exact >= 1 - LEVEL

    @property
    def interval(self) -> tuple[float, float]:
        held = [self.mean, 0.0] if self.may_be_nothing else [self.mean]
        ends = np.quantile(self.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        return min(*ends, *held), max(*ends, *held)

    def p_value(self) -> float:
        """Two-sided, of the quantity being 0; at least `LEAST_P`, and what the exact test says if that does not reject
        it."""
        tail = min((self.draws <= 0).sum(), (self.draws >= 0).sum())
        p_value = float(min(1.0, 2 * (tail + 1) / (len(self.draws) + 1)))
        return max(p_value, self.exact) if self.exact is not None and self.may_be_nothing else p_value


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
    spreads = _spreads(list(series.values()))
    interactions = {key: _interaction(own.scores, clusters) for key, own in series.items() if own.seeds > 1}
    for place, (key, own) in enumerate(series.items()):
        rows, random, spread = of_rows[:, place], randoms[place], spreads[place]
        of_seeds = np.zeros(draws)
        if spread is not None:
            variance, freedom = spread
            of_seeds = random.standard_t(freedom, draws) * np.sqrt(variance / own.seeds)
        if scale == "difference":
            rows = _by_score(own.scores, clusters, rows, random)
        elif not rows.any():  # the same in every resample: Jeffreys' prior, with that many rows seen
            seen = means[place] * clusters.count
            rows = random.beta(seen + 0.5, clusters.count - seen + 0.5, draws) - means[place]
        if spread is not None:  # the interaction of rows and seeds is in the seeds' part already
            alike = [share for other, share in interactions.items() if series[other].family == own.family]
            share = interactions[key] if own.seeds > 1 else np.mean(alike or list(interactions.values()))
            rows = rows * np.sqrt((1 - share) / (1 - share + share / own.seeds))
        drawn = _on_scale(means[place], rows, of_seeds, scale, clusters.count)
        found[key] = Drawn(
            float(means[place]),
            drawn,
            own.seeds,
            clusters.rows,
            clusters.count,
            borrowed=own.seeds == 1 and spread is not None,
        )
    return found


def _by_score(scores: np.ndarray, clusters: Clusters, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The rows' part of a difference, by Tango's score: the same draws in the same order, so what is paired stays so.

    Seeds that agree in part, and groups, are counted as that many rows of which each tells as much (their effective
    number, as Rao & Scott 1992, doi.org/10.2307/2532311). Few do not tell how alike the rows of a group are, so what
    lies on the same side of nothing anyway is as far from it as if one group more differed as a whole. Where many
    differ the resampled draws are as good, and stay.

    Args:
        scores: (seeds, rows). rows: (draws,), resampled.
    """
    leads = clusters.sums(scores.mean(0))
    independent = len(scores) == 1 and clusters.count == clusters.rows
    if not independent and np.count_nonzero(leads) >= min(_FEW, clusters.count / 10) and rows.any():
        return rows
    from scipy.special import ndtri

    ranks = np.argsort(np.lexsort((random.random(len(rows)), rows)))  # ties fall as chance has it
    deviates = ndtri((ranks + 0.5) / len(rows))
    counts = np.array([leads[leads > 0].sum(), -leads[leads < 0].sum(), clusters.rows])
    size, squares, total = clusters.rows / clusters.count, (leads**2).sum(), counts[:2].sum()
    each = squares / total if total else size  # how many rows count as one
    found = differences(deviates, *counts / each)
    if not independent:
        wider = differences(deviates, *counts / max(each, (squares + size**2) / (total + size)))
        found = np.where(np.sign(wider) == np.sign(found), wider, found)
    return found - scores.mean()


def _interaction(scores: np.ndarray, clusters: Clusters) -> float:
    """The share of one seed's variance over rows that is the rows' interaction with the seeds."""
    seeds = len(scores)
    interaction = float(clusters.variance_of_mean(scores - scores.mean(0)).sum() / (seeds - 1))
    of_rows = max(float(clusters.variance_of_mean(scores.mean(0))) - interaction / seeds, 0.0)
    return interaction / (of_rows + interaction) if interaction > 0 else 0.0


def _spreads(series: Sequence[Series]) -> list[tuple[float, float] | None]:
    """For each series the variance over its seeds, of one of them, with its degrees of freedom; None for what is fixed,
    and for a lone seed where no other series tells."""
    several = [place for place, own in enumerate(series) if own.seeds > 1 and not own.fixed]
    raw = np.array([series[place].scores.mean(1).var(ddof=1) for place in several])
    freedoms = np.array([series[place].seeds - 1 for place in several])
    sizes = np.array([series[place].size for place in several])
    found: list[tuple[float, float] | None] = [None] * len(series)
    for place, *spread in zip(several, *moderate(raw, freedoms, sizes), strict=True):
        found[place] = spread[0], spread[1]
    for place, own in enumerate(series):
        if own.seeds == 1 and not own.fixed:
            alike = np.array([series[other].family == own.family for other in several], bool)
            found[place] = lend(raw, freedoms, sizes, alike, own.size)
    return found


def _on_scale(mean: float, rows: np.ndarray, seeds: np.ndarray, scale: Scale, clusters: int) -> np.ndarray:
    """mean + rows + seeds, the sum taken on the log-odds of the range, which no draw leaves."""
    from scipy import special

    low = 0.0 if scale == "share" else -1.0
    width = 1.0 - low
    edge = 0.5 / (clusters + 1)
    share = np.clip((mean - low) / width, edge, 1 - edge)
    drawn = np.clip((mean - low + rows) / width, edge / 2, 1 - edge / 2)
    logits = np.log(drawn / (1 - drawn)) + seeds / width / (share * (1 - share))
    return low + width * special.expit(logits)
