import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.errors import ConfigError
from penstock.engine.training.split import check_split, split_validation


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    fraction=st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5]),
    maximum=st.integers(1, 40),
    seed=st.integers(0, 3),
)
def test_a_partition_with_the_classes_in_proportion(counts, fraction, maximum, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(seed).permutation(labels)
    rows = np.arange(len(labels), dtype=np.int64)
    wanted = max(1, min(round(fraction * len(rows)), maximum)) if fraction else 0
    if wanted > len(rows) - len(counts):
        with pytest.raises(ConfigError, match="leave no validation split"):
            split_validation(labels, rows, fraction=fraction, maximum=maximum, seed=seed)
        return
    training, validation = split_validation(labels, rows, fraction=fraction, maximum=maximum, seed=seed)
    assert np.array_equal(np.sort(np.concatenate([training, validation])), rows)
    assert len(validation) == wanted
    taken = np.bincount(labels[validation], minlength=len(counts))
    assert (taken < counts).all()
    if wanted <= (np.array(counts) - 1).min():
        assert (np.abs(taken - wanted * np.array(counts) / len(rows)) < 1 + 1e-9).all()


def test_depends_on_the_seed_alone():
    labels = np.arange(100) % 3
    rows = np.arange(100)
    first = split_validation(labels, rows, fraction=0.2, maximum=100, seed=1)
    again = split_validation(labels, rows, fraction=0.2, maximum=100, seed=1)
    other = split_validation(labels, rows, fraction=0.2, maximum=100, seed=2)
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_rows_of_a_subset_only():
    labels = np.arange(100) % 2
    rows = np.arange(0, 100, 5)
    training, validation = split_validation(labels, rows, fraction=0.25, maximum=100, seed=0)
    assert set(training) | set(validation) == set(rows)
    assert len(validation) == 5


WRONG = {  # rows, validation rows
    "a mask": (
        np.arange(9) < 3,
        None,
        TypeError,
        r"rows must be numbers of rows, got a mask: give np.flatnonzero\(rows\)",
    ),
    "another mask": (None, np.arange(9) < 3, TypeError, r"np.flatnonzero\(validation_rows\)"),
    "fractions": (np.array([0.5, 1.7]), None, TypeError, "rows must be numbers of rows, got float64"),
    "words": (["a"], None, TypeError, "rows must be numbers of rows, got <U1"),
    "a table": (np.zeros((2, 2), int), None, ValueError, r"rows must have shape \(count,\), got \(2, 2\)"),
    "one": (3, None, ValueError, r"rows must have shape \(count,\), got \(\)"),
    "too large": ([0, 9], None, ValueError, "rows must be from 0 to 8, got 0 to 9"),
    "negative": ([-1, 4], None, ValueError, "rows must be from 0 to 8, got -1 to 4"),
    "twice": ([4, 2, 4], None, ValueError, "rows: row 4 is given more than once"),
    "in both": ([1, 2, 3], [3, 4], ValueError, "rows and validation_rows share 1 rows, row 3 among them"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_are_none(name):
    rows, validation_rows, error, said = WRONG[name]
    with pytest.raises(error, match=said):
        check_split(9, rows, validation_rows)


@pytest.mark.parametrize("kind", [list, tuple, np.int32, np.uint8, np.int64])
def test_rows_of_any_kind(kind):
    rows = [5, 0, 3]
    given = kind(rows) if kind in (list, tuple) else np.array(rows, kind)
    assert [found.tolist() for found in check_split(9, given, np.array([7]))] == [[0, 3, 5], [7]]
    assert [found.tolist() for found in check_split(4, None, [1])] == [[0, 2, 3], [1]]
    assert check_split(4, None, None) == (None, None)
    assert check_split(4, [], None)[0].dtype == np.int64
