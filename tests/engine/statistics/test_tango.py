"""Tango's score interval: by its definition, and how often what it says is false."""

import numpy as np
import pytest
from scipy import stats
from subtested import as_subtests

from penstock.engine.statistics.clusters import Clusters
from penstock.engine.statistics.resample import Series, draw
from penstock.engine.statistics.tango import differences, score

ENDS = stats.norm.ppf([0.025, 0.975])


def scores(first: int, second: int, rows: int) -> np.ndarray:
    return np.repeat([1.0, -1.0, 0.0], [first, second, rows - first - second])[None]


def interval(scores: np.ndarray, clusters: Clusters | None = None, draws: int = 4000) -> tuple[float, float]:
    clusters = clusters or Clusters.single(scores.shape[1])
    return draw({"x": Series(scores, 1)}, clusters, "difference", draws=draws)["x"].interval


@as_subtests("first, second, rows", [(9, 3, 44), (0, 0, 100), (0, 5, 300), (40, 12, 200), (1, 1, 50)])
def test_the_standard_error_is_of_the_likeliest_shares(first, second, rows):
    """Under the difference, found by looking at all of them."""
    for difference in (-0.2, -0.01, 0.03, 0.3):
        shares = np.linspace(max(0.0, -difference), (1 - difference) / 2, 200_001)[1:-1]  # of the second alone
        likelihoods = second * np.log(shares) + first * np.log(shares + difference)
        likelihoods += (rows - first - second) * np.log(np.maximum(1 - 2 * shares - difference, 1e-300))
        likeliest = shares[likelihoods.argmax()]
        error = np.sqrt(rows * (2 * likeliest + difference - difference**2))
        expected = (first - second - rows * difference) / error
        assert float(score(np.array(difference), first, second, rows)) == pytest.approx(expected, abs=2e-3)


@as_subtests("first, second, rows", [(9, 3, 44), (0, 0, 100), (0, 5, 300), (400, 300, 5000), (50, 0, 50)])
def test_draws_of_one_seed_have_its_interval(first, second, rows):
    expected = differences(ENDS, first, second, rows)
    assert score(expected[:1], first, second, rows) == pytest.approx(1.96, abs=1e-3)
    assert interval(scores(first, second, rows)) == pytest.approx(tuple(expected), abs=3e-4 if rows > 50 else 0.02)


@as_subtests("rows, chance", [(250, 0.0), (320, 0.0), (320, 0.0025), (700, 0.005), (2000, 0.02), (5000, 0.05)])
def test_a_margin_is_rarely_held_in_vain(rows, chance):
    """The first is worse by a point, which is the margin: how often is it found no worse, counted over all outcomes?"""
    error = 0.0
    for first in range(int(stats.binom.ppf(1 - 1e-6, rows, chance)) + 1):
        seconds = np.arange(int(stats.binom.ppf(1 - 1e-6, rows, chance + 0.01)) + 1)
        held = score(np.array(-0.01), first, seconds, rows) > -ENDS[0]
        share = (chance + 0.01) / (1 - chance)
        error += stats.binom.pmf(first, rows, chance) * stats.binom.pmf(seconds, rows - first, share)[held].sum()
    assert error < 0.027


@pytest.mark.slow
@as_subtests("size, whole", [(1, False), (5, False), (5, True), (20, True)])
def test_nor_where_rows_or_seeds_belong_together(size, whole):
    """In groups that differ by a row or as a whole; of rows, in three seeds that agree or not."""
    random, held, groups = np.random.default_rng(size + whole), 0, 500
    for _ in range(200):
        share = 0.01 if whole else 0.01 * size
        worse = random.random(groups) < share
        if size == 1:
            seeds = (random.random((3, groups)) < 0.7) & worse  # 0.7 points worse, of that margin
            held += interval(-seeds.astype(float), draws=400)[0] >= -0.007
            continue
        rows = np.zeros((groups, size))
        rows[worse, : size if whole else 1] = -1
        held += interval(rows.reshape(1, -1), Clusters.of(np.repeat(np.arange(groups), size)), 400)[0] >= -0.01
    print(held / 200)
    assert held / 200 < 0.06
