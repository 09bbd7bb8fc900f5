"""A step's gradients are the same whatever the number of ranks, of batches, and of those that are empty.

The cases of `rank_gradients` are run by 1, 2 and 4 ranks with 1 and 8 batches each, whole models and shared ones: by
each of these a third of the cases, so that all of them are run by some.
"""

import functools

import numpy as np
import pytest
from rank_gradients import CASES, DROPPING, gradients, reference
from ranks import run_ranks
from sampling import WHOLE

BOUND = 1e-6  # relative, float32
RANKS = [
    (size, each, shard, number)
    for number, (size, each, shard) in enumerate(
        (size, each, shard) for size in (1, 2, 4) for each in (1, 8) for shard in (False, True) if size > 1 or not shard
    )
]
one_of = functools.cache(lambda case, batches: gradients([case], batches, False)[0])
reference_of = functools.cache(reference)


def distance(found, expected):
    """The distance of all parameters together, relative."""
    assert found.keys() == expected.keys()
    apart = sum(np.square(found[name].astype(np.float64) - expected[name]).sum() for name in found)
    return np.sqrt(apart / sum(np.square(value.astype(np.float64)).sum() for value in expected.values()))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "each", "shard", "number"), RANKS)
def test_gradients_are_those_of_one_batch(size, each, shard, number):
    cases = CASES if WHOLE else CASES[number % 3 :: 3]
    for case, *found in zip(cases, *run_ranks(size, gradients, cases, size * each, shard), strict=True):
        one, expected = one_of(case, 1), reference_of(case)
        for gradient, figures in found:  # every rank's: they all take the same step
            assert distance(gradient, one[0]) < BOUND, case
            assert distance(gradient, expected[0]) < 2 * BOUND, case
            assert figures == pytest.approx(expected[1], rel=BOUND), case


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_what_is_dropped_does_not_depend_on_the_ranks(size, shard):
    for case, *found in zip(DROPPING, *run_ranks(size, gradients, DROPPING, 8, shard), strict=True):
        for gradient, figures in found:
            assert distance(gradient, one_of(case, 8)[0]) < BOUND, case
            assert figures == pytest.approx(one_of(case, 8)[1], rel=BOUND), case
