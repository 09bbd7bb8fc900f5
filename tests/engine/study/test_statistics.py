import math

import numpy as np
import pytest
from scipy import stats

from penstock.engine.statistics.learning_curves import FORMS, POWER_LAW, choose, fit
from penstock.engine.study.break_even import break_even, crossing, equivalent_size
from penstock.engine.study.curves import Curve, fit_curve
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
    found = fit(POWER_LAW, sizes, scale * (sizes / 100) ** -exponent + floor, np.full(len(sizes), 1e-6))
    assert tuple(found.values.values()) == pytest.approx((scale, exponent, floor), rel=1e-3, abs=1e-3)
    assert found.error(1e6) == pytest.approx(scale * 1e4**-exponent + floor, abs=1e-3)


def test_the_fit_is_the_least_squares_optimum():
    sizes, random = np.array(SIZES, dtype=float), np.random.default_rng(1)
    errors = 0.4 * (sizes / 100) ** -0.4 + 0.15 + random.normal(0, 0.02, len(sizes))
    variances = random.uniform(1e-5, 1e-3, len(sizes))
    found = fit(POWER_LAW, sizes, errors, variances)
    weights = variances.min() / variances

    def loss(scale, exponent, floor):
        return float(((scale * (sizes / 100) ** -exponent + floor - errors) ** 2 * weights).sum())

    assert loss(**found.values) == pytest.approx(found.loss)
    for step in (0.99, 1.01):
        for name, value in found.values.items():
            assert found.loss <= loss(**{**found.values, name: value * step})


def test_a_floor_below_zero_is_not_fitted():
    sizes = np.array(SIZES, dtype=float)
    found = fit(POWER_LAW, sizes, 0.9 - 0.1 * np.log10(sizes), np.ones(len(sizes)))
    assert found.values["floor"] >= 0
    assert found.values["scale"] >= 0


MADE = {
    "power law": np.array([0.5, 0.3, 0.1]),
    "broken power law": np.array([np.log(0.7), 0.05, np.log(12.0), 0.5]),
    "M4": np.array([0.1, 0.7, np.log(4.0), 0.6, 0.8]),
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_each_form_is_recovered_and_chosen_where_it_is_the_truth(form):
    sizes = np.array([100, 200, 400, 800, 1600, 3200, 6400, 12800], dtype=float)
    truth, variances = form.error(MADE[form.name], sizes / 100), np.full(len(sizes), 1e-8)
    found = fit(form, sizes, truth, variances)
    assert found.error(sizes) == pytest.approx(truth, abs=2e-3)
    assert found.error(51_200) == pytest.approx(form.error(MADE[form.name], np.array(512.0)), abs=0.01)
    again = fit(form, sizes, truth + 1e-4, variances, start=found)
    assert again.error(sizes) == pytest.approx(truth, abs=3e-3)
    random = np.random.default_rng(0)
    for _ in range(4):  # to the last digits, as another processor computes
        nearly = truth * (1 + 1e-14 * random.standard_normal(len(truth)))
        chosen, losses = choose(sizes, nearly, variances)
        assert losses.keys() == {form.name for form in FORMS}
        assert losses[chosen.name] <= losses[form.name]
        assert chosen.error(fit(chosen, sizes, nearly, variances).theta, np.array(512.0)) == pytest.approx(
            form.error(MADE[form.name], np.array(512.0)), abs=0.02
        )


def test_a_form_with_more_parameters_than_the_sizes_can_judge_is_not_tried():
    sizes = np.array(SIZES[:5], dtype=float)
    _, losses = choose(sizes, 0.4 * (sizes / 100) ** -0.3 + 0.1, np.full(5, 1e-6))
    assert losses.keys() == {"power law"}


@pytest.mark.slow
def test_a_curve_that_levels_off_at_both_ends_is_no_power_law():
    sizes = (100, 200, 400, 800, 1600, 3200, 6400, 12800)
    form = next(form for form in FORMS if form.name == "M4")
    truth = form.error(np.array([0.1, 0.6, np.log(0.5), 1.5, 1.0]), np.array(sizes) / 800)
    random = np.random.default_rng(0)
    curve = fit_curve(
        {n: {s: e + random.normal(0, 0.002) for s in range(3)} for n, e in zip(sizes, truth, strict=True)}
    )
    assert curve.fit.form.name != "power law"
    assert curve.fit.error(sizes[-1]) == pytest.approx(truth[-1], abs=0.01)
    low, high = curve.error_interval(sizes[-1])
    assert low <= float(curve.fit.error(sizes[-1])) <= high


def test_noisy_curves_are_identified_and_their_intervals_hold_the_truth():
    curve = fit_curve(errors_of(0.4, 0.4, 0.2))
    assert curve.identified, curve.reason
    assert curve.fit.form is POWER_LAW
    assert curve.interval("exponent")[0] < 0.4 < curve.interval("exponent")[1]
    assert curve.interval("floor")[0] < 0.2 < curve.interval("floor")[1]
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


@pytest.mark.slow
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


def test_an_extrapolation_is_not_bounded_by_the_largest_size():
    """The largest size's gap lies above the threshold by chance: the curves meet before it."""
    sizes, error = np.array(SIZES, float), {}
    for name, scale in (("own", 0.13), ("reference", 0.1)):
        errors = {n: dict.fromkeys(range(3), scale * (n / 100) ** -0.5 + 0.2) for n in SIZES}
        whole = fit(POWER_LAW, sizes, np.array([own[0] for own in errors.values()]), np.full(len(sizes), 1e-6))
        error[name] = Curve(whole, [whole] * 3, None)
    found = break_even({100: {0: 0.03, 1: 0.03}, 1000: {0: 0.0101, 1: 0.0103}}, (error["own"], error["reference"]))
    assert found.extrapolated == pytest.approx((900, 900, 900), rel=0.01)
    assert "put it at 900 (95% interval 900 to 900)" in str(found)


def test_a_lone_seed_has_the_others_noise():
    gaps = {100: {0: 0.04, 1: 0.06, 2: 0.05}, 1000: {0: 0.02, 1: 0.03, 2: 0.01}, 10000: {0: 0.008}}
    found = break_even(gaps)
    assert (found.high, found.reliable) == (math.inf, math.inf), "another seed might well be above a point"
    surely = break_even(gaps | {10000: {0: -0.09}})
    assert surely.reliable < 10000


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
