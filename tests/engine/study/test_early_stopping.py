"""What a plan expects of trainings that may stop early."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from penstock.engine.study.early_stopping import NEVER, Stopping, Stoppings, expected_share
from penstock.engine.study.estimate import Estimates, Limits, Load, Loads, Speed
from penstock.engine.study.plan import Disk, Plan, read_plan, write_plan
from penstock.engine.study.plan_tables import plan_lines, plan_table
from penstock.engine.study.resolution import assumed
from penstock.engine.study.trials import Trial, TrialResult
from penstock.engine.training.settings import Settings

MEAN, TEST_TOKENS, VALIDATION = 50, 1000.0, 0.1


def task(size: int, seed: int = 0, family: str = "lstm", **training) -> SimpleNamespace:
    """A trial whose texts have 50 tokens each; a tenth of them validate."""
    values = {f"training.{name}": value for name, value in training.items()}
    settings = Settings().replace({"data.validation_fraction": VALIDATION, "data.tokens_per_batch": 500} | values)
    return SimpleNamespace(
        trial=Trial(size, seed, family),
        settings=SimpleNamespace(flat=dict) if family == "linear" else settings,
        max_test=None,
        examples=size,
        teacher=None,
    )


@pytest.fixture
def loads(monkeypatch) -> Loads:
    monkeypatch.setattr(Loads, "_lengths", lambda self, task: (MEAN, TEST_TOKENS))
    return Loads(None, None)  # type: ignore[arg-type]


def done(task, epochs: float, wall: float | None = None) -> TrialResult:
    return TrialResult(
        task.trial, "done", epochs=epochs, train_seconds=10.0, tokens_per_second=100.0, wall_seconds=wall
    )


# evaluations at most, patience: where the best one may be, each as likely, and where a run ends then
RULE = {
    (12, 4): [8, 9, 10, 11, 12, 12, 12, 12, 12],
    (24, 8): [16, 17, 18, 19, 20, 21, 22, 23, *[24] * 9],
    (3, 2): [3, 3, 3],
    (2, 1): [2, 2],
    (1, 1): [1],
    (5, 5): [5],
    (5, 9): [5],
    (12, 0): [12],
    (100, 1): [*range(35, 101), 100],
}


@pytest.mark.parametrize(("evaluations", "patience"), RULE)
def test_the_rule(evaluations, patience):
    ends = RULE[evaluations, patience]
    assert expected_share(evaluations, patience) == pytest.approx(np.mean(ends) / evaluations)


# settings of a training of 1,000 rows (900 in an epoch, 4.5 batches' worth a hundred rows): tokens at most, evaluations
LIMITS = {
    "epochs": ({"epochs": 12, "patience": 4}, 12 * 45_000, 12, 4),
    "steps": ({"epochs": None, "max_steps": 180, "patience": 4}, 90_000, 2, 4),
    "both": ({"epochs": 12, "max_steps": 180, "patience": 1}, 90_000, 2, 1),
    "often": ({"epochs": 2, "evaluate_every_steps": 18, "patience": 3}, 90_000, 10, 3),
    "never": ({"epochs": 12, "patience": 0}, 12 * 45_000, 12, 0),
}


@pytest.mark.parametrize("kind", LIMITS)
def test_limits_and_what_is_expected_of_them(loads, kind):
    settings, trained, evaluations, patience = LIMITS[kind]
    own = task(1000, **settings)
    limits = loads.limits(own)
    assert limits == Limits(trained, 45_000, limits.every, patience)
    assert limits.evaluations == evaluations
    found = Stoppings([own], loads, {}).of(own)
    stops = 0 < patience < evaluations
    assert found == (Stopping(expected_share(evaluations, patience), 0) if stops else NEVER)
    load = loads(own, found.share)
    assert load.trained == pytest.approx(trained * found.share)
    assert load.predicted <= loads(own).predicted
    assert (load == loads(own)) == (not stops or found.share == 1.0)


def test_finished_trials_of_the_nearest_size_tell(loads):
    settings = {"epochs": 12, "patience": 4}
    small, large = [[task(size, seed, **settings) for seed in range(3)] for size in (500, 8000)]
    other, unseen = task(2000, **settings), task(2000, family="lstm-embeddings", **settings)
    finished = {
        small[0].trial: done(small[0], 6.0),
        small[1].trial: done(small[1], 9.0),
        large[0].trial: done(large[0], 12.0),
        large[1].trial: TrialResult(large[1].trial, "diverged"),
    }
    stoppings = Stoppings([*small, *large, other, unseen], loads, finished)
    assert stoppings.of(small[2]) == Stopping(pytest.approx(7.5 / 12), 2)
    assert stoppings.of(large[2]) == Stopping(1.0, 1)
    assert stoppings.of(other) == Stopping(pytest.approx(7.5 / 12), 2), "as near to both: the smaller one"
    assert stoppings.of(task(5000, **settings)) == Stopping(1.0, 1)
    assert stoppings.of(unseen) == Stopping(expected_share(12, 4), 0), "of another family"
    assert stoppings.of(task(500, family="linear")) == NEVER
    # what nothing could stop tells nothing of what may stop
    alone = task(500, epochs=12, patience=0)
    assert Stoppings([alone], loads, {alone.trial: done(alone, 12.0)}).of(small[0]).trials == 0


def test_expected_times_lie_below_the_most(loads):
    settings = {"epochs": 12, "patience": 4}
    tasks = [task(size, seed, **settings) for size in (500, 2000) for seed in range(3)]
    linear = task(500, family="linear")
    speed = Speed(1.0, 1e-4, 1e-5)
    estimates = Estimates([*tasks, linear], loads, {"lstm": speed, "linear": speed})
    most, expected = estimates.seconds({}), estimates.expected({})
    share = expected_share(12, 4)
    for own in tasks:
        assert most[own.trial] == pytest.approx(speed.seconds(loads(own)))
        assert expected[own.trial] == pytest.approx(speed.seconds(loads(own, share)))
        assert expected[own.trial] < most[own.trial]
    assert expected[linear.trial] == most[linear.trial]
    finished = {tasks[0].trial: done(tasks[0], 6.0, wall=20.0), tasks[1].trial: done(tasks[1], 9.0, wall=30.0)}
    most, expected = estimates.seconds(finished), estimates.expected(finished)
    assert (most[tasks[2].trial], expected[tasks[2].trial]) == (30.0, 25.0)
    # of the other size: by the speed of the largest finished one, and by how much of their epochs they ran
    other = tasks[5]
    assert expected[other.trial] < 0.75 * most[other.trial]


def test_the_plan_says_what_it_assumes(tmp_path: Path):
    plan = Plan(
        seconds={"lstm-500-0": 100.0, "lstm-500-1": 100.0, "encoder-500-0": 200.0, "linear-500-0": 5.0},
        done=["encoder-500-0"],
        speeds={"lstm": Speed(0.0, 1e-4, 1e-5), "linear": Speed(0.0, 1e-4, 1e-5)},
        jobs=1,
        keep_runs=False,
        disk=Disk(0, 0, 0, 0),
        resolution=assumed(100),
        test_rows=100,
        expected={"lstm-500-0": 60.0, "lstm-500-1": 60.0, "encoder-500-0": 200.0, "linear-500-0": 5.0},
        stopping={"lstm": Stopping(0.91, 0), "encoder": Stopping(0.6, 3), "bag": Stopping(0.5, 1)},
    )
    write_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan
    text = " ".join(plan_lines(plan))
    assert "3 trials to do, 1 done: about 2 min, 3 min if no training stops early." in text
    assert "expected are lstm 91% of the epochs" in text
    assert "encoder 60% (3 trials), bag 50% (1 trial) of the epochs" in text
    assert "2 × 60 s" in [cell for column in plan_table(plan).columns for cell in column.cells]
    # a plan of an earlier penstock knew the most alone
    older = replace(plan, expected={}, stopping={})
    assert older.likely == plan.seconds
    assert "about 3 min. " in " ".join(plan_lines(older))
    assert older.likely_hours == older.hours == pytest.approx(205 / 3600)


def test_a_trial_reads_whole_evaluations(loads):
    own = task(1000, epochs=10, patience=4)
    assert loads(own, 0.55) == Load(pytest.approx(0.55 * 10 * 45_000), 6 * 100 * MEAN + TEST_TOKENS)
