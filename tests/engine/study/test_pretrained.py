"""The family lstm-pretrained: one pretraining on the training texts, without their labels, that each trial begins
with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fabricated_study import no_cost
from fabricated_study import result as made_up
from shared_texts import SHARED, stores_that_share_texts
from stopping import stop_at

from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, PenstockError, RunError
from penstock.engine.study.check import check_plan
from penstock.engine.study.estimate import Speed
from penstock.engine.study.opened import opened
from penstock.engine.study.plan_tables import plan_lines
from penstock.engine.study.planning import plan_study
from penstock.engine.study.pretraining import texts_read
from penstock.engine.study.progress import StudyProgress
from penstock.engine.study.report import write_report
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.settings import StudySettings, parse_tokens, subset_seed
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.study.subsets import subset
from penstock.engine.study.trials import Pretrained, TrialResult
from penstock.engine.training.result import TrainResult
from penstock.engine.training.run_record import read_record
from penstock.engine.training.signals import Interrupted

FAMILIES = ("lstm", "lstm-pretrained")
QUICK = (
    *("model.hidden_size=8", "model.embedding_size=8", "training.tensorboard=false", "training.precision=fp32"),
    *("training.max_steps=4", "pretraining.candidates=50"),
)


@pytest.fixture(scope="module")
def settings(tiny) -> StudySettings:
    return StudySettings(
        **tiny,
        sizes=parse_sizes("30,60"),
        seeds=parse_seeds("1"),
        families=FAMILIES,
        max_sizes={},
        overrides=QUICK,
        pretrain_tokens=9_000,
    )


def run(settings: StudySettings, out: Path, **options) -> dict[str, TrialResult]:
    results = run_study(settings, out, progress=False, measure=no_cost, **options)
    return {made.trial.name: made for made in results}


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory) -> tuple[Path, dict[str, TrialResult]]:
    out = tmp_path_factory.mktemp("finished") / "study"
    return out, run(settings, out)


def test_all_trials_begin_with_one_pretraining(finished, settings):
    out, made = finished
    own = [result for name, result in made.items() if name.startswith("lstm-pretrained")]
    assert [result.trial.size for result in own] == [30, 60]
    record = read_record(out / "pretraining" / "run")
    assert record["identity"]["pretraining.objective"] == "masked"
    assert record["identity"]["model.hidden_size"] == 8
    assert record["result"]["stopped_by"] in ("tokens", "epochs")
    for result in own:
        assert result.pretrained == own[0].pretrained
        assert result.pretrained.tokens == record["result"]["tokens"] >= 9_000
        held_out = record["result"]["validation"]["num_examples"]
        assert result.pretrained.texts == texts_read(TrainResult.from_json(record["result"]), 10**9)
        assert held_out < result.pretrained.texts < 400, "the tokens ended within its first pass"
        assert result.pretrained.cpu_seconds > 0
        assert result.all_seconds == result.train_seconds + result.pretrained.seconds
        assert result.all_cpu_seconds == result.train_cpu_seconds + result.pretrained.cpu_seconds
        assert result.made_from.pretraining == own[0].made_from.pretraining
        assert made[f"lstm-{result.trial.size}-0"].pretrained is None
        assert made[f"lstm-{result.trial.size}-0"].made_from.pretraining is None
        assert made[f"lstm-{result.trial.size}-0"].loss != result.loss
    before = (out / "pretraining" / "run" / "run.json").stat().st_mtime_ns
    assert run(settings, out) == made
    assert (out / "pretraining" / "run" / "run.json").stat().st_mtime_ns == before


def test_it_reads_neither_test_texts_nor_validation_rows(tmp_path, tiny, settings):
    train, test = stores_that_share_texts(tmp_path, str(Path(tiny["encoder"])), rows=150, tests=30)
    chosen = replace(settings, train=(str(train.path),), test=(str(test.path),), seeds=parse_seeds("2"))
    with opened(chosen, tmp_path / "a", jobs=1, keep_runs=False, progress=False, shown=StudyProgress(False)) as study:
        read = study.pretraining
        assert read.tests == 6
        assert not set(read.rows) & set(SHARED)
        kept = json.loads((tmp_path / "a" / "pretraining" / "rows.json").read_text())
        assert not set(read.rows) & set(kept["validation"])
        for size in (30, 60):
            for seed in (0, 1):
                held = set(kept["validation"]) & set(subset(train.labels, size, subset_seed(chosen.seed, seed)))
                assert len(held) >= size // 5
        assert len(read.rows) == 156 - len(set(kept["validation"]) | set(SHARED))


@pytest.mark.parametrize(("examples", "texts"), [(100, 120), (380, 400), (2000, 400)])
def test_texts_are_those_that_were_read(examples, texts):
    run = SimpleNamespace(examples=examples, validation=SimpleNamespace(num_examples=20))
    assert texts_read(run, 400) == texts


class Clock:
    """Stands still but for what takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("budget", "order", "said"),
    [
        (15.0, ["lstm-30-0"], "pretraining"),
        (45.0, ["lstm-30-0", "lstm-60-0", "lstm-30-1", "lstm-60-1"], "pretraining"),
        (165.0, ["lstm-30-0", "pretraining", "lstm-pretrained-30-0", "lstm-60-0", "lstm-pretrained-60-0"], "budget"),
    ],
)
def test_a_budget_holds_the_pretraining(tmp_path, settings, monkeypatch, capsys, budget, order, said):
    """Trials take 10 s each, it takes 100: it is made when its first trial has its turn, and only if both fit."""
    clock, happened = Clock(), []

    def pretrain(pretraining, train, progress) -> Pretrained:
        clock.now += 100.0
        happened.append("pretraining")
        return Pretrained(1, 1, 100.0, 1.0)

    def trial(task: TrialTask) -> TrialResult:
        clock.now += 10.0
        happened.append(task.trial.name)
        assert (task.pretrained is not None) == (task.trial.family == "lstm-pretrained")
        made = made_up("lstm", task.trial.size, task.trial.seed)
        return replace(made, trial=task.trial, wall_seconds=10.0, tokens_per_second=0.0, pretrained=task.pretrained)

    monkeypatch.setattr("penstock.engine.study.study.pretrain", pretrain)
    monkeypatch.setattr("penstock.engine.study.study.pretraining_seconds", lambda *_: 100.0)
    run_study(
        replace(settings, seeds=parse_seeds("2")),
        tmp_path / "study",
        measure=no_cost,
        run_trial=trial,
        budget=budget,
        measure_speed=lambda *_: Speed(10.0, 0.0, 0.0, 1_000),
        clock=clock,
    )
    assert happened[: len(order)] == order
    assert clock.now <= budget
    told = capsys.readouterr().err
    left = "left out: lstm-pretrained-30-0"
    assert (f"{left}" in told) == (said == "pretraining")
    if said == "pretraining":
        assert "the budget does not suffice with the pretraining that comes first; about 2 min" in told


@pytest.mark.parametrize("entry", ["texts", "tokens", "seconds", "cpu_seconds"])
def test_a_damaged_entry_of_a_trial_is_found(tmp_path, finished, settings, entry):
    out, _ = finished
    shutil.copytree(out, tmp_path / "study")
    path = next((tmp_path / "study" / "trials").glob("lstm-pretrained-*.json"))
    trial = json.loads(path.read_text())
    del trial["crc32"]
    trial["pretrained"][entry] = -1
    path.write_text(json.dumps(trial))
    with pytest.raises(RunError, match=rf"not a trial's result \(pretrained\.{entry} is -1"):
        run(settings, tmp_path / "study")


@pytest.mark.slow
def test_stopped_in_its_pretraining_it_goes_on(tmp_path, finished, settings):
    out, made = finished
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            run(settings, tmp_path / "study")
    assert not list((tmp_path / "study" / "trials").glob("*.json"))
    again = run(settings, tmp_path / "study")
    one, other = (folder / "pretraining" / "run" / "model.safetensors" for folder in (out, tmp_path / "study"))
    assert one.read_bytes() == other.read_bytes()
    for name, result in made.items():
        assert again[name].loss == result.loss
        if result.pretrained is not None:
            assert again[name].pretrained.cpu_seconds is None
            assert again[name].all_cpu_seconds is None


@pytest.mark.slow
def test_a_study_that_grows_keeps_its_pretraining(tmp_path, settings, capsys):
    first = run(settings, tmp_path / "study")
    more = run_study(replace(settings, seeds=parse_seeds("2")), tmp_path / "study", measure=no_cost)
    said = capsys.readouterr()
    assert "texts, without their labels, by which trials that were added since choose" in said.err + said.out
    assert {name: made for made in more if (name := made.trial.name) in first} == first
    assert len({made.made_from.pretraining for made in more if made.pretrained}) == 1


@pytest.mark.slow
def test_a_start_without_the_family_leaves_its_trials(tmp_path, settings):
    own = replace(settings, overrides=(*QUICK[:-1], "lstm-pretrained.pretraining.candidates=50"))
    before = run(own, tmp_path / "study")
    more = replace(own, families=("lstm",), pretrain_tokens=None, seeds=parse_seeds("2"))
    assert run(more, tmp_path / "study").keys() >= {"lstm-30-1"}
    assert run(own, tmp_path / "study") == before  # nothing ran again


@pytest.mark.slow
def test_another_pretraining_is_another_study(tmp_path, settings, finished):
    out, _ = finished
    with pytest.raises(RunError, match="what its pretraining was made from"):
        run(replace(settings, pretrain_tokens=20_000), out)
    alone = tmp_path / "alone"  # before any of its trials is over
    shutil.copytree(out, alone)
    for path in (alone / "trials").glob("lstm-pretrained-*"):
        path.unlink()
    before = (alone / "study.json").read_bytes()
    with pytest.raises(RunError, match="pretraining was made from other settings, texts or rows"):
        run(replace(settings, pretrain_tokens=20_000), alone)
    assert (alone / "study.json").read_bytes() == before
    (alone / "pretraining" / "cost.json").write_text("[]")
    with pytest.raises(RunError, match=r"cost\.json: damaged: it is not an object; remove .*pretraining to pretrain"):
        run(settings, alone)
    shutil.rmtree(alone / "pretraining")  # but not what has begun with it
    begun = alone / "runs" / "lstm-pretrained-30-0"
    begun.mkdir()
    (begun / "run.json").write_text("{}")
    with pytest.raises(RunError, match=r"lstm-pretrained-30-0 began with a pretraining that is no longer in .*too"):
        run(settings, alone)
    damaged = tmp_path / "study"
    run(settings, damaged)
    (damaged / "pretraining" / "rows.json").write_text("{}")
    with pytest.raises(RunError, match=r"rows\.json cannot be read.*remove .*pretraining to pretrain again"):
        run(settings, damaged)


@pytest.mark.slow
def test_plan_and_report_say_what_it_takes(tmp_path, settings, finished, undrawn):
    plan = plan_study(settings, tmp_path / "plan", progress=False)
    assert plan.pretraining > 0
    assert plan.pretraining_tokens == 9_000
    assert any("pretraining on 9,000 tokens without labels" in line and "for each of 30 labels" in line
               for line in plan_lines(plan))  # fmt: skip
    assert not (tmp_path / "plan" / "pretraining" / "run").exists()
    out, made = finished
    assert plan_study(settings, out, progress=False).pretraining is None
    write_report(out)
    report = (out / "report.md").read_text()
    texts = made["lstm-pretrained-30-0"].pretrained.texts
    assert f"Pretraining, once for all trials that begin with it: {texts:,} training texts" in report
    assert "for each of 60 labels" in report
    assert "BiLSTM, pretrained on the texts" in report
    header, *lines = (out / "trials.csv").read_text().splitlines()
    column = header.split(",").index("pretraining_tokens")
    assert {line.split(",")[column] for line in lines} == {"", str(made["lstm-pretrained-30-0"].pretrained.tokens)}
    needs = (out / "needs.csv").read_text()
    assert f"lstm-pretrained,30,30,{texts}" in needs.replace(".0,", ",")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"families": ("lstm",)}, "--pretrain-tokens=9000 has no effect"),
        ({"families": ("lstm",), "pretrain_tokens": None}, r"pretraining\.candidates=50 has no effect"),
        ({"overrides": ("lstm-pretrained.pretraining.objective=other",)}, "must be masked"),
        ({"overrides": ("pretraining.objective=replaced", "pretraining.candidates=5")}, "tells no tokens"),
        ({"overrides": ("lstm.pretraining.share=0.2",)}, "penstock pretrain reads it"),
    ],
)
def test_what_does_not_fit(settings, changes, said):
    with pytest.raises(ConfigError, match=said):
        check_plan(replace(settings, **changes))


def test_settings_of_the_pretraining_are_its_own(tmp_path, settings):
    chosen = replace(
        settings,
        overrides=(*QUICK[:-1], "lstm-pretrained.pretraining.objective=replaced", "lstm-pretrained.model.num_layers=2"),
        sizes=parse_sizes("30"),
    )
    made = run(chosen, tmp_path / "study")
    identity = read_record(tmp_path / "study" / "pretraining" / "run")["identity"]
    assert (identity["pretraining.objective"], identity["model.num_layers"]) == ("replaced", 2)
    assert identity["training.max_steps"] is None
    assert made["lstm-pretrained-30-0"].status == "done"


def test_tokens_are_whole_numbers():
    assert parse_tokens(None) is None
    assert parse_tokens(1e6) == 1_000_000
    for wrong in (0.0, -1.0, 1.5, float("inf"), float("nan")):
        with pytest.raises(PenstockError, match="--pretrain-tokens must be a whole number"):
            parse_tokens(wrong)


def test_validation_rows_are_those_of_the_trials(settings, finished):
    """What rows.json keeps is what the runs themselves split off."""
    out, _ = finished
    kept = json.loads((out / "pretraining" / "rows.json").read_text())["validation"]
    train = Store.open(settings.train[0])
    assert sorted(kept) == kept
    assert set(kept) <= set(subset(train.labels, 60, subset_seed(settings.seed, 0)).tolist())
    assert len(np.unique(kept)) >= 12
