import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated_study import no_cost, result, with_predictions
from subtested import as_subtests
from typer.testing import CliRunner

from penstock.engine.cli import app
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError
from penstock.engine.study.directory import read_study
from penstock.engine.study.estimate import Load, Loads, Speed, speed_of
from penstock.engine.study.findings import Findings
from penstock.engine.study.measure_speed import line_through, measure_speed
from penstock.engine.study.method import method_blocks
from penstock.engine.study.money import Prices
from penstock.engine.study.opened import opened
from penstock.engine.study.plan import Disk, Plan, expected_and_taken, in_parallel, read_plan
from penstock.engine.study.plan_tables import plan_lines
from penstock.engine.study.planning import plan_study
from penstock.engine.study.progress import StudyProgress
from penstock.engine.study.resolution import Resolution, assumed, discordant_share, measured, resolution_lines
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.sizes import parse_max_sizes, parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.study.trials import Taught, Trial, TrialResult

FAMILIES = ("majority", "linear", "bag", "lstm", "encoder")


@pytest.fixture
def settings(tiny) -> StudySettings:
    """Five families."""
    return StudySettings(
        **tiny,
        sizes=parse_sizes("40,200"),
        seeds=parse_seeds("2,200:1"),
        families=FAMILIES,
        max_sizes=parse_max_sizes(["encoder=40"], FAMILIES),
        max_test=50,
        overrides=("lstm.model.hidden_size=8", "lstm.model.num_layers=1"),
    )


def at(start: float, train: float, predict: float):
    """Stands in for `measure_speed`; notes what it is asked for."""

    def measure(task: TrialTask, train_store: Store, test_store: Store, threads: int) -> Speed:
        measure.asked.append((task.trial.name, threads))
        return Speed(start, train, predict, parameters=1_000)

    measure.asked = []
    return measure


def plan(settings: StudySettings, out: Path, measure=None, **options) -> Plan:
    return plan_study(settings, out, progress=False, measure=measure or at(1.0, 0.0, 0.0), **options)


def test_a_plan_says_what_is_to_do_and_trains_nothing(settings, tmp_path):
    measure = at(2.0, 0.0, 0.0)
    made = plan(settings, tmp_path / "study", measure)
    assert set(made.seconds) == {
        *(f"{family}-40-{seed}" for family in FAMILIES for seed in (0, 1)),
        *(f"{family}-200-0" for family in FAMILIES if family != "encoder"),
    }
    assert (made.done, made.to_do) == ([], list(made.seconds))
    largest = {"majority-200-0", "linear-200-0", "bag-200-0", "lstm-200-0", "encoder-40-0"}
    assert sorted(name for name, _ in measure.asked) == sorted(largest)
    assert set(made.seconds.values()) == {2.0}
    assert made.hours == pytest.approx(14 * 2 / 3600)
    assert not list((tmp_path / "study" / "trials").iterdir())
    assert not list((tmp_path / "study" / "costs").iterdir())
    assert read_plan(tmp_path / "study") == made
    run_study(settings, tmp_path / "study", progress=False, run_trial=quick, measure=no_cost)  # goes on from there


def quick(task: TrialTask) -> TrialResult:
    """What took a second of training and two in all."""
    return TrialResult(
        task.trial,
        "done",
        accuracy=0.5,
        macro_f1=0.5,
        loss=1.0,
        epochs=2.0,
        train_examples=task.trial.size,
        test_examples=50,
        train_seconds=1.0,
        tokens_per_second=100.0,
        train_cpu_seconds=1.0,
        wall_seconds=2.0,
    )


def test_finished_trials_take_the_place_of_a_measurement(settings, tmp_path):
    small = replace(settings, sizes=parse_sizes("40"), families=("bag", "lstm"), max_sizes={})
    run_study(small, tmp_path / "study", progress=False, run_trial=quick, measure=no_cost)
    measure = at(0.0, 1.0, 0.0)
    made = plan(replace(settings, seeds=parse_seeds("3")), tmp_path / "study", measure)
    assert {name.split("-")[0] for name, _ in measure.asked} == {"majority", "linear", "encoder"}
    assert made.done == ["bag-40-0", "lstm-40-0", "bag-40-1", "lstm-40-1"]
    assert made.seconds["lstm-40-2"] == 2.0, "as long as the longest of the same size"
    assert made.speeds["lstm"].finished in ("lstm-40-0", "lstm-40-1")
    assert made.seconds["lstm-200-0"] > 10 * made.seconds["lstm-40-2"], "100 tokens/s, by its epochs and tokens"
    lines = " ".join(plan_lines(made))
    assert "By finished trials of this study: bag (bag-40-1), lstm (lstm-40-1)." in lines


def test_a_small_finished_trial_tells_nothing_of_a_far_larger_one(settings, tmp_path):
    grown = replace(settings, sizes=parse_sizes("20,40,200"), families=("lstm",), max_sizes={}, seeds=parse_seeds("1"))
    small = replace(grown, sizes=parse_sizes("20"))
    run_study(small, tmp_path / "study", progress=False, run_trial=quick, measure=no_cost)
    measure = at(7.0, 0.0, 0.0)
    made = plan(grown, tmp_path / "study", measure)
    assert [name for name, _ in measure.asked] == ["lstm-200-0"]
    assert (made.seconds["lstm-20-0"], made.seconds["lstm-200-0"]) == (2.0, 7.0)
    assert made.seconds["lstm-40-0"] not in (2.0, 7.0), "by its speed"
    assert made.speeds["lstm"] == Speed(7.0, 0.0, 0.0, 1_000), "for a budget to go by"


def test_a_grid_without_the_finished_trials_is_measured(settings, tmp_path):
    small = replace(settings, sizes=parse_sizes("40"), families=("lstm",), max_sizes={})
    run_study(small, tmp_path / "study", progress=False, run_trial=quick, measure=no_cost)
    measure = at(1.0, 0.0, 0.0)
    made = plan(replace(small, sizes=parse_sizes("200")), tmp_path / "study", measure)
    assert measure.asked[0][0] == "lstm-200-0"
    assert made.seconds == {"lstm-200-0": 1.0}


def test_loads_are_tokens_by_epochs(settings, tmp_path):
    with opened(
        settings, tmp_path / "study", jobs=1, keep_runs=False, progress=False, shown=StudyProgress(False)
    ) as study:
        mean = study.train.num_tokens / study.train.num_examples
        tested = 50 * study.test.num_tokens / study.test.num_examples
        loads = Loads(study.train, study.test)
        tasks = {task.trial.name: task for task in study.tasks}
        assert loads(tasks["linear-200-0"]) == Load(pytest.approx(200 * mean), pytest.approx(tested))
        lstm = tasks["lstm-200-0"]
        epochs, fraction = lstm.settings.training.epochs, lstm.settings.data.validation_fraction
        load = loads(lstm)
        assert load.trained == pytest.approx(epochs * 200 * (1 - fraction) * mean)
        assert load.predicted == pytest.approx(epochs * 200 * fraction * mean + tested)
        few = lstm.settings.replace({"training.max_steps": 3})
        load = loads(replace(lstm, settings=few))
        assert load.trained == pytest.approx(3 * min(few.data.tokens, 200 * (1 - fraction) * mean))
        often = lstm.settings.replace({"training.evaluate_every_steps": 1})
        assert loads(replace(lstm, settings=often)).predicted > loads(lstm).predicted


def test_the_speed_of_a_finished_trial_gives_its_time_back():
    done = quick(SimpleTask(Trial(40, 0, "lstm")))
    load = Load(100.0, 300.0)
    assert speed_of(done, load).seconds(load) == pytest.approx(2.0)
    older = replace(done, wall_seconds=None)
    assert speed_of(older, load).seconds(load) == pytest.approx(1.0 + 300 / 100 / 3), "a forward pass is a third"


@as_subtests(
    "again, expected",
    [(0.0, 2.0), (1.5, 2.0), (None, 1.0 + 300 / 100 / 3)],
)
def test_what_a_teacher_took_in_a_trial_is_not_of_the_trials_own_speed(again, expected):
    """A second of training and one of predictions; what an earlier penstock did not note is not guessed at."""
    taught = Taught(9000, 0, 600.0, 600.0, 50.0, 50.0, again)
    done = replace(quick(SimpleTask(Trial(40, 0, "lstm-distilled"))), taught=taught)
    done = replace(done, wall_seconds=2.0 + 50.0 + (again or 0.0))
    load = Load(100.0, 300.0)
    assert speed_of(done, load).seconds(load) == pytest.approx(expected)


class SimpleTask:
    def __init__(self, trial: Trial) -> None:
        self.trial = trial


@as_subtests(
    "points, expected",
    [
        ([(100, 2.0)], (0.0, 0.02)),
        ([(100, 2.0), (400, 5.0)], (1.0, 0.01)),
        ([(100, 5.0), (400, 4.0)], (3.6, 0.001)),  # noise: the larger was faster
        ([(100, 1.0), (100, 1.5)], (0.0, 0.015)),
        ([(0, 1.0)], (0.0, 1.0)),
    ],
)
def test_a_baselines_cost_by_its_last_two_fits(points, expected):
    assert line_through(points) == pytest.approx(expected)


@as_subtests("seconds, jobs, expected", [([], 1, 0), ([3, 1, 2], 1, 6), ([3, 1, 2], 2, 3), ([9, 1, 2], 2, 9)])
def test_trials_side_by_side(seconds, jobs, expected):
    assert in_parallel(seconds, jobs) == expected


@pytest.mark.parametrize("family", [*FAMILIES, "frozen"])
def test_speeds_are_measured(settings, tmp_path, family):
    families = replace(settings, families=(family,), max_sizes={})
    with opened(
        families, tmp_path / "study", jobs=1, keep_runs=False, progress=False, shown=StudyProgress(False)
    ) as study:
        task = study.tasks[-1]
        found = measure_speed(task, study.train, study.test, 1, seconds=0.05)
        assert found.train > 0
        assert found.predict > 0
        assert found.start >= 0
        assert found.finished is None
        assert found.parameters > 0
        assert not task.run.exists()


def test_rows_that_settle_a_difference():
    """2 p (1 - p) (1 - rho), and what Connor's formula makes of it."""
    assert discordant_share(0.6) == pytest.approx(0.288)
    sixty, ninety = assumed(4000)
    assert sixty.difference == pytest.approx(0.0238, abs=1e-4)
    assert ninety.difference == pytest.approx(0.0146, abs=1e-4)
    assert sixty.rows_for_threshold == pytest.approx(22_600, rel=0.01)
    (line, clusters) = resolution_lines([sixty, ninety], None, None)
    assert line.startswith(
        "4,000 test rows settle 2.4 points where about 60% of answers are right (1.5 points at 90%), with 80% power; "
        "one point takes about 23,000 rows (8,500 at 90%)."
    )
    assert "--cluster" in clusters
    (_, clusters) = resolution_lines([sixty], 80, "film")
    assert clusters.startswith("The rows belong to 80 groups by 'film'")
    assert Resolution.at(3, 0.6, 0.288).difference is None
    assert "settle no difference" in resolution_lines([Resolution.at(3, 0.6, 0.288)], None, None)[0]
    assert Resolution.at(4000, 1.0, 0.0).rows_for_threshold is None


def test_finished_trials_tell_how_often_two_models_differ(tmp_path):
    trials = tmp_path / "trials"
    trials.mkdir()
    results = [
        with_predictions(trials, result(family, size, 0)) for family in ("lstm", "encoder") for size in (500, 2000)
    ]
    (found,) = measured(trials, results, 4000)
    assert (found.rows, found.of) == (4000, "lstm")
    by_name = {one.trial.name: one for one in results}
    assert found.accuracy == by_name["lstm-2000-0"].accuracy
    assert 0 < found.discordant < discordant_share(found.accuracy, 0.0)
    assert measured(trials, results[:2], 4000) == []


def test_disk(settings, tmp_path):
    made = plan(settings, tmp_path / "a")
    assert made.disk.runs == 4 * 7 * 1_000, "the one in progress"
    assert plan(settings, tmp_path / "b", jobs=2).disk.runs == 2 * 4 * 7 * 1_000
    kept = plan(settings, tmp_path / "c", keep_runs=True).disk
    assert kept.runs == 8 * 4 * 7 * 1_000, "of what the loop trains"
    assert made.disk.encoded == 0
    assert 0 < made.disk.predictions < 1_000_000
    assert made.disk.stores == 0, "they are not the study's own"
    all_rows = {"sizes": parse_sizes("40,400"), "seeds": parse_seeds("2,400:1")}
    frozen = replace(settings, families=("frozen",), max_sizes={}, **all_rows)
    encoded = plan(frozen, tmp_path / "d").disk.encoded
    width = json.loads((Path(settings.encoder) / "config.json").read_text())["hidden_size"]
    assert encoded == (400 + 50) * (8 + 2 * width)
    pretrained = replace(settings, families=("lstm-pretrained",), max_sizes={}, overrides=(), pretrain_tokens=1000)
    made = plan(pretrained, tmp_path / "e")
    assert made.disk.pretraining == made.disk.runs == 4 * 7 * 1_000, "it stays beside the trial in progress"
    assert made.disk.total == sum(dataclasses.astuple(made.disk))
    assert "the pretraining;" in plan_lines(made)[-3]


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        (None, None),
        (1000.0, "All of it fits into a budget of 17 min."),
        (60.0, "Of a budget of 60 s, first seeds take 45 s; what is left goes to further seeds, where the gap to"),
        (30.0, "A budget of 30 s does not suffice for all first seeds, which take 45 s."),
    ],
)
def test_a_plan_within_a_budget(settings, tmp_path, budget, line):
    made = plan(settings, tmp_path / "study", at(5.0, 0.0, 0.0))  # nine first seeds, five second ones
    lines = plan_lines(made, budget)
    assert lines[0].startswith("14 trials to do, 0 done: about 70 s.")
    assert len(lines) == len(plan_lines(made)) + (line is not None)
    assert line is None or lines[1].startswith(line)


@as_subtests(
    "budget, said",
    [
        (1800.0, "A budget of 30 min does not suffice for all first seeds, with the pretraining, which take 2.2 h."),
        (8200.0, "Of a budget of 2.3 h, first seeds, with the pretraining, take 2.2 h; what is left goes to further"),
        (9000.0, "All of it fits into a budget of 2.5 h."),
    ],
)
def test_a_budget_has_to_suffice_for_the_pretraining_too(budget, said):
    names = ("lstm-pretrained-1000-0", "lstm-pretrained-1000-1")
    speeds = {"lstm-pretrained": Speed(0.0, 1e-4, 1e-4)}
    made = Plan(dict.fromkeys(names, 600.0), [], speeds, 1, False, Disk(0, 0, 0, 0), assumed(100), 100)
    made = replace(made, pretraining=7200.0, pretraining_tokens=7.2e7)
    assert any(line.startswith(said) for line in plan_lines(made, budget)), plan_lines(made, budget)


@as_subtests(
    "prices, said",
    [
        (Prices(hour=3.6), "At 3.6 an hour of this machine: the trials to do cost about 0.07. The report says"),
        (Prices(label=0.05), "At 0.05 a label: the 200 labels of the largest size 10.00. The report says"),
        (
            Prices(0.05, 3.6, 1e6),
            "At 0.05 a label, 3.6 an hour of this machine, 1,000,000 predictions: the trials to do cost about 0.07, "
            "the 200 labels of the largest size 10.00. The report says what each family's model costs.",
        ),
    ],
)
def test_a_plan_in_money(prices, said, settings, tmp_path):
    """Prices stay with the study, whose report needs them; a start without them leaves them."""
    made = plan(replace(settings, prices=prices), tmp_path / "study", at(5.0, 0.0, 0.0))
    lines = plan_lines(made, None, Prices.in_study(read_study(tmp_path / "study")))
    assert len(lines) == len(plan_lines(made)) + 1
    assert lines[1].startswith(said), lines[1]
    plan(settings, tmp_path / "study")
    assert Prices.in_study(read_study(tmp_path / "study")) == prices


def test_an_interrupted_study_keeps_its_prices(settings, tmp_path):
    def stopped(task: TrialTask) -> TrialResult:
        raise KeyboardInterrupt

    priced = replace(settings, prices=Prices(0.05, 0.4, 1e6))
    with pytest.raises(KeyboardInterrupt):
        run_study(priced, tmp_path / "study", progress=False, run_trial=stopped, measure=no_cost)
    run_study(settings, tmp_path / "study", progress=False, run_trial=quick, measure=no_cost)
    assert Findings.of(tmp_path / "study").prices == Prices(0.05, 0.4, 1e6)


def test_a_plan_knows_the_groups_of_test_rows(settings, tmp_path):
    rows = "".join(f"{'good' if row % 2 else 'bad'} film {row},{row % 2},{row // 10}\n" for row in range(60))
    (tmp_path / "test.csv").write_text("text,label,film\n" + rows)
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"film {row},{row % 2}\n" for row in range(60)))
    sources = {"train": (str(tmp_path / "train.csv"),), "test": (str(tmp_path / "test.csv"),)}
    small = replace(
        settings,
        **sources,
        cluster="film",
        max_test=None,
        families=("majority",),
        max_sizes={},
        sizes=parse_sizes("40"),
    )
    made = plan(small, tmp_path / "study")
    assert (made.test_rows, made.clusters, made.column) == (60, 6, "film")
    assert made.disk.stores > 0
    assert "The rows belong to 6 groups by 'film'" in " ".join(plan_lines(made))


def test_threads_are_those_of_the_trials(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.engine.study.planning.os.cpu_count", lambda: 8)
    measure = at(1.0, 0.0, 0.0)
    plan(settings, tmp_path / "study", measure, jobs=4)
    assert {threads for _, threads in measure.asked} == {2}


def test_what_is_wrong_with_a_study_is_wrong_with_its_plan(settings, tmp_path):
    with pytest.raises(ConfigError, match="larger than the training data"):
        plan(replace(settings, sizes=parse_sizes("1k")), tmp_path / "study")
    plan(settings, tmp_path / "study")
    run_study(settings, tmp_path / "study", progress=False, run_trial=quick, measure=no_cost)
    with pytest.raises(RunError, match="another study"):
        plan(replace(settings, seed=1), tmp_path / "study")


def test_a_plan_alone_is_no_study_that_has_begun(settings, tmp_path):
    plan(settings, tmp_path / "study")
    with pytest.raises(ConfigError, match="the test data has 60"):
        plan(replace(settings, max_test=61), tmp_path / "study")
    assert read_plan(tmp_path / "study") is None, "it was of another study"
    plan(replace(settings, seed=1), tmp_path / "study")


def test_a_plan_that_cannot_be_read(tmp_path):
    assert read_plan(tmp_path) is None
    for content in ("{", "[]", '{"format": 2}', '{"format": 1, "seconds": {}}'):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(RunError, match=r"plan\.json: not a study's plan"):
            read_plan(tmp_path)


def test_the_report_compares_the_plan_with_what_was(settings, tmp_path):
    made = plan(settings, tmp_path / "study", at(5.0, 0.0, 0.0))
    results = run_study(settings, tmp_path / "study", progress=False, run_trial=quick, measure=no_cost)
    assert expected_and_taken(made, results) == (14 * 5.0, 14 * 2.0)
    assert expected_and_taken(replace(made, done=list(made.seconds)), results) is None
    text = str(method_blocks(Findings.of(tmp_path / "study")))
    assert "Trials that the study's plan put at 70 s, one after the other, took 28 s." in text
    assert "The trials took 28 s in all, one after the other." in text


@pytest.mark.slow
def test_a_plan_from_the_command_line(settings, tmp_path):
    out = tmp_path / "study"
    options = ["--sizes", "40,80", "--seeds", "1", "--families", "linear,bag,encoder", "--max-test", "50"]
    sources = ["--train", "synthetic:reviews?n=100&seed=0", "--test", "synthetic:reviews?n=60&seed=1"]
    options += ["--price-hour", "0.4"]
    command = ["study", "--plan", *sources, "--encoder", settings.encoder, *options, "--out", str(out)]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert re.search(r"encoder +│ +1 × <?\d+ s", done.output)
    assert "6 trials to do, 0 done: about" in done.output
    assert "50 test rows settle" in done.output
    assert "At 0.4 an hour of this machine: the trials to do cost about" in done.output
    assert "stores, which are there already" in done.output
    assert not list((out / "trials").iterdir())
    assert read_plan(out).test_rows == 50
