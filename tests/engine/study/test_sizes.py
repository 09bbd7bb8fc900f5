import pytest
from subtested import as_subtests

from penstock.engine.errors import ConfigError
from penstock.engine.study.sizes import (
    parse_max_sizes,
    parse_seeds,
    parse_size,
    parse_sizes,
    resolve_sizes,
    sizes_up_to,
)
from penstock.engine.study.trials import plan_trials


@as_subtests(
    "text, count",
    [
        ("500", 500),
        ("2k", 2000),
        ("1.5K", 1500),
        ("1m", 1_000_000),
        ("1_000", 1000),
        ("1%", 40),
        ("0.5%", 20),
        ("100%", 4000),
    ],
)
def test_sizes_are_counts_or_percentages(text, count):
    assert parse_size(text).resolve(4000 if "%" in text else 10**7) == count


def test_sizes_are_ascending_and_each_once():
    assert resolve_sizes(parse_sizes("2k, 50%,500"), 4000, 5) == (500, 2000)


@as_subtests("text", ["", ",", "many", "-5", "1.5", "0", "0%", "101%", "2kk", "10 %%", "1e3", "nan"])
def test_what_is_no_size_is_named(text):
    with pytest.raises(ConfigError) as error:
        parse_sizes(text)
    assert len(str(error.value).splitlines()) == 1


def test_a_size_larger_than_the_data_says_how_much_there_is():
    with pytest.raises(ConfigError, match=r"size 8k is larger .* 4,000 examples"):
        resolve_sizes(parse_sizes("100,8k"), 4000, 5)


def test_a_size_too_small_for_the_classes():
    with pytest.raises(ConfigError, match="size 9 is too small for 5 classes: 10"):
        resolve_sizes(parse_sizes("9,100"), 4000, 5)
    with pytest.raises(ConfigError, match="less than one"):
        resolve_sizes(parse_sizes("0.001%"), 4000, 5)


def test_seeds_by_size():
    sizes = (500, 2000, 8000, 32000, 200000)
    assert parse_seeds("3").resolve(sizes, 200000) == dict.fromkeys(sizes, 3)
    expected = dict(zip(sizes, (3, 3, 2, 1, 1), strict=True))
    assert parse_seeds("3,8k:2,32k:1").resolve(sizes, 200000) == expected
    assert parse_seeds("3,32k:1,8k:2").resolve(sizes, 200000) == expected, "the order does not matter"
    assert parse_seeds("2,50%:1").resolve(sizes, 200000) == {500: 2, 2000: 2, 8000: 2, 32000: 2, 200000: 1}
    assert parse_seeds("3,1m:1").resolve((500,), 1000) == {500: 3}, "a limit beyond the data never applies"


@as_subtests("text", ["", "0", "three", "8k:2", "3,2", "3,8k:0", "3,:2", "3,x:2"])
def test_seeds_that_mean_nothing(text):
    with pytest.raises(ConfigError):
        parse_seeds(text)


def test_largest_size_of_a_family():
    limits = parse_max_sizes(["encoder=8k"], ["lstm", "encoder"])
    assert sizes_up_to((500, 8000, 32000), limits, "encoder", 50000) == (500, 8000)
    assert sizes_up_to((500, 8000, 32000), limits, "lstm", 50000) == (500, 8000, 32000)
    for item in ("8k", "bert=8k", "encoder=", "encoder=x"):
        with pytest.raises(ConfigError):
            parse_max_sizes([item], ["lstm", "encoder"])


def test_the_grid_runs_small_trials_first():
    trials = plan_trials({"lstm": (100, 300), "encoder": (100,)}, {100: 2, 300: 1})
    assert [trial.name for trial in trials] == [
        "encoder-100-0",
        "lstm-100-0",
        "encoder-100-1",
        "lstm-100-1",
        "lstm-300-0",
    ]
