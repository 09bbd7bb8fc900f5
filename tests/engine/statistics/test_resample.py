import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from subtested import as_subtests

from penstock.engine.statistics.clusters import Clusters
from penstock.engine.statistics.mcnemar import holm, mcnemar, resolvable, rows_needed, sign_flips
from penstock.engine.statistics.resample import Drawn, Series, draw, draw_groups
from penstock.engine.statistics.seed_variance import lend, moderate
from penstock.engine.statistics.verdict import decimals, kind_of, verdict


def right(share, seeds, rows, seed=0):
    return (np.random.default_rng(seed).random((seeds, rows)) < share).astype(float)


def one(scores, scale="share", clusters=None, size=100):
    series = Series(scores, size)
    return draw({"x": series}, clusters or Clusters.single(scores.shape[1]), scale)["x"]


def test_one_seed_has_the_interval_of_its_rows():
    scores = right(0.7, 1, 2000)
    found = one(scores)
    low, high = stats.binomtest(int(scores.sum()), 2000).proportion_ci(method="wilson")
    assert found.mean == scores.mean()
    assert found.interval == pytest.approx((low, high), abs=0.003)
    assert (found.seeds, found.rows, found.clusters) == (1, 2000, 2000)


@pytest.mark.slow
def test_seeds_alone_have_students_interval():
    """Three seeds on very many rows: what is left is t with two degrees of freedom, on the log-odds."""
    means = np.array([0.70, 0.705, 0.71])
    scores = np.zeros((3, 20_000))
    for row, mean in zip(scores, means, strict=True):
        row[: int(mean * 20_000)] = 1
    found = one(scores)
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert found.interval == pytest.approx((low, high), abs=0.004)


def test_what_is_paired_differs_less():
    first = right(0.7, 2, 1000)
    second = np.where(np.random.default_rng(1).random(first.shape) < 0.05, 1 - first, first)
    difference = one(first - second, "difference")
    low, high = difference.interval
    separate = [one(each).interval for each in (first, second)]
    assert high - low < 0.7 * max(ends[1] - ends[0] for ends in separate)


def test_series_of_one_draw_are_paired():
    first, second = right(0.7, 3, 500), right(0.6, 3, 500, 1)
    clusters = Clusters.single(500)
    alone = draw({"a": Series(first[:1], 10), "again": Series(first[:1], 10)}, clusters, "share")
    assert (alone["a"].draws == alone["again"].draws).all()
    other = draw({"b": Series(second[:1], 10), "a": Series(first[:1], 10)}, clusters, "share")
    assert (other["a"].draws == alone["a"].draws).all(), "whatever is drawn beside it"
    beside = draw({"b": Series(second, 10), "a": Series(first[:1], 10)}, clusters, "share")["a"]
    assert beside.borrowed
    assert not alone["a"].over_seeds
    assert np.diff(beside.interval) > np.diff(alone["a"].interval), "unless that tells how seeds differ"


@pytest.mark.slow
@as_subtests("share, seeds", itertools.product([0.0, 0.001, 0.02, 0.98, 1.0], [1, 2, 5]))
def test_no_draw_leaves_the_range(share, seeds):
    scores = right(share, seeds, 300)
    scores[0] = scores[0] * 0.5 if seeds == 1 else 1 - scores[0]  # seeds that differ as much as can be
    found = one(scores)
    assert 0 <= found.draws.min() <= found.draws.max() <= 1
    difference = one(scores - right(1 - share, seeds, 300, 2), "difference")
    assert -1 <= difference.draws.min() <= difference.draws.max() <= 1
    assert found.interval[0] <= found.mean <= found.interval[1]


@as_subtests(
    "scores, scale, low, high",
    [
        (1.0, "share", 0.95, 1.0),
        (0.0, "share", 0.0, 0.05),
        (0.0, "difference", -0.04, 0.04),
        (1.0, "difference", 0.92, 1.0),
        (-1.0, "difference", -1.0, -0.92),
    ],
)
def test_rows_that_are_all_alike_leave_room(scores, scale, low, high):
    for seeds in (1, 3):
        found = one(np.full((seeds, 100), scores), scale)
        assert low <= found.interval[0] <= found.mean <= found.interval[1] <= high
        assert found.interval[1] - found.interval[0] > 0.01


def test_clusters_widen_what_they_hold_together():
    of = np.repeat(np.arange(100), 10)
    scores = np.repeat(right(0.6, 1, 100), 10, axis=1)
    alone, together = one(scores), one(scores, clusters=Clusters.of(of))
    ratio = np.diff(together.interval) / np.diff(alone.interval)
    assert 2.6 < ratio[0] < 3.8  # sqrt(10)
    assert together.clusters == 100


@pytest.mark.parametrize("values", [["b", "a", "b", "c"], [3, 1, 3, 7], np.array([2.5, 1, 2.5, 9])])
def test_clusters_of_values(values):
    found = Clusters.of(values)
    assert found.count == 3
    assert found.of_row.tolist() == [1, 0, 1, 2]
    assert found.sums(np.array([[1.0, 2, 4, 8]])).tolist() == [[2, 5, 8]]


def test_the_variance_of_a_mean_is_the_plain_one_without_clusters():
    scores = right(0.3, 1, 500)[0]
    assert Clusters.single(500).variance_of_mean(scores) == pytest.approx(scores.var(ddof=1) / 500)
    assert Clusters.of(np.zeros(5)).variance_of_mean(np.arange(5.0)) == 0


def test_bad_series_are_refused():
    clusters = Clusters.single(10)
    for shape in ((1, 9), (10,), (0, 10)):
        with pytest.raises(ValueError, match="x: "):
            draw({"x": Series(np.zeros(shape), 1)}, clusters, "share")
    assert draw({}, clusters, "share") == {}


def test_equal_variances_are_pooled_and_unlike_ones_are_not():
    random = np.random.default_rng(0)
    sizes = np.tile([100, 1000, 10_000], 400)
    same = random.chisquare(2, 1200) / 2
    moderated, freedoms = moderate(same, np.full(1200, 2), sizes)
    assert freedoms.min() > 40
    assert moderated.std() < 0.15
    unlike = same * np.exp(random.normal(0, 3, 1200))
    kept, few = moderate(unlike, np.full(1200, 2), sizes)
    assert few.max() < 4
    assert np.corrcoef(np.log(kept), np.log(unlike))[0, 1] > 0.9


def test_variances_follow_a_trend_in_the_size():
    random = np.random.default_rng(0)
    sizes = np.tile([100.0, 1000, 10_000], 400)
    moderated, _ = moderate(random.chisquare(2, 1200) / 2 / sizes, np.full(1200, 2), sizes)
    assert moderated[sizes == 100].mean() / moderated[sizes == 10_000].mean() == pytest.approx(100, rel=0.5)


def test_few_variances_stay_their_own():
    variances, freedoms = moderate(np.array([1.0, 4.0]), np.array([2, 2]), np.array([10, 100]))
    assert variances.tolist() == [1, 4]
    assert freedoms.tolist() == [2, 2]


@as_subtests("leads", [[1], [1, -1], [1, 1, 1, -1], [3, 1, -2], [2, 2, -2], [3, 3, 2, 1, 1, -1, -2], [5, 0, 0, -1, 4]])
def test_signs_are_flipped_in_all_ways(leads):
    sums = [np.dot(signs, leads) for signs in itertools.product([1, -1], repeat=len(leads))]
    expected = np.mean(np.abs(sums) >= abs(sum(leads)))
    assert sign_flips(np.array(leads, float)) == pytest.approx(expected, abs=1e-12)


def test_flips_of_many_rows_are_nearly_normal():
    leads = np.random.default_rng(0).integers(-3, 5, 20_000).astype(float)
    leads[:200] = -3
    z = leads.sum() / np.sqrt((leads**2).sum())
    assert sign_flips(leads) == pytest.approx(2 * stats.norm.sf(abs(z)), rel=0.05, abs=1e-12)
    assert 0 < sign_flips(np.full(5000, 2.0) + (np.arange(5000) % 2)) < 1e-12


@as_subtests("counts", [(400, 30, 10), (40, 4, 0), (3000, 300, 120)])
def test_small_chances_are_exact_too(counts):
    """As many rows that three, two or one of three seeds tell apart, nearly all for one side."""
    exact = np.ones(1)
    for size, count in zip((3, 2, 1), counts, strict=True):
        chances = np.zeros(size * count + 1)
        chances[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        exact = np.convolve(exact, chances)
    leads = np.repeat([3.0, 2.0, 1.0], counts)
    leads[: counts[0] // 4] = -3
    far = np.abs(2 * np.arange(len(exact)) - len(exact) + 1) >= abs(leads.sum())
    assert sign_flips(leads) == pytest.approx(exact[far].sum(), rel=1e-6)


def test_a_lone_seed_is_lent_what_others_vary():
    """By its own family's, by the trend, and by all others'; where next to nothing is known, nothing."""
    sizes, freedoms = np.array([100, 1000, 100, 1000]), np.full(4, 2)
    quiet = np.array([True, True, False, False])
    variances = np.array([1.0, 1.1, 16.0, 17.0])
    own, freedom = lend(variances, freedoms, sizes, quiet, 10_000)
    others, fewer = lend(variances, freedoms, sizes, quiet & False, 10_000)
    assert 1 < own < others < 17
    assert freedom > fewer >= 2
    falling = np.array([100.0, 10.0, 1.0])
    lent = [lend(falling, np.full(3, 40), np.array([10, 100, 1000]), np.ones(3, bool), size)[0] for size in (30, 10**6)]
    assert lent == pytest.approx([10**1.5, 1.0], rel=0.1), "no trend is followed beyond"
    assert lend(np.array([1.0]), np.array([1]), np.array([10]), np.array([True]), 10) is None
    assert lend(np.array([1.0, 3.0]), np.array([1, 1]), np.array([10, 10]), np.array([True, False]), 9) == (2.0, 2.0)


def test_an_exact_test_that_does_not_reject_keeps_nothing_in_the_interval():
    four = np.zeros((1, 200))
    four[0, :4] = 1
    found = one(four, "difference")
    assert found.interval[0] > 0
    held = replace(found, exact=0.125)
    assert held.interval == (0.0, found.interval[1])
    assert (found.p_value() < 0.05, held.p_value()) == (True, 0.125)
    assert replace(found, exact=0.01).interval == found.interval


def test_seeds_of_a_row_are_not_independent():
    """With equal accuracies in all rows there are, pooled pairs of five seeds alarm in every seventh study."""
    random, alarms = np.random.default_rng(0), []
    for _ in range(300):
        easy = random.normal(0, 1, (2, 400))
        right = easy[:, None, :] + random.normal(0, 0.5, (2, 5, 400)) > 0
        alarms.append(mcnemar(right[0], right[1]).p_value < 0.05)
    assert np.mean(alarms) < 0.08


def test_mcnemar_is_an_exact_sign_test():
    first = np.array([True] * 12 + [False] * 2 + [True] * 50)
    second = np.array([False] * 12 + [True] * 2 + [True] * 50)
    found = mcnemar(first, second)
    assert (found.first, found.second, found.pairs) == (12, 2, 64)
    assert found.p_value == pytest.approx(2 * stats.binom.cdf(2, 14, 0.5))
    assert mcnemar(first, first).p_value == 1
    with pytest.raises(ValueError, match="cannot be paired"):
        mcnemar(first, second[:3])


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.mark.parametrize(("discordant", "rows"), [(0.05, 3_900), (0.15, 11_800), (0.30, 23_500)])
def test_rows_that_settle_one_point(discordant, rows):
    assert rows_needed(discordant, 0.01) == pytest.approx(rows, rel=0.01)
    assert resolvable(discordant, rows) == pytest.approx(0.01, rel=0.01)


@as_subtests(
    "centre, spread, kind",
    [(0.03, 0.01, "better"), (-0.03, 0.01, "worse"), (0.0, 0.003, "no worse"), (0.0, 0.02, "cannot tell"),
     (-0.008, 0.01, "cannot tell")],
)  # fmt: skip
def test_verdicts(centre, spread, kind):
    drawn = Drawn(centre, np.random.default_rng(0).normal(centre, spread, 4000), 1, 500, 500)
    found = verdict(drawn, "new", "old")
    assert found.kind == kind
    assert "new" in found.text
    assert "points, 95% interval" in found.text


@as_subtests(
    "low, high, shown",
    [(0.0003, 0.0057, 2), (0.0044, 0.0096, 2), (-0.012, 0.006, 1), (-0.00996, 0.002, 3), (-0.00004, 0.02, 3),
     (0.0, 0.01, 1), (0.0099996, 0.02, 5)],
)  # fmt: skip
def test_ends_are_shown_where_they_are(low, high, shown):
    assert decimals(low, high, (-0.01, 0.0, 0.01)) == shown
    rounded = [round(100 * end, shown) / 100 for end in (low, high)]
    assert kind_of(*rounded) == kind_of(low, high)


def test_a_verdict_does_not_contradict_its_figures():
    drawn = Drawn(0.003, np.random.default_rng(0).uniform(0.00018, 0.0058, 4000), 1, 500, 500)
    assert "95% interval +0.03 to +0.57)" in verdict(drawn, "new", "old").text


def test_groups_are_drawn_as_each_alone_and_paired():
    shares = {name: Series(right(0.7, 1, 400, place), 100) for place, name in enumerate("ab")}
    gap = {"gap": Series(shares["a"].scores - shares["b"].scores, 100)}
    clusters = Clusters.of(np.arange(400) // 4)
    together = draw_groups([(shares, "share"), ({}, "share"), (gap, "difference")], clusters)
    alone = draw(shares, clusters, "share"), {}, draw(gap, clusters, "difference")
    for found, expected in zip(together, alone, strict=True):
        assert found.keys() == expected.keys()
        assert all((found[key].draws == expected[key].draws).all() for key in found)
    difference = together[0]["a"].draws - together[0]["b"].draws
    assert np.corrcoef(difference, together[2]["gap"].draws)[0, 1] > 0.8
