"""A dry run reads what the run would read: the test set too, in the precision that the run was begun in."""

import dataclasses
import json
import re

import pytest
from command_line import penstock

from penstock.engine.data.prepare import prepare
from penstock.engine.errors import RunError, StoreError
from penstock.engine.models.lstm import LSTMClassifier
from penstock.engine.training import rehearsal
from penstock.engine.training.dry_run import dry_run
from penstock.engine.training.loop import Loop
from penstock.engine.training.train import train


def write_csv(path, labels):
    path.write_text("text,label\n" + "".join(f"a lovely film {i},{labels[i % len(labels)]}\n" for i in range(20)))
    return str(path)


@pytest.fixture(scope="module")
def unlike(store, tmp_path_factory):
    """{why: a test store that does not fit the training store}."""
    folder = tmp_path_factory.mktemp("unlike")
    other = write_csv(folder / "other.csv", ("x", "y"))
    same = write_csv(folder / "same.csv", store.label_names)
    made = {}
    for name, source, tokenizer in (
        ("labels", other, str(store.path / "tokenizer")),
        ("tokenizer", same, "train:bpe:300"),
    ):
        made[name] = prepare(source, folder / name, tokenizer=tokenizer, max_length=store.max_length, progress=False)
    return made


@pytest.mark.parametrize("what", ["labels", "tokenizer"])
def test_a_test_set_that_does_not_fit_is_refused_as_in_training(store, unlike, settings, tmp_path, what):
    messages = []
    for attempt in (dry_run, train):
        with pytest.raises(StoreError, match=f"other {what} than the training data") as error:
            attempt(settings(), store, tmp_path / "run", test_store=unlike[what])
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    done = penstock("train", "--train", store.path, "--eval", unlike[what].path, "--out", tmp_path / "run", "--dry-run")
    assert done.returncode == StoreError.exit_code
    assert done.stderr.strip().splitlines()[-1].endswith(messages[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_test_set_than_the_run_began_with_is_refused(store, test_store, settings, tmp_path):
    train(settings("training.max_steps=2"), store, tmp_path, test_store=test_store, progress="none")
    with pytest.raises(RunError, match="holds another run: test data is"):
        dry_run(settings("training.max_steps=4"), store, tmp_path)
    dry_run(settings("training.max_steps=4"), store, tmp_path, test_store=test_store)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0, 0.25])
@pytest.mark.parametrize("tested", [False, True])
def test_evaluations_are_part_of_what_a_run_needs(store, test_store, settings, tmp_path, monkeypatch, fraction, tested):
    evaluated = []
    plain = LSTMClassifier.forward

    def noted(self, tokens, *args, **rest):
        if not self.training:
            evaluated.append(tokens.max_seqlen)
        return plain(self, tokens, *args, **rest)

    monkeypatch.setattr(LSTMClassifier, "forward", noted)
    test = test_store if tested else None
    chosen = settings(f"data.validation_fraction={fraction}", "training.epochs=3")
    found, lines = dry_run(chosen, store, tmp_path / "run", test_store=test)
    assert bool(evaluated) == bool(fraction or tested)
    assert (found.validation is not None, found.test is not None) == (fraction > 0, tested)
    speed, whole = lines[-2:]
    assert (f"{round(store.num_examples * fraction):,} validation rows" in speed) == (fraction > 0)
    assert (f"{test_store.num_examples:,} test rows" in speed) == tested
    if tested:
        assert found.test.rows == test_store.num_examples
        assert max(evaluated) == max(test_store.lengths.max(), *(evaluated if fraction else [0]))
    assert re.match(rf"the run: at most {3 * found.steps:,} steps, about \S+ \w+ with its evaluations$", whole)


@pytest.mark.slow
def test_the_runs_time_counts_each_evaluation(store, test_store, settings, tmp_path, monkeypatch):
    """The lines' arithmetic, on figures that are known."""
    seen = {}
    monkeypatch.setattr(Loop, "rehearse_step", lambda self, index: seen.update(loop=self))
    found, _ = dry_run(settings("training.epochs=2"), store, tmp_path / "run", test_store=test_store)
    time = rehearsal.EvaluationTime
    known = dataclasses.replace(found, seconds=3600.0, steps=10, validation=time(5, 7200.0), test=time(9, 1800.0))
    # 20 steps of an hour, two evaluations of two, half an hour for the test
    assert list(known.lines(seen["loop"]))[-1] == "the run: at most 20 steps, about 24 hours with its evaluations"
    often = dataclasses.replace(seen["loop"].settings.training, evaluate_every_steps=4)
    seen["loop"].settings = dataclasses.replace(seen["loop"].settings, training=often)
    assert list(known.lines(seen["loop"]))[-1] == "the run: at most 20 steps, about 30 hours with its evaluations"


@pytest.mark.slow
@pytest.mark.parametrize("there", ["fp32", "bf16"])
def test_a_run_that_is_there_is_tried_in_its_own_precision(store, settings, tmp_path, monkeypatch, there):
    here = {"fp32": "bf16", "bf16": "fp32"}[there]
    monkeypatch.setattr("penstock.engine.training.begin.resolve_precision", lambda asked, device: there)
    train(settings("training.max_steps=2"), store, tmp_path, progress="none")
    assert json.loads((tmp_path / "run.json").read_text())["precision"] == there
    monkeypatch.setattr("penstock.engine.training.begin.resolve_precision", lambda asked, device: here)
    said, loops = [], []
    plain = Loop.rehearse_checkpoint
    monkeypatch.setattr(Loop, "rehearse_checkpoint", lambda self: (loops.append(self), plain(self)))
    dry_run(settings("training.max_steps=4"), store, tmp_path, say=said.append)
    assert [loop.precision for loop in loops] == [there]
    assert f"training.precision=auto was {there} where the run began and stays so; here it would be {here}" in said
