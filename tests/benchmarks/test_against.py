"""The verdict over two runs: code that did not change seldom alarms, code that did is found, and drift is no change."""

import math

import numpy as np
import pytest

from penstock.benchmarks.against import ALARMS, CANNOT_TELL, FASTER, SLOWER, check_same, compare
from penstock.engine.errors import ConfigError

RUNS, CASES, ROUNDS = 250, 8, 9


def drifting(random: np.random.Generator, rounds: int, swing: float) -> np.ndarray:
    """A machine's speed: it starts anywhere, and each round is near the one before."""
    level = random.normal(0, swing)
    out = []
    for _ in range(rounds):
        level = 0.9 * level + random.normal(0, swing * 0.4)
        out.append(level)
    return np.exp(np.array(out))


def noise(random: np.random.Generator, rounds: int) -> np.ndarray:
    """Mostly 2%, now and then a neighbour's half second."""
    return np.exp(random.normal(0, 0.02, rounds) + 0.5 * (random.random(rounds) < 0.1) * random.random(rounds))


def run(
    random: np.random.Generator, change: float = 1.0, references: str = "probe", rounds: int = ROUNDS
) -> list[dict]:
    rows = []
    for case in range(CASES):
        drift = drifting(random, rounds, 0.3)
        seconds = {"penstock": (change * drift * noise(random, rounds)).tolist()}
        if "peer" in references:
            seconds["torch"] = (drift * noise(random, rounds)).tolist()
        probe = (1 / drift / noise(random, rounds)).tolist() if "probe" in references else []
        row = {"case": f"case {case}", "threads": 1, "isa": "avx2", "seconds": seconds}
        rows.append(row | {"probe": probe})
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("references", ["probe", "peer", "probe and peer"])
def test_unchanged_code_seldom_alarms(references: str) -> None:
    random = np.random.default_rng(7)
    verdicts = [compare(run(random, 1.0, references), run(random, 1.0, references)) for _ in range(RUNS)]
    alarmed = sum(any(one.verdict != CANNOT_TELL for one in found) for found in verdicts)
    margin = 2 * math.sqrt(ALARMS * (1 - ALARMS) / RUNS)  # of the simulation
    assert alarmed / RUNS <= ALARMS + margin
    each = sum(one.verdict != CANNOT_TELL for found in verdicts for one in found) / (RUNS * CASES)
    assert each <= ALARMS


@pytest.mark.parametrize("references", ["probe", "peer", "probe and peer"])
@pytest.mark.parametrize(("change", "rounds"), [(1.25, 15), (1.1, 25)])
@pytest.mark.parametrize("verdict", [SLOWER, FASTER])
def test_a_change_is_found(change: float, rounds: int, verdict: str, references: str) -> None:
    """By a quarter in 15 rounds, by a tenth in 25."""
    change = change if verdict == SLOWER else 1 / change
    random = np.random.default_rng(8)
    found = [
        one
        for _ in range(12)
        for one in compare(run(random, 1.0, references, rounds), run(random, change, references, rounds))
    ]
    right = sum(one.verdict == verdict for one in found)
    assert right > 0.8 * len(found)
    assert not [one for one in found if one.verdict not in (verdict, CANNOT_TELL)]
    assert np.median([one.ratio for one in found]) == pytest.approx(change, rel=0.02)
    assert sum(one.low <= change <= one.high for one in found) > 0.9 * len(found)


def test_nobody_can_tell_without_a_reference() -> None:
    random = np.random.default_rng(9)
    found = compare(run(random, 1.0, "none"), run(random, 3.0, "none"))
    assert {one.verdict for one in found} == {CANNOT_TELL}
    assert "nothing was timed beside it" in found[0].why


def test_references_that_disagree_leave_it_open() -> None:
    """Neighbours fill the memory in the new run: ours and the peer slow down, the multipliers do not."""
    random = np.random.default_rng(11)
    old, new = run(random, 1.0, "probe and peer", 25), run(random, 1.5, "probe and peer", 25)
    for row in new:
        row["seconds"]["torch"] = [1.6 * seconds for seconds in row["seconds"]["torch"]]
    found = compare(old, new)
    assert {one.verdict for one in found} == {CANNOT_TELL}
    assert "slower over the machine's peak and faster over torch" in found[0].why


def test_cases_are_matched_by_threads_and_instruction_set() -> None:
    random = np.random.default_rng(10)
    old, new = run(random), run(random)
    old[0]["isa"], old[1]["threads"] = "avx512", 2
    assert [one.case for one in compare(old, new)] == [f"case {number}" for number in range(2, CASES)]


@pytest.mark.parametrize(
    ("key", "value", "said"), [("suite", "lstm", "suite"), ("processor", "Z80", "machine"), ("cores", 4, "4 cores")]
)
def test_another_suite_or_machine_is_refused(key: str, value: object, said: str) -> None:
    about = {"suite": "linear", "processor": "Zen", "cores": 2}
    check_same(about, about)
    with pytest.raises(ConfigError, match=said):
        check_same(about | {key: value}, about)
