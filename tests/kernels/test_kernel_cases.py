"""What the tests of kernels are made from: every two values that may meet do, and nothing is served by nobody."""

import itertools

import pytest
import torch
from kernel_cases import implementations, isas, pairs_of, separate, serves

PARAMETERS = {"a": [1, 2, 3, 4], "b, c": [(b, c) for b in "xyz" for c in (0, 1)], "d": [None, {}, {"one": 1}]}


def valid(a, b, c, d) -> bool:
    return not (a == 4 and b == "x") and (c == 0 or d is not None)


def test_every_two_values_meet() -> None:
    cases = pairs_of(PARAMETERS, valid)
    assert all(valid(**separate(case)) for case in cases)
    combinations = [dict(zip(PARAMETERS, values, strict=True)) for values in itertools.product(*PARAMETERS.values())]
    wanted = [each for each in combinations if valid(**separate(each))]
    for one, other in itertools.combinations(PARAMETERS, 2):
        meet, found = ([(case[one], case[other]) for case in several] for several in (wanted, cases))
        assert all(pair in found for pair in meet)
    assert len(cases) < len(wanted) / 2
    assert cases == pairs_of(PARAMETERS, valid)


def test_one_parameter_takes_all_its_values() -> None:
    assert pairs_of({"a": [1, 2, 3]}, lambda a: a != 2) == [{"a": 1}, {"a": 3}]


def test_a_backend_that_serves_nothing_is_missed() -> None:
    assert serves("residual_norm", "reference", dtype=torch.float64, width=3)
    assert not serves("residual_norm", "cuda", dtype=torch.float64, width=3)
    with pytest.raises(AssertionError, match="serve no residual_norm"):
        implementations("residual_norm", ["reference", "cuda"], width=3)


def test_code_of_their_own() -> None:
    assert isas("rowwise")[0] == isas("attention")[0] == "portable"
    assert "amx_bf16" not in isas("rowwise")
