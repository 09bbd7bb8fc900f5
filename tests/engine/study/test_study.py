import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fabricated_study import no_cost, result, stand_in
from spawned import dies_once, is_killed, is_stopped

from penstock.engine.cli.stopping import Stopped, ended_by_signals
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.data.sources import Reading
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, ModelError, NonFiniteError, RunError, SourceError
from penstock.engine.study import costs, measure_cost
from penstock.engine.study import run_trial as run_trial_module
from penstock.engine.study import study as study_module
from penstock.engine.study.check import check_plan
from penstock.engine.study.directory import claim
from penstock.engine.study.estimate import Speed
from penstock.engine.study.findings import Findings
from penstock.engine.study.opened import open_or_prepare
from penstock.engine.study.run_trial import TrialTask, run_trial
from penstock.engine.study.settings import StudySettings, overrides_for, subset_seed, trial_settings
from penstock.engine.study.sizes import parse_max_sizes, parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.study.trials import Trial, TrialResult
from penstock.engine.study.workers import run_trials
from penstock.engine.training.reading import read_by
from penstock.engine.training.recipe import TrainingSet, recipe

FAMILIES = ("lstm", "lstm-embeddings", "encoder")


@pytest.fixture
def study(minilm: str, stores: dict[str, tuple[str]]) -> StudySettings:
    return StudySettings(
        **stores,
        encoder=minilm,
        families=FAMILIES,
        sizes=parse_sizes("50,100,100%"),
        seeds=parse_seeds("2,400:1"),
        max_sizes=parse_max_sizes(["encoder=100"], FAMILIES),
    )


def run(study: StudySettings, out: Path, run_trial=stand_in, **options) -> list[TrialResult]:
    return run_study(study, out, progress=False, run_trial=run_trial, measure=no_cost, **options)


def begin(out: Path) -> None:
    """As if its first trial had begun, without which another study takes the place."""
    (out / "runs" / "lstm-50-0").mkdir()


def alone(results: Iterable[TrialResult]) -> list[TrialResult]:
    """As if they had run one at a time."""
    return [replace(made, jobs=1) for made in results]


def marks(out: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in (out / "marks").iterdir()}


def test_every_trial_of_the_grid_is_run_once(study, tmp_path):
    results = run(study, tmp_path / "study")
    names = [made.trial.name for made in results]
    assert len(names) == len(set(names)) == 3 * 2 * 2 + 2
    assert "encoder-400-0" not in names
    assert {"lstm-400-0", "lstm-50-1"} <= set(names)
    assert set(marks(tmp_path / "study").values()) == {1}
    assert {path.stem for path in (tmp_path / "study" / "trials").iterdir()} == set(names)
    described = json.loads((tmp_path / "study" / "study.json").read_text())
    assert described["train"]["examples"] == 400
    assert sorted(described["trials"]) == sorted(names)


def test_an_interrupted_study_goes_on_where_it_was(study, tmp_path):
    ran = []

    def stops_at_the_fifth(task: TrialTask) -> TrialResult:
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append(task.trial.name)
        return stand_in(task)

    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "study", stops_at_the_fifth)
    assert sorted(path.stem for path in (tmp_path / "study" / "trials").iterdir()) == sorted(ran)
    results = run(study, tmp_path / "study")
    assert set(marks(tmp_path / "study").values()) == {1}
    assert results == run(study, tmp_path / "other")


def test_a_study_may_grow(study, tmp_path):
    run(study, tmp_path / "study")
    grown = replace(study, sizes=parse_sizes("50,100,200,400"), seeds=parse_seeds("3"))
    assert len(run(grown, tmp_path / "study")) == 3 * 2 * 3 + 2 * 3 * 2
    assert set(marks(tmp_path / "study").values()) == {1}


def test_the_machine_is_that_of_the_last_trial(study, tmp_path, monkeypatch):
    """A start that trains nothing leaves it."""
    monkeypatch.setattr(study_module, "device_name", lambda: "the first")
    run(study, tmp_path / "study")
    read = lambda: json.loads((tmp_path / "study" / "study.json").read_text())["machine"]  # noqa: E731
    before = read()
    assert (before["device"], before["jobs"]) == ("the first", 1)
    monkeypatch.setattr(study_module, "device_name", lambda: "the second")
    run(study, tmp_path / "study", jobs=2)
    assert read() == before
    run(replace(study, seeds=parse_seeds("3,400:1")), tmp_path / "study")
    assert read()["device"] == "the second"


def test_costs_are_those_of_the_largest_trial(study, tmp_path, capsys):
    measured = []

    def measure(family, settings, train, test):
        measured.append((family, settings.model.num_layers))
        return no_cost(family)

    layers = {50: 1, 100: 1, 400: 2}

    def deeper(settings, trial, train):
        found = trial_settings(settings, trial, train)
        return found.replace({"model.num_layers": layers[trial.size]})

    own = replace(study, families=("lstm",), max_sizes={}, sizes=parse_sizes("50,100"), seeds=parse_seeds("1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.engine.study.opened.trial_settings", deeper)
        for sizes in ("50,100", "50,100,400", "50,100,400"):
            grown = replace(own, sizes=parse_sizes(sizes))
            run_study(grown, tmp_path / "study", run_trial=stand_in, measure=measure)
    assert measured == [("lstm", 1), ("lstm", 2)]
    assert (
        "is of something else than the largest trial now (model.num_layers: 1 then, 2 now)" in capsys.readouterr().err
    )


def test_a_smaller_grid_leaves_the_larger_one_planned(study, tmp_path, capsys):
    """Costs stay those of the largest trial, and what is missing is known."""
    out, measured = tmp_path / "study", []

    def measure(family, settings, train, test):
        measured.append(f"{family} {getattr(settings, 'examples', '')}".strip())
        return no_cost(family)

    def made(task: TrialTask) -> TrialResult:
        if task.trial.name == "lstm-100-1":
            raise KeyboardInterrupt
        return TrialResult(task.trial, "done", accuracy=0.5, macro_f1=0.5, loss=1.0)

    def start(families: str, sizes: str, seeds: str, limits: tuple[str, ...] = (), **options) -> str:
        chosen = tuple(families.split(","))
        grid = {"sizes": parse_sizes(sizes), "seeds": parse_seeds(seeds), "max_sizes": parse_max_sizes(limits, chosen)}
        measured.clear()
        run_study(replace(study, families=chosen, **grid), out, run_trial=made, measure=measure, **options)
        return capsys.readouterr().err

    def planned() -> tuple[list[str], int, int]:
        described = json.loads((out / "study.json").read_text())
        return described["families"], len(described["trials"]), Findings.of(out).missing

    with pytest.raises(KeyboardInterrupt):
        start("majority,linear,lstm", "50,100", "2")
    assert measured == ["majority 100", "linear 100", "lstm"]
    everything = ["majority", "linear", "lstm"], 12, 2
    assert planned() == everything
    said = start("majority,linear", "50", "1")
    assert "2 trials are planned by an earlier command and not part of this one (the first is lstm-100-1)" in said
    assert (measured, planned()) == ([], everything)
    shutil.rmtree(out / "costs")
    start("majority,linear", "50", "1", budget=1e9, measure_speed=lambda *_: Speed(1.0, 0.0, 0.0, 1_000))
    assert (measured, planned()) == (["majority 100", "linear 100"], everything)
    start("lstm", "50", "1", ("lstm=50",))
    assert (measured, planned()) == (["lstm"], (everything[0], 11, 1)), "--max-size takes back what is not finished"
    said = start("majority,linear", "100,200", "2,200:1")
    assert (measured, planned()) == (["linear 200"], (everything[0], 13, 0)), "majority does not grow"
    assert "than the largest trial now (its training examples: 100 then, 200 now): measured again" in said


def test_what_was_planned_for_other_data_is_planned_no_longer(study, tmp_path, stores):
    """A size may be more than there is now."""
    small = replace(study, families=("majority",), max_sizes={}, seeds=parse_seeds("1"), sizes=parse_sizes("50,400"))
    store = Path(shutil.copytree(stores["train"][0], tmp_path / "store"))
    made = lambda task: TrialResult(task.trial, "done", accuracy=0.5, macro_f1=0.5, loss=1.0)  # noqa: E731
    run(replace(small, train=(str(store),)), tmp_path / "study", made)
    for folder in (store, *(tmp_path / "study" / name for name in ("trials", "costs"))):
        shutil.rmtree(folder)
    shutil.copytree(stores["test"][0], store)
    run(replace(small, train=(str(store),), sizes=parse_sizes("50")), tmp_path / "study", made)
    assert json.loads((tmp_path / "study" / "study.json").read_text())["trials"] == ["majority-50-0"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"overrides": ("training.seed=7",)}, r"training\.seed=7 would make all seeds the same run: --seeds says"),
        ({"overrides": ("lstm.training.seed=7",)}, r"training\.seed=7 would make all seeds the same run"),
        (
            {"max_length": 64, "overrides": ("data.max_length=32",)},
            r"--max-length 64 and data\.max_length=32 contradict",
        ),
        ({"max_length": 64, "overrides": ("data.max_length=64",)}, None),
        ({"max_length": 64, "overrides": ("lstm.data.max_length=128",)}, None),
        (
            {"truncation": "head", "overrides": ("data.truncation=tail",)},
            r"--truncation head and data\.truncation=tail contradict each other: leave one out",
        ),
        (
            {"pretrain_tokens": 100, "overrides": ("lstm-pretrained.pretraining.tokens=200",)},
            r"--pretrain-tokens 100 and pretraining\.tokens=200 contradict",
        ),
        ({"pretrain_tokens": 100, "overrides": ("pretraining.tokens=100",)}, None),
        ({"overrides": ("model.encoder=other",)}, r"model\.encoder=other: for all .*, give --encoder other"),
    ],
)
def test_options_and_settings_that_contradict_each_other(study, change, said):
    families = ("lstm", "lstm-pretrained") if "pretrain_tokens" in change else ("lstm",)
    chosen = replace(study, families=families, max_sizes={}, **change)
    if said is None:
        check_plan(chosen)
        return
    with pytest.raises(ConfigError, match=said):
        check_plan(chosen)


def test_failed_trials_are_tried_again_and_diverged_ones_are_not(study, tmp_path):
    def unlucky(task: TrialTask) -> TrialResult:
        stand_in(task)
        status = {"lstm-50-0": "failed", "lstm-50-1": "diverged"}.get(task.trial.name)
        if status:
            return TrialResult(task.trial, status, error="bad luck")
        return result(task.trial.family, task.trial.size, task.trial.seed)

    statuses = {made.trial.name: made.status for made in run(study, tmp_path / "study", unlucky)}
    assert (statuses["lstm-50-0"], statuses["lstm-50-1"]) == ("failed", "diverged")
    statuses = {made.trial.name: made.status for made in run(study, tmp_path / "study")}
    assert (statuses["lstm-50-0"], statuses["lstm-50-1"]) == ("done", "diverged")
    ran = marks(tmp_path / "study")
    assert (ran["lstm-50-0"], ran["lstm-50-1"], ran["encoder-50-0"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("families", "said"),
    [
        (
            ("majority", "lstm"),
            "--keep-runs: 4 trials are finished without it, and the models are gone (the first is ls",
        ),
        (("majority", "linear"), "--keep-runs has no effect: "),
    ],
)
def test_models_that_are_not_there_to_keep_get_a_line(study, tmp_path, capsys, families, said):
    small = replace(study, families=families, sizes=parse_sizes("50,100"), max_sizes={})
    made = lambda task: replace(result("lstm", task.trial.size, task.trial.seed), trial=task.trial)  # noqa: E731
    for kept, lines in ((False, 0), (True, 1)):
        run_study(small, tmp_path / "study", run_trial=made, measure=no_cost, keep_runs=kept)
        assert capsys.readouterr().err.count(said) == lines
    run_study(small, tmp_path / "other", run_trial=made, measure=no_cost, keep_runs=True)
    assert capsys.readouterr().err.count("--keep-runs:") == 0, "they are kept from the first"


def test_when_every_trial_fails_the_study_fails(study, tmp_path):
    with pytest.raises(RunError, match=r"every trial failed; .*: no luck"):
        run(study, tmp_path / "study", lambda task: TrialResult(task.trial, "failed", error="no luck"))


def test_another_study_in_the_directory(study, tmp_path):
    run(study, tmp_path / "study")
    with pytest.raises(RunError, match="belongs to another study: seed is 0 there and 7 here"):
        run(replace(study, seed=7), tmp_path / "study")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        run(study, tmp_path / "full")
    with pytest.raises(RunError, match="is a file"):
        run(study, tmp_path / "full" / "thesis.txt")


def test_a_link_is_the_same_source_from_another_directory(study, tmp_path, monkeypatch):
    """As versioned data is linked: to a file named after its content."""
    for name in ("kept", "data", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "kept" / "8f3a").write_text("text,label\n")
    (tmp_path / "data" / "train.csv").symlink_to("../kept/8f3a")
    monkeypatch.chdir(tmp_path)
    claim(Path("study"), replace(study, train=("data/train.csv",)).identity()).close()
    monkeypatch.chdir("elsewhere")
    for name in ("../data/train.csv", str(tmp_path / "data" / "train.csv")):
        claim(tmp_path / "study", replace(study, train=(name,)).identity()).close()
    begin(tmp_path / "study")
    with pytest.raises(RunError, match="belongs to another study: train is"):
        claim(tmp_path / "study", replace(study, train=("../data/test.csv",)).identity())


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_study_keeps_out_of_the_folders_that_it_reads(study, tmp_path, monkeypatch, part):
    for name, seed in (("train", 0), ("test", 1)):
        (tmp_path / name).mkdir()
        rows = "".join(f'"{text}",{label}\n' for text, label in generate_reviews(60, seed))
        (tmp_path / name / "a.csv").write_text("text,label\n" + rows)
    monkeypatch.chdir(tmp_path)
    small = replace(study, train=("train",), test=("test",), sizes=parse_sizes("50"), seeds=parse_seeds("1"))
    small = replace(small, families=("lstm",), max_sizes={})
    for out in (Path(part), Path(part) / "answer", tmp_path / part / "more" / "answer"):
        with pytest.raises(ConfigError, match=f"lies in {part}, all of whose files are data: give an --out outside of"):
            run(small, out)
    assert [path.name for path in (tmp_path / part).iterdir()] == ["a.csv"]
    assert run(small, Path(part) / ".answer"), "hidden files are no data"


def test_two_processes_cannot_work_in_one_study(study, tmp_path):
    def second(task: TrialTask) -> TrialResult:
        with pytest.raises(RunError, match="in use by another process"):
            run(study, tmp_path / "study")
        return stand_in(task)

    run(
        replace(study, sizes=parse_sizes("50"), seeds=parse_seeds("1"), families=("lstm",), max_sizes={}),
        tmp_path / "study",
        second,
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sizes": parse_sizes("50,1k")}, ConfigError, "size 1k is larger"),
        ({"max_test": 101}, ConfigError, "the test data has 100"),
        ({"overrides": ("training.epohcs=3",)}, ConfigError, "epohcs"),
        ({"overrides": ("bert.training.epochs=3",)}, ConfigError, "no setting"),
        ({"max_sizes": parse_max_sizes(["encoder=10"], FAMILIES)}, ConfigError, "leaves no size for encoder"),
        ({"train": ("missing.csv",)}, SourceError, "missing.csv"),
    ],
)
def test_bad_input_is_one_line(study, tmp_path, change, error, message):
    with pytest.raises(error, match=message) as raised:
        run(replace(study, **change), tmp_path / "study")
    assert len(str(raised.value).splitlines()) == 1


def test_stores_are_taken_as_they_are(study, tmp_path):
    run(study, tmp_path / "study")
    assert not list((tmp_path / "study" / "data").iterdir())


def test_the_subset_is_shared_by_families_and_nested_by_size(study, tmp_path):
    tasks: list[TrialTask] = []

    def collect(task: TrialTask) -> TrialResult:
        tasks.append(task)
        return stand_in(task)

    run(study, tmp_path / "study", collect)
    by_seed = {seed: {task.subset_seed for task in tasks if task.trial.seed == seed} for seed in (0, 1)}
    assert all(len(seeds) == 1 for seeds in by_seed.values())
    assert by_seed[0] != by_seed[1]
    training = {(task.trial.size, task.trial.seed): set() for task in tasks}
    for task in tasks:
        training[task.trial.size, task.trial.seed].add(task.settings.training.seed)
    assert all(len(seeds) == 1 for seeds in training.values()), "families share the validation split"
    assert len({next(iter(seeds)) for seeds in training.values()}) == len(training)
    assert subset_seed(0, 1) != subset_seed(1, 0)


def test_overrides_for_all_and_for_one_family():
    given = [
        "lstm.training.epochs=4",
        "training.epochs=2",
        "training.learning_rate=1e-3",
        "encoder.model.encoder=a/b: c",
    ]
    assert overrides_for(given, "lstm") == {"training.epochs": 4, "training.learning_rate": "1e-3"}
    assert overrides_for(given, "encoder")["training.epochs"] == 2


def test_a_trial_is_trained_by_the_recipe_of_train(study, stores):
    store = Store.open(stores["train"][0])
    for family in ("lstm", "encoder"):
        settings = trial_settings(study, Trial(100, 0, family), store)
        read = read_by(settings, store)
        data = replace(TrainingSet.of(read.lengths, 384), examples=100)
        for key, value in recipe(family, data).items():
            assert settings.flat()[key] == value, key


def test_an_override_for_all_families_goes_to_those_that_use_it(study, stores):
    store = Store.open(stores["train"][0])
    shared = replace(study, overrides=("model.hidden_size=8",))
    assert trial_settings(shared, Trial(100, 0, "lstm"), store).model.hidden_size == 8
    trial_settings(shared, Trial(100, 0, "encoder"), store)
    with pytest.raises(ConfigError, match=r"model\.hidden_size=8 has no effect"):
        trial_settings(replace(study, overrides=("encoder.model.hidden_size=8",)), Trial(100, 0, "encoder"), store)
    alone = replace(shared, families=("encoder",))
    with pytest.raises(ConfigError, match=r"model\.hidden_size=8 has no effect"):
        trial_settings(alone, Trial(100, 0, "encoder"), store)


def test_a_narrower_encoder_learns_at_a_higher_rate(study, minilm, stores):
    settings = trial_settings(study, Trial(100, 0, "encoder"), Store.open(stores["train"][0]))
    assert settings.training.learning_rate == pytest.approx(1e-4)
    given = replace(study, overrides=("encoder.training.learning_rate=3e-5",))
    settings = trial_settings(given, Trial(100, 0, "encoder"), Store.open(stores["train"][0]))
    assert settings.training.learning_rate == pytest.approx(3e-5)


def task_in(folder: Path) -> TrialTask:
    return TrialTask(Trial(10, 0, "lstm"), None, folder, folder, 0, None, folder / "runs" / "trial")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NonFiniteError("loss is nan at step 3"), "diverged"),
        (MemoryError("no\nmore"), "failed"),
        (RuntimeError(), "failed"),
    ],
)
def test_what_a_trial_may_survive(monkeypatch, tmp_path, error, status):
    def fails(task: TrialTask) -> TrialResult:
        raise error

    monkeypatch.setattr(run_trial_module, "_train_and_evaluate", fails)
    found = run_trial(task_in(tmp_path))
    assert found.status == status
    assert "\n" not in found.error


def test_what_a_trial_may_not_survive(monkeypatch, tmp_path):
    def fails(task: TrialTask) -> TrialResult:
        raise ModelError("another tokenizer")

    monkeypatch.setattr(run_trial_module, "_train_and_evaluate", fails)
    with pytest.raises(ModelError):
        run_trial(task_in(tmp_path))


def test_latencies_are_of_repeated_runs_after_the_first(monkeypatch):
    """By a clock that each run puts forward."""
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(measure_cost, "time", SimpleNamespace(perf_counter=lambda: now))
    waits = iter([1.0] * 3 + [0.002] * 11 + [0.02] * 9)
    found = measure_cost.milliseconds(wait, lambda: next(waits, 0.002))
    assert len(found) >= 20
    assert np.median(found) == pytest.approx(2.0)
    assert found.max() == pytest.approx(20.0), "the first runs warm up"


def test_a_worker_that_dies_takes_its_trial_with_it_and_nothing_else(study, tmp_path):
    """The trial is tried once more, alone."""
    study = replace(study, families=("lstm",), max_sizes={})
    found = run(study, tmp_path / "once", dies_once, jobs=2)
    assert {made.jobs for made in found} == {1, 2}
    assert alone(found) == run(study, tmp_path / "one")


CANNOT_BEGIN = r"ended with exit code 1 before it took one, .* imports .*{} again: .*, under if __name__ ==.* jobs=1"


def test_workers_that_cannot_begin_are_no_failed_trials(study, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    with pytest.raises(RunError, match=CANNOT_BEGIN.format("<stdin>")) as raised:
        run(study, tmp_path / "study", jobs=2)
    assert len(str(raised.value).splitlines()) == 1
    assert not list((tmp_path / "study" / "trials").iterdir())
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["<stdin>", "script.py"])
def test_a_script_whose_workers_cannot_begin(stores, tmp_path, name):
    script = f"""
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
grid = dict(sizes=parse_sizes("50"), seeds=parse_seeds("2"), max_sizes={{}}, families=("majority",))
run_study(StudySettings(**{stores!r}, encoder=None, **grid), "study", jobs=2)
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-" if name == "<stdin>" else name]
    done = subprocess.run(command, input=script, capture_output=True, text=True, cwd=tmp_path, check=False)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, bool(re.search(CANNOT_BEGIN.format(name), last))) == (1, True), done.stderr
    assert not list((tmp_path / "study" / "trials").iterdir())


@pytest.mark.slow
def test_a_study_in_several_processes(study, tmp_path):
    """Gives the same, but for a trial whose worker is killed twice; and only our own are ended: the caller may run
    something beside it."""
    expected = run(study, tmp_path / "one")
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    other.start()
    try:
        found = run(study, tmp_path / "killed", is_killed, jobs=2)
        (failed,) = (one for one in found if one.status != "done")
        assert (failed.status, failed.trial.name) == ("failed", "lstm-100-0")
        assert re.search(r"was killed by SIGKILL \(out of memory\?\); run again .*, it was killed by", failed.error)
        left = [one for one in expected if one.trial != failed.trial]
        assert alone(one for one in found if one is not failed) == left
        assert alone(run(study, tmp_path / "killed")) == expected
        assert other.is_alive()
        assert multiprocessing.active_children() == [other]
    finally:
        other.terminate()
        other.join()


@pytest.mark.slow
def test_a_worker_that_is_stopped_stops_the_study(study, tmp_path):
    with pytest.raises(RunError, match="lstm-100-0 was stopped by SIGTERM: the same command resumes"):
        run(study, tmp_path / "stopped", is_stopped, jobs=2)
    assert not multiprocessing.active_children()


def test_a_signal_that_the_caller_handles_is_the_callers():
    """The command line says what stopped it; without a handler a study ends with the signal's exit code."""

    def signalled() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    for handled, expected in ((ended_by_signals, Stopped), (contextlib.nullcontext, SystemExit)):
        with pytest.raises(SystemExit) as raised, handled():
            list(run_trials(signalled, 2, stand_in))
        assert (type(raised.value), raised.value.code) == (expected, 128 + signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_sources_are_prepared_once_with_the_encoders_tokenizer(study, tmp_path):
    small = {"sizes": parse_sizes("50"), "families": ("lstm",), "max_sizes": {}}
    sources = replace(
        study, train=("synthetic:reviews?n=400&seed=0",), test=("synthetic:reviews?n=100&seed=1",), **small
    )
    run(sources, tmp_path / "study")
    store, test = (Store.open(tmp_path / "study" / "data" / name) for name in ("train", "test"))
    labels = [int(store.label_names[label]) for label in store.labels]
    assert labels == [stars for _, stars in generate_reviews(400, 0)]
    assert store.vocab_size == test.vocab_size == 30522
    assert store.max_length == 4096
    before = (store.path / "manifest.json").stat().st_mtime_ns
    run(sources, tmp_path / "study")
    assert (store.path / "manifest.json").stat().st_mtime_ns == before


@pytest.fixture
def tiny_study(tiny) -> StudySettings:
    """Two families."""
    return StudySettings(
        **tiny,
        sizes=parse_sizes("40,80"),
        seeds=parse_seeds("1"),
        families=("lstm", "lstm-embeddings"),
        max_sizes={},
        max_test=50,
        overrides=("model.hidden_size=8", "model.num_layers=1", "training.epochs=2", "data.tokens_per_batch=2048"),
    )


def test_trials_train_and_evaluate_for_real(tiny_study, tmp_path):
    results = run(tiny_study, tmp_path / "study", run_trial)
    assert [made.status for made in results] == ["done"] * 4, [made.error for made in results]
    assert {made.test_examples for made in results} == {50}
    assert all(made.train_examples + made.validation_examples == made.trial.size for made in results)
    assert all(made.tokens_per_second > 0 and made.train_seconds > 0 and made.epochs == 2 for made in results)
    assert not list((tmp_path / "study" / "runs").iterdir())
    again = run(tiny_study, tmp_path / "again", run_trial, keep_runs=True)
    assert [(made.accuracy, made.loss) for made in again] == [(made.accuracy, made.loss) for made in results]
    assert (tmp_path / "again" / "runs" / "lstm-40-0" / "model.safetensors").is_file()


@pytest.mark.slow
def test_costs_are_measured(study, tmp_path):
    small = replace(
        study, sizes=parse_sizes("50"), families=("lstm",), max_sizes={}, overrides=("model.hidden_size=8",)
    )
    quickly = partial(measure_cost.measure_cost, seconds=0.05)
    run_study(small, tmp_path / "study", progress=False, run_trial=stand_in, measure=quickly)
    cost = costs.read_cost(tmp_path / "study" / "costs" / "lstm.json")
    assert cost.embedding_parameters == 30522 * 256
    assert 0 < cost.parameters - cost.embedding_parameters < 50_000
    assert cost.bytes_on_disk == pytest.approx(4 * cost.parameters, rel=0.01)
    assert set(cost.latency_ms) == {1, 32}
    for batch in (1, 32):
        assert 0 < cost.latency_ms[batch] <= cost.latency_p95_ms[batch]
    assert cost.latency_p95_ms[1] <= cost.latency_p99_ms[1], "100 runs tell it"
    assert 64 <= cost.texts <= 100
    assert cost.texts_per_second > 1
    assert cost.memory_bytes > 4 * cost.parameters, "the weights are in it"
    assert cost.device


def test_costs_of_a_baseline_are_those_of_its_largest_trial(study, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_cost, "_MIN_RUNS", {1: 100, 32: 1})  # which tell all percentiles
    small = replace(study, sizes=parse_sizes("50,400"), families=("linear",), max_sizes={}, seeds=parse_seeds("1"))
    run_study(
        small,
        tmp_path / "study",
        progress=False,
        run_trial=lambda task: TrialResult(task.trial, "done", accuracy=0.5),
    )
    cost = costs.read_cost(tmp_path / "study" / "costs" / "linear.json")
    assert cost.parameters > 1000
    assert cost.bytes_on_disk > 0
    assert 0 < cost.latency_ms[1] <= cost.latency_p95_ms[1] <= cost.latency_p99_ms[1]
    assert cost.texts_per_second > 1


def test_costs_that_were_removed_are_measured_anew(study, tmp_path):
    out = tmp_path / "study"
    run(study, out)
    before = marks(out)
    shutil.rmtree(out / "costs")
    run(study, out)
    assert {path.stem for path in (out / "costs").iterdir()} == set(FAMILIES)
    assert marks(out) == before


def test_how_files_are_read_belongs_to_a_study_only_where_it_was_given(minilm, tmp_path):
    """So an older study, which knew no such options, goes on."""
    plain = StudySettings(
        train=("a.csv",), test=("b.csv",), encoder=minilm, sizes=parse_sizes("50"), seeds=parse_seeds("1"), max_sizes={}
    )
    assert not {"separator", "encoding"} & plain.identity().keys()
    read = replace(plain, reading=Reading("tab", "cp1252"))
    assert read.identity() == plain.identity() | {"separator": "\t", "encoding": "cp1252"}
    claim(tmp_path / "study", plain.identity()).close()
    begin(tmp_path / "study")
    with pytest.raises(RunError, match="separator"):
        claim(tmp_path / "study", read.identity())


@pytest.mark.slow
def test_a_study_reads_its_files_as_it_is_told(study, tmp_path, minilm):
    for name, seed in (("train", 0), ("test", 1)):
        rows = "".join(f"{text.replace('^', '')}é^{label}\n" for text, label in generate_reviews(120, seed))
        (tmp_path / f"{name}.csv").write_bytes(("text^label\n" + rows).encode("cp1252", "replace"))
    study = replace(
        study,
        train=(str(tmp_path / "train.csv"),),
        test=(str(tmp_path / "te*.csv"),),
        sizes=parse_sizes("50"),
        reading=Reading("^", "cp1252"),
    )
    assert check_plan(study) == []
    train = open_or_prepare(study.train, tmp_path / "data" / "train", study, None, False)
    test = open_or_prepare(study.test, tmp_path / "data" / "test", study, train, False)
    assert (train.num_examples, train.manifest.truncation, test.num_examples) == (120, "head", 120)
    with pytest.raises(SourceError, match="column"):
        check_plan(replace(study, reading=Reading(None, "cp1252")))


@pytest.mark.parametrize(("then", "now", "same"), [("head", None, True), (None, "head", True), ("head", "tail", False)])
def test_an_older_study_that_said_nothing_of_truncation_goes_on(study, tmp_path, then, now, same):
    """It noted "head"; the stores say what they were made with."""
    claim(tmp_path / "study", replace(study, truncation=then).identity()).close()
    begin(tmp_path / "study")
    identity = replace(study, truncation=now).identity()
    if same:
        claim(tmp_path / "study", identity).close()
    else:
        with pytest.raises(RunError, match="truncation"):
            claim(tmp_path / "study", identity)
