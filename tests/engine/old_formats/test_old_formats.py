"""Folders of an earlier penstock, made by make.py, are read and gone on with."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stopping import stop_at

from penstock.engine.data.store import Store
from penstock.engine.study.report import write_report
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.training.settings import load_settings
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.train import train
from penstock.engine.training.trained import TrainedRun

HERE = Path(__file__).parent
RUN = (
    "model.hidden_size=4",
    "model.embedding_size=4",
    "training.tensorboard=false",
    "data.tokens_per_batch=64",
    "training.epochs=3",
    "training.learning_rate=3e-2",
    "training.seed=1",
)
UNSEALED = (
    *RUN,
    "training.precision=fp32",
    "training.log_every_steps=1",
    "data.batches_per_step=2",
    "model.embedding_dropout=0.1",
)
STUDY = StudySettings(
    train=("train",),
    test=("test",),
    encoder="none",
    families=("lstm",),
    sizes=parse_sizes("30,60"),
    seeds=parse_seeds("2"),
    max_sizes={},
    overrides=(
        "lstm.model.hidden_size=4",
        "lstm.model.embedding_size=4",
        "training.tensorboard=false",
        "data.tokens_per_batch=64",
        "training.epochs=2",
    ),
)
FINISHED = ("lstm-30-0", "lstm-30-1")


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy of the folders, at the relative paths that they were made with."""
    for name in ("train", "test", "run", "run-unsealed", "study"):
        shutil.copytree(HERE / name, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_predicts_and_is_evaluated(old):
    run = TrainedRun.open("run")
    predicted = run.predict(["the film superb", "a plot awful"])["label"].to_pylist()
    assert len(predicted) == 2
    assert set(predicted) <= {"bad", "fair", "good"}
    found = run.evaluate_store(Store.open("test"))
    assert found.metrics.num_examples == 30
    assert found.metrics.loss == pytest.approx(1.08522, abs=1e-4), "as the penstock that trained it measured"


def test_a_stopped_run_goes_on(old):
    before = json.loads(Path("run/run.json").read_text())
    assert before["status"] == "running"
    result = train(load_settings(None, RUN), Store.open("train"), "run", progress="none")
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert result.epochs == 3
    assert result.steps > 13
    assert logged[: len(_lines())] == _lines(), "the steps before the stop were taken once"
    assert json.loads(Path("run/run.json").read_text())["status"] == "complete"


def test_a_run_without_checksums_goes_on_bit_for_bit(old):
    """From its last checkpoint, at step 4 of 9; and stopped once more, now with checksums. Its first steps drew dropout
    by an earlier rule, so no run of today is the same from the beginning."""
    settings, store = load_settings(None, UNSEALED), Store.open("train")
    shutil.copytree("run-unsealed", "stopped", symlinks=True)
    before = _timeless("run-unsealed")
    result = train(settings, store, "run-unsealed", progress="none")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(Interrupted):
            train(settings, store, "stopped", progress="none")
    assert train(settings, store, "stopped", progress="none").validation == result.validation
    assert result.steps == 9
    assert _timeless("run-unsealed")[: len(before)] == before
    for name in ("best", "last"):
        one, other = (load_file(f"{run}/{name}/model.safetensors") for run in ("run-unsealed", "stopped"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_a_study_goes_on(old):
    results = {path: path.read_bytes() for path in Path("study/cells").iterdir()}
    assert sorted(path.stem for path in results) == sorted(FINISHED)
    begun = [path.name for path in Path("study/runs").iterdir()]
    assert begun == ["lstm-60-0"]
    assert Path("study/runs/lstm-60-0/last/config.json").exists()
    over = run_study(STUDY, "study", progress=False)
    assert [result.status for result in over] == ["done"] * 4
    assert {path: path.read_bytes() for path in results} == results, "finished ones were not run again"
    assert len(write_report("study").table.results) == 4
    assert "lstm" in Path("study/trials.csv").read_text()


def test_the_report_of_a_stopped_study(old):
    findings = write_report("study")
    assert findings.missing == 2
    assert [(result.accuracy is not None, result.evaluation is not None) for result in findings.table.results] == [
        (True, True)
    ] * 2


def _timeless(run: str) -> list[dict]:
    """The lines of a run's metrics without what a clock measured."""
    clock = ("seconds", "tokens_per_second", "examples_per_second", "data_wait", "mfu", "time")
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["split"] != "checkpoint"]
    return [{key: value for key, value in line.items() if key not in clock} for line in kept]


def _lines() -> list[dict]:
    return [json.loads(line) for line in (HERE / "run" / "metrics.jsonl").read_text().splitlines()]
