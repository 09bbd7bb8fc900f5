"""`data.tokens_per_batch=auto`: found by trying, within memory at any try, kept by the run."""

import itertools
import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from stopping import stop_at
from subtested import as_subtests

from penstock.engine.data.plan import PlanParameters, plan_epoch
from penstock.engine.errors import ConfigError, OutOfMemoryError
from penstock.engine.study.settings import StudySettings, family_settings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.training import token_budget
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.token_budget import measured_budget
from penstock.engine.training.train import train

MIB = 2**20


class FakeLoop:
    """Needs `base` bytes and `each` more for every token of a batch, up to where memory runs out."""

    def __init__(self, lengths, tokens, base, each, runs_out=None):
        self._lengths, self._base, self._each, self._runs_out = lengths, base, each, runs_out
        self.world = type("World", (), {"device": torch.device("cpu")})
        self.tokens_per_batch, self.peak, self.tried = tokens, 0, []
        self.plan_with(tokens)

    def plan_with(self, tokens):
        parameters = PlanParameters(tokens_per_batch=tokens, mode="pack")
        self.plan = plan_epoch(self._lengths, "store", 0, 0, parameters)

    def rehearse_step(self, index):
        heaviest = int(self.plan.tokens[index : index + 1].max())
        self.tried.append(heaviest)
        needed = self._base + self._each * heaviest
        if self._runs_out is not None and needed > self._runs_out:
            raise OutOfMemoryError("out of memory")
        self.peak = max(self.peak, needed)

    def rehearse_checkpoint(self): ...


def search(monkeypatch, loop, limit):
    monkeypatch.setattr(token_budget, "limit_of", lambda device: limit)
    monkeypatch.setattr(token_budget, "peak_of", lambda device: loop.peak)
    monkeypatch.setattr(token_budget, "reset_peak", lambda device: setattr(loop, "peak", 0))
    return measured_budget(loop)


LENGTHS = np.random.default_rng(0).integers(5, 500, 60_000).astype(np.int32)
LEAST, MOST = int(LENGTHS.max()), int(LENGTHS.sum()) // 50


@pytest.mark.slow
@as_subtests(
    "start, base, each",
    itertools.product([1, 512, 8_192, 100_000, 5_000_000], [0, 100 * MIB, 900 * MIB], [1_000, 10_000, 100_000]),
)
def test_it_fills_memory_and_never_more_at_any_try(monkeypatch, start, base, each):
    limit = 2_000 * MIB
    loop = FakeLoop(LENGTHS, start, base, each)
    found, words = search(monkeypatch, loop, limit)
    most = min((0.8 * limit - base) / each, MOST)
    assert LEAST <= found <= most
    assert found >= 0.85 * most, words
    beginning = min(max(start, LEAST), MOST)
    # beyond what it began with, which the recipe chose, it never tries what does not fit
    assert all(base + each * tokens <= 0.81 * limit or tokens <= beginning for tokens in loop.tried)


@pytest.mark.parametrize("runs_out", [300 * MIB, 700 * MIB])
def test_memory_that_runs_out_although_the_system_says_that_there_is_more(monkeypatch, runs_out):
    loop = FakeLoop(LENGTHS, 20_000, 50 * MIB, 10_000, runs_out)
    found, _ = search(monkeypatch, loop, 10_000 * MIB)
    assert 0.3 * runs_out < 50 * MIB + 10_000 * found <= runs_out


def test_not_even_the_longest_text_fits(monkeypatch):
    loop = FakeLoop(LENGTHS, 8_192, 900 * MIB, 100_000)
    with pytest.raises(OutOfMemoryError, match=rf"the longest text alone, {LEAST} tokens, fits .* data\.max_length"):
        search(monkeypatch, loop, 1_000 * MIB)


def test_where_the_system_does_not_tell(monkeypatch):
    found, words = search(monkeypatch, FakeLoop(LENGTHS, 8_192, 1, 1), None)
    assert found == 8_192
    assert "by the recipe" in words


def test_a_few_steps_an_epoch_are_left(monkeypatch):
    found, words = search(monkeypatch, FakeLoop(LENGTHS, 8_192, 1, 1), 10_000 * MIB)
    assert MOST - 64 < found <= MOST
    assert "more would leave fewer than 50 steps an epoch" in words


def budget_of(run):
    return yaml.safe_load((run / "config.yaml").read_text())["data"]["tokens_per_batch"]


@pytest.mark.slow
def test_a_run_keeps_what_was_measured(store, settings, tmp_path, monkeypatch, capsys):
    auto = settings("data.tokens_per_batch=auto", "data.validation_fraction=0", "training.epochs=2")
    monkeypatch.setattr(token_budget, "_LEAST_STEPS", 8)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 9 + 2 * 3)  # after those of the tries
        with pytest.raises(Interrupted):
            train(auto, store, tmp_path / "run", progress="plain")
    number = budget_of(tmp_path / "run")
    assert f"data.tokens_per_batch=auto: {number:,}, " in capsys.readouterr().err
    monkeypatch.setattr(token_budget, "measured_budget", lambda loop: pytest.fail("measured again"))
    result = train(auto, store, tmp_path / "run", progress="none")
    assert budget_of(tmp_path / "run") == number
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["data.tokens_per_batch"] == number
    assert train(auto, store, tmp_path / "run", progress="none").steps == result.steps, "it is complete"
    # to the last bit the run that has that number
    told = settings(f"data.tokens_per_batch={number}", "data.validation_fraction=0", "training.epochs=2")
    train(told, store, tmp_path / "told", progress="none")
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("run", "told"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("override", ["data.tokens_per_batch=auto", "lstm.data.tokens_per_batch=auto"])
def test_a_study_wants_a_number(override):
    study = StudySettings(
        train=("train",),
        test=("test",),
        encoder="bert",
        families=("lstm",),
        sizes=parse_sizes("60"),
        seeds=parse_seeds("1"),
        max_sizes={},
        max_length=64,
        overrides=(override,),
    )
    with pytest.raises(ConfigError, match="state a number"):
        family_settings(study, "lstm")
