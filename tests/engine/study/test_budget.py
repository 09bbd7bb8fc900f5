import json
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated_study import no_cost, result, stand_in, with_predictions
from subtested import as_subtests

from penstock.engine.errors import ConfigError
from penstock.engine.study.budget import State, choose_next, left_out_lines, parse_budget, undecided
from penstock.engine.study.estimate import Speed
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.plan import read_plan
from penstock.engine.study.report import write_report
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.study.trials import Trial, TrialResult, trial_named
from penstock.engine.study.workers import run_trials

pytestmark = pytest.mark.usefixtures("undrawn")


@as_subtests("text, seconds", [("3h", 10_800), ("30m", 1_800), ("90s", 90), ("1.5h", 5_400), (" 2 H ", 7_200)])
def test_times(text, seconds):
    assert parse_budget(text) == seconds


@as_subtests("text", ["", "3", "h", "-1h", "0s", "0.0h", "3 days", "1h30m", "nan h", "1e3s", "3d"])
def test_what_is_no_time(text):
    with pytest.raises(ConfigError, match="--budget"):
        parse_budget(text)


def names(*trials: str) -> frozenset[Trial]:
    return frozenset(trial_named(name) for name in trials)


def grid(sizes=(500, 2000, 8000), seeds=3, families=("lstm", "encoder")) -> list[Trial]:
    return [Trial(size, seed, family) for size in sizes for seed in range(seeds) for family in families]


def seconds_of(trials) -> dict[Trial, float]:
    """The encoder takes four times as long."""
    return {trial: trial.size / 100 * (4 if trial.family == "encoder" else 1) for trial in trials}


def state(over=(), gaps=None, left=1e9, trials=None, running=(), lost=()) -> State:
    trials = grid() if trials is None else trials
    estimates = {("lstm", size): Estimate(*own, count=count) for size, (*own, count) in (gaps or {}).items()}
    over = names(*over)
    return State(trials, over | names(*lost), names(*lost), names(*running), seconds_of(trials), estimates, left)


FIRST = tuple(f"{family}-{size}-0" for size in (500, 2000, 8000) for family in ("lstm", "encoder"))
SECOND = tuple(name[:-1] + "1" for name in FIRST)
WIDE, ABOVE, BELOW = (0.012, -0.03, 0.05), (0.17, 0.12, 0.21), (-0.05, -0.08, -0.03)


@as_subtests(
    "what, given, chosen",
    [
        ("small ones first, cheap ones first", {}, "lstm-500-0"),
        ("then the dear one of the size", {"over": FIRST[:1]}, "encoder-500-0"),
        ("then the next size", {"over": FIRST[:2]}, "lstm-2000-0"),
        (
            "what does not fit is passed over",
            {"over": FIRST[:5], "gaps": {500: (*ABOVE, 1), 2000: (*ABOVE, 1)}, "left": 100},
            None,
        ),
        ("and what fits is not", {"over": FIRST[:3], "gaps": {500: (*ABOVE, 1)}, "left": 79}, None),
        (
            "a larger cheap one fits where a smaller dear one does not",
            {"over": FIRST[:3], "left": 80},
            "encoder-2000-0",
        ),
        ("no further seed while a first one fits", {"over": FIRST[:5], "gaps": {500: (*WIDE, 1)}}, "encoder-8000-0"),
        ("what runs is not begun again", {"running": FIRST[:1]}, "encoder-500-0"),
        (
            "a big gap at a small size gets no more, an undecided one does",
            {"over": FIRST, "gaps": {500: (*ABOVE, 1), 2000: (*WIDE, 1), 8000: (*BELOW, 1)}},
            "encoder-2000-1",
        ),
        (
            "the other half of a pair",
            {"over": (*FIRST, "encoder-2000-1"), "gaps": {500: (*ABOVE, 1), 2000: (*WIDE, 1), 8000: (*BELOW, 1)}},
            "lstm-2000-1",
        ),
        (
            "beside it with another process free",
            {
                "over": FIRST,
                "running": ("encoder-2000-1",),
                "gaps": {500: (*ABOVE, 1), 2000: (*WIDE, 1), 8000: (*BELOW, 1)},
            },
            "lstm-2000-1",
        ),
        (
            "but no third seed before the second has told",
            {
                "over": FIRST,
                "running": ("encoder-2000-1", "lstm-2000-1"),
                "gaps": {500: (*ABOVE, 1), 2000: (*WIDE, 1), 8000: (*BELOW, 1)},
            },
            None,
        ),
        (
            "equally undecided: the cheaper",
            {"over": FIRST, "gaps": {500: (*ABOVE, 1), 2000: (*WIDE, 1), 8000: (*WIDE, 1)}},
            "encoder-2000-1",
        ),
        (
            "much less decided, though it takes four times as long",
            {"over": FIRST, "gaps": {500: (*ABOVE, 1), 2000: (0.035, 0.021, 0.049, 1), 8000: (*WIDE, 1)}},
            "encoder-8000-1",
        ),
        (
            "the budget does not suffice for the pair",
            {"over": FIRST, "gaps": {500: (*ABOVE, 1), 2000: (*WIDE, 1), 8000: (*BELOW, 1)}, "left": 99},
            None,
        ),
        (
            "all decided",
            {"over": FIRST, "gaps": {500: (*ABOVE, 1), 2000: (*ABOVE, 1), 8000: (*BELOW, 1)}},
            None,
        ),
        (
            "one seed leaves out what seeds change",
            {"over": FIRST, "gaps": {500: (0.03, 0.015, 0.045, 1), 2000: (*ABOVE, 1), 8000: (*BELOW, 1)}},
            "encoder-500-1",
        ),
        (
            "two do not",
            {"over": (*FIRST, *SECOND), "gaps": {500: (0.03, 0.015, 0.045, 2), 2000: (*ABOVE, 1), 8000: (*BELOW, 1)}},
            None,
        ),
        (
            "nothing tells how it varies",
            {"over": FIRST, "gaps": {500: (0.2, None, None, 1), 2000: (*ABOVE, 1), 8000: (*BELOW, 1)}},
            "encoder-500-1",
        ),
        (
            "a first seed that diverged: the next may tell",
            {"over": FIRST[1:], "lost": FIRST[:1], "gaps": {2000: (*ABOVE, 1), 8000: (*BELOW, 1)}},
            "encoder-500-1",
        ),
        (
            "half of a pair diverged: the other half has no use",
            {
                "over": FIRST,
                "lost": ("encoder-2000-1",),
                "gaps": {500: (*ABOVE, 1), 2000: (*WIDE, 1), 8000: (*BELOW, 1)},
            },
            "encoder-2000-2",
        ),
        (
            "a first seed that did not fit: no further one does",
            {"over": FIRST[:5], "gaps": {500: (*ABOVE, 1), 2000: (*ABOVE, 1)}, "left": 319},
            None,
        ),
        ("everything is over", {"over": [trial.name for trial in grid()], "gaps": {500: (*WIDE, 3)}}, None),
    ],
)
def test_the_next_trial(what, given, chosen):
    found = choose_next(state(**given))
    assert (found and found.name) == chosen, what


def test_first_seeds_of_all_families_come_before_further_ones_of_any():
    """Whatever the results say: no seed of a small size takes the time of the encoder's or the LSTM's largest."""
    trials = grid()
    order: list[str] = []
    while (found := choose_next(state(order, {500: (*WIDE, 1), 2000: (*WIDE, 1), 8000: (*WIDE, 1)}))) is not None:
        order.append(found.name)
    assert tuple(sorted(order[:6])) == tuple(sorted(FIRST))
    assert sorted(order) == sorted(trial.name for trial in trials)


def test_without_gaps_seeds_come_one_after_the_other():
    only = grid(families=("encoder",))
    order: list[str] = []
    while (found := choose_next(state(order, trials=only))) is not None:
        order.append(found.name)
    assert order == [f"encoder-{size}-{seed}" for seed in range(3) for size in (500, 2000, 8000)]


@as_subtests(
    "gap, expected",
    [
        (None, 1.0),
        (Estimate(0.3, None, None, 1), 1.0),
        (Estimate(0.01, 0.0, 0.02, 2), 1.0),
        (Estimate(0.015, 0.005, 0.025, 2), 0.5),
        (Estimate(0.015, 0.005, 0.025, 1), 0.75),
        (Estimate(0.05, 0.02, 0.08, 2), 0.0),
        (Estimate(-0.05, -0.08, -0.02, 2), 0.0),
        (Estimate(0.05, 0.05, 0.05, 3), 0.0),
        (Estimate(0.01, 0.01, 0.01, 3), 1.0),
        (Estimate(0.02, 0.009, 0.022, 2), pytest.approx(0.001)),  # lopsided
    ],
)
def test_how_undecided_a_gap_is(gap, expected):
    assert undecided(gap) == pytest.approx(expected) if isinstance(expected, float) else undecided(gap) == expected


def test_what_is_left_out_is_said_with_its_time():
    trials = [*grid(seeds=2), Trial(32_000, 0, "lstm"), Trial(32_000, 1, "lstm")]
    lines = left_out_lines(state(FIRST, {500: (*ABOVE, 1), 2000: (*WIDE, 1), 8000: (*WIDE, 1)}, left=50, trials=trials))
    assert lines == [
        "left out: lstm-32000-1: another seed settles no gap to the encoder; about 5 min",
        "left out: lstm-2000-1, encoder-2000-1, lstm-8000-1 and 2 more: the budget does not suffice; about 14 min",
        "left out: lstm-500-1, encoder-500-1: the gap to the encoder is decided; about 25 s",
        "the same command with another --budget, or without one, goes on from here",
    ]
    assert left_out_lines(state([trial.name for trial in grid()])) == []


class Clock:
    """Stands still but for trials."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def settings(tiny) -> StudySettings:
    return StudySettings(
        **tiny,
        sizes=parse_sizes("50,100,400"),
        seeds=parse_seeds("3"),
        families=("lstm", "encoder"),
        max_sizes={},
    )


ACCURACY = {("encoder", 50): 0.8, ("lstm", 50): 0.5, ("encoder", 100): 0.8, ("lstm", 100): 0.77}


def run(settings: StudySettings, out: Path, budget: float | None, *, each: float = 10.0, **options):
    """Results by name, in the order that they came in: every trial takes ten seconds, by estimate and by the clock."""
    clock, order = Clock(), []

    def trial(task: TrialTask) -> TrialResult:
        clock.now += each
        order.append(task.trial.name)
        # without a speed of its own, from which longer trials would be estimated
        made = result(task.trial.family, task.trial.size, task.trial.seed)
        made = replace(made, wall_seconds=each, tokens_per_second=0.0)
        level = ACCURACY.get((task.trial.family, task.trial.size), 0.8)
        return with_predictions(task.predictions.parent, made, accuracy=level)

    def speed(task, train, test, threads) -> Speed:
        return Speed(each, 0.0, 0.0, 1_000)

    run_study(
        settings,
        out,
        progress=options.pop("progress", False),
        run_trial=trial,
        measure=no_cost,
        budget=budget,
        measure_speed=speed,
        clock=clock,
        **options,
    )
    return order


@pytest.mark.slow
def test_a_budget_goes_where_the_gap_is_undecided(settings, tmp_path, capsys):
    order = run(settings, tmp_path / "study", 1e6, progress=True)
    assert order[:6] == [f"{family}-{size}-0" for size in (50, 100, 400) for family in ("encoder", "lstm")]
    assert {name.rpartition("-")[0] for name in order[6:]} <= {"encoder-100", "lstm-100", "encoder-400", "lstm-400"}
    assert "encoder-400-1" in order, "the curves' gap there is near one point"
    assert not any(name.startswith(("encoder-50-", "lstm-50-")) for name in order[6:])
    told = capsys.readouterr().err
    assert (
        "left out: encoder-50-1, lstm-50-1, encoder-50-2 and 1 more: the gap to the encoder is decided; about 40 s"
        in (told)
    )
    assert run(settings, tmp_path / "again", 1e6) == order, "the same results, the same choices"
    write_report(tmp_path / "study")
    assert "This study is not complete" in (tmp_path / "study" / "report.md").read_text()


@pytest.mark.slow
def test_a_budget_is_kept_and_a_new_one_goes_on(settings, tmp_path, capsys):
    out = tmp_path / "study"
    first = run(settings, out, 35.0)
    assert first == ["encoder-50-0", "lstm-50-0", "encoder-100-0"], "a fourth would end after 40 s"
    assert run(settings, out, 30.0, progress=True) == ["lstm-100-0", "encoder-400-0", "lstm-400-0"]
    told = capsys.readouterr().err
    assert "3 of 18 trials are done already" in told
    assert "20 s of the budget left" in told
    assert "the budget does not suffice; about" in told
    everything = run(settings, tmp_path / "at once", 1e6)
    assert [*first, "lstm-100-0", "encoder-400-0", "lstm-400-0", *run(settings, out, 1e6)] == everything
    assert len(run(settings, out, None)) == 18 - len(everything), "without a budget the rest of the grid"


def test_a_budget_for_no_trial(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"--budget: the shortest trial, .*-50-.*, takes about 10 s, longer than 5 s"):
        run(settings, tmp_path / "study", 5.0)


def test_a_plan_that_is_there_is_used(settings, tmp_path):
    run(settings, tmp_path / "study", 35.0)
    plan = read_plan(tmp_path / "study")
    assert set(plan.seconds.values()) == {10.0}
    document = json.loads((tmp_path / "study" / "plan.json").read_text())
    del document["crc32"]
    document["speeds"]["encoder"]["start"] = document["speeds"]["lstm"]["start"] = 1e5
    (tmp_path / "other").mkdir()
    run(settings, tmp_path / "other", 10.0)
    (tmp_path / "other" / "plan.json").write_text(json.dumps(document))
    # of finished trials' families the trials tell; lstm has none there
    assert "lstm-50-0" not in run(settings, tmp_path / "other", 1000.0)
    document["overrides"] = ["lstm.training.epochs=9"]  # at another speed
    (tmp_path / "other" / "plan.json").write_text(json.dumps(document))
    assert "lstm-50-0" in run(settings, tmp_path / "other", 1000.0)


@pytest.mark.slow
def test_a_budget_with_several_processes(settings, tmp_path):
    """The next trial is chosen when a process is free, by what is known then."""
    out = tmp_path / "study"
    small = replace(settings, sizes=parse_sizes("50"), seeds=parse_seeds("2"))
    speed = lambda task, train, test, threads: Speed(10.0, 0.0, 0.0, 1_000)  # noqa: E731
    found = run_study(
        small, out, jobs=2, progress=False, run_trial=stand_in, measure=no_cost, budget=1e6, measure_speed=speed
    )
    # without predictions one seed has no interval: another is run
    assert [one.trial.name for one in found] == ["encoder-50-0", "lstm-50-0", "encoder-50-1", "lstm-50-1"]
    assert all(len((out / "marks" / one.trial.name).read_text().splitlines()) == 1 for one in found)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_tasks_are_asked_for_when_a_process_is_free(tmp_path, jobs):
    """And again after each result, though there were none before."""
    (tmp_path / "runs").mkdir()
    tasks = [
        TrialTask(Trial(50, seed, "lstm"), None, tmp_path, tmp_path, 0, None, tmp_path / "runs" / "one")  # type: ignore[arg-type]
        for seed in range(4)
    ]
    seen: list[int] = []
    given: list[int] = []

    def next_task() -> TrialTask | None:
        if len(given) == 4 or (given and len(seen) < len(given)):
            return None  # one at a time, whatever the number of processes
        given.append(len(seen))
        return tasks[len(given) - 1]

    for found in run_trials(next_task, jobs, stand_in):
        seen.append(found.trial.seed)  # noqa: PERF401 -- next_task looks at it meanwhile
    assert seen == [0, 1, 2, 3]
    assert given == [0, 1, 2, 3]
