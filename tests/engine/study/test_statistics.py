import math

import numpy as np
import pytest
from scipy import stats

from penstock.engine.study.break_even import break_even, crossing, equivalent_size
from penstock.engine.study.curves import fit_curve, fit_power_law
from penstock.engine.study.intervals import t_interval

SIZES = (100, 300, 1000, 3000, 10000, 30000)


def errors_of(scale, exponent, floor, *, sizes=SIZES, seeds=3, noise=0.003, seed=0):
    random = np.random.default_rng(seed)
    return {
        n: {s: scale * (n / 100) ** -exponent + floor + random.normal(0, noise) for s in range(seeds)} for n in sizes
    }


def test_t_interval_is_scipys():
    values = [0.71, 0.74, 0.69, 0.73]
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_one_value_has_no_interval():
    found = t_interval([0.7])
    assert (found.mean, found.low, found.high, found.half_width) == (0.7, None, None, None)
    with pytest.raises(ValueError, match="at least one"):
        t_interval([])


def test_t_intervals_cover_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    intervals = [t_interval(random.normal(0.7, 0.01, 3)) for _ in range(1000)]
    assert 0.93 < np.mean([found.low <= 0.7 <= found.high for found in intervals]) < 0.97


@pytest.mark.parametrize(("scale", "exponent", "floor"), [(0.4, 0.35, 0.2), (0.5, 0.15, 0.0), (0.3, 1.2, 0.1)])
def test_the_fit_recovers_an_exact_curve(scale, exponent, floor):
    sizes = np.array(SIZES, dtype=float)
    fit = fit_power_law(sizes, scale * (sizes / 100) ** -exponent + floor, np.full(len(sizes), 1e-6))
    assert (fit.scale, fit.exponent, fit.floor) == pytest.approx((scale, exponent, floor), rel=1e-3, abs=1e-3)
    assert fit.error(1e6) == pytest.approx(scale * 1e4**-exponent + floor, abs=1e-3)


def test_the_fit_is_the_least_squares_optimum():
    sizes, random = np.array(SIZES, dtype=float), np.random.default_rng(1)
    errors = 0.4 * (sizes / 100) ** -0.4 + 0.15 + random.normal(0, 0.02, len(sizes))
    variances = random.uniform(1e-5, 1e-3, len(sizes))
    fit = fit_power_law(sizes, errors, variances)
    weights = variances.min() / variances

    def loss(scale, exponent, floor):
        return float(((scale * (sizes / 100) ** -exponent + floor - errors) ** 2 * weights).sum())

    assert loss(fit.scale, fit.exponent, fit.floor) == pytest.approx(fit.loss)
    for step in (0.99, 1.01):
        assert fit.loss <= loss(fit.scale * step, fit.exponent, fit.floor)
        assert fit.loss <= loss(fit.scale, fit.exponent * step, fit.floor)
        assert fit.loss <= loss(fit.scale, fit.exponent, fit.floor * step)


def test_a_floor_below_zero_is_not_fitted():
    sizes = np.array(SIZES, dtype=float)
    fit = fit_power_law(sizes, 0.9 - 0.1 * np.log10(sizes), np.ones(len(sizes)))
    assert fit.floor >= 0
    assert fit.scale >= 0


def test_noisy_curves_are_identified_and_their_intervals_hold_the_truth():
    curve = fit_curve(errors_of(0.4, 0.4, 0.2))
    assert curve.identified, curve.reason
    assert curve.exponent_interval[0] < 0.4 < curve.exponent_interval[1]
    assert curve.floor_interval[0] < 0.2 < curve.floor_interval[1]
    low, high = curve.error_interval(100_000)
    assert low < 0.4 * 1000**-0.4 + 0.2 < high
    size, predicted, measured = curve.held_out
    assert size == SIZES[-1]
    assert predicted == pytest.approx(measured, abs=0.02)


def test_too_few_sizes_are_refused():
    assert "takes 5" in fit_curve(errors_of(0.4, 0.4, 0.2, sizes=SIZES[:4]))


def test_one_seed_everywhere_is_refused():
    assert "two seeds" in fit_curve(errors_of(0.4, 0.4, 0.2, seeds=1))


def test_a_flat_curve_is_not_identified():
    curve = fit_curve(errors_of(0.0, 0.4, 0.4, noise=0.01))
    assert not curve.identified
    assert "not pinned down" in curve.reason


def test_crossing():
    assert crossing([100, 1000], [0.05, 0.005]) == pytest.approx(100 * 10 ** (0.04 / 0.045))
    assert crossing([100, 1000], [0.03, 0.02]) == math.inf
    assert crossing([100, 1000], [0.009, -0.02]) == 0
    # falls below, rises again, stays below: the last crossing counts
    assert 1000 < crossing([100, 300, 1000, 3000], [0.05, 0.0, 0.02, 0.0]) < 3000


def test_break_even_within_the_sizes():
    gaps = {100: {0: 0.10, 1: 0.11}, 1000: {0: 0.03, 1: 0.028}, 10000: {0: 0.001, 1: -0.001}}
    found = break_even(gaps)
    assert 1000 < found.low < found.size < found.high < 10000
    assert "about" in str(found)
    assert "95% interval" in str(found)


def test_break_even_not_reached_and_not_extrapolated():
    found = break_even({100: {0: 0.1, 1: 0.11}, 1000: {0: 0.08, 1: 0.07}}, ("no curve", "no curve"))
    assert found.size is None
    assert found.high == math.inf
    text = str(found)
    assert "not reached within the sizes measured (up to 1,000)" in text
    assert "not extrapolated: no curve" in text


def test_break_even_extrapolated_by_identified_curves():
    own = fit_curve(errors_of(0.4, 0.5, 0.2, noise=0.001))
    reference = fit_curve(errors_of(0.1, 0.5, 0.2, noise=0.001, seed=1))
    gaps = {n: {0: 0.3 * (n / 100) ** -0.5, 1: 0.301 * (n / 100) ** -0.5} for n in SIZES[:4]}
    found = break_even(gaps, (own, reference))
    assert found.size is None
    size, low, high = found.extrapolated
    assert low <= size <= high
    assert low < 100 * (0.3 / 0.01) ** 2 < high
    assert "extrapolated, put it at" in str(found)


def test_break_even_at_the_first_size_and_without_intervals():
    found = break_even({100: {0: 0.001}, 1000: {0: -0.02}})
    assert (found.size, found.low, found.high) == (0, None, None)
    assert "smallest size already (100)" in str(found)


def test_break_even_without_a_common_size():
    assert str(break_even({})) == "no size has both families"


def test_equivalent_size():
    accuracies = {100: {0: 0.40, 1: 0.41}, 1000: {0: 0.50, 1: 0.51}, 10000: {0: 0.60, 1: 0.61}}
    size, low, high = equivalent_size(accuracies, {0: 0.55, 1: 0.56})
    assert size == pytest.approx(1000 * 10**0.5, rel=1e-6)
    assert low < size < high
    assert equivalent_size(accuracies, {0: 0.7})[0] == math.inf
    assert equivalent_size(accuracies, {0: 0.3})[0] == 0
