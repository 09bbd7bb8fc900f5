"""Bags of n-grams in the one loop: what they learn, how they are saved, and that they go on bit for bit."""

import json

import pytest
import torch
from stopping import stop_at

from penstock.engine.errors import ConfigError
from penstock.engine.models import BagClassifier, BagClassifierConfig, load_model
from penstock.engine.training.adagrad import RowAdagrad
from penstock.engine.training.optimizer import build_optimizer
from penstock.engine.training.settings import load_settings
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.train import train
from penstock.engine.training.trained import TrainedRun
from penstock.kernels import Ragged

SMALL = ["model.kind=bag", "training.tensorboard=false", "data.tokens_per_batch=256", "training.log_every_steps=1"]


def bag(*overrides):
    return load_settings(None, [*SMALL, *overrides])


def weights(folder):
    return load_model(folder).state_dict()


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_it_learns_and_serves_everywhere(tmp_path, store, test_store):
    from transformers import AutoModelForSequenceClassification, pipeline

    result = train(bag(), store, tmp_path, test_store=test_store, progress="none")
    assert result.test.accuracy > 0.9
    assert isinstance(load_model(tmp_path), BagClassifier)
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(tmp_path), BagClassifier)
    texts = ["a lovely bright film", "awful and broken", ""]
    table = TrainedRun.open(tmp_path).predict(texts[:2])
    assert table["label"].to_pylist() == ["good", "bad"]
    found = pipeline("text-classification", str(tmp_path))(texts[:2])
    assert [each["label"] for each in found] == ["good", "bad"]
    assert [each["score"] for each in found] == pytest.approx(table["probability"].to_pylist(), abs=1e-5)


@pytest.mark.parametrize("stops", [[1, 8], [4, 6]])
@pytest.mark.parametrize("ngrams", [1, 3])
def test_an_interrupted_run_ends_bitwise_as_an_uninterrupted_one(tmp_path, store, stops, ngrams):
    chosen = bag("data.batches_per_step=2", f"model.ngrams={ngrams}", "data.tokens_per_batch=128")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = train(chosen, store, whole, progress="none")
    assert result.steps > 9
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, stop)
            with pytest.raises(Interrupted):
                train(chosen, store, parts, progress="none")
    again = train(chosen, store, parts, progress="none")
    assert same(whole / "last", parts / "last")
    assert same(whole / "best", parts / "best")
    assert again.validation == result.validation


def test_the_number_of_threads_changes_no_bit(tmp_path, store):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            train(bag("training.epochs=2"), store, tmp_path / str(threads), progress="none")
    finally:
        torch.set_num_threads(before)
    assert same(tmp_path / "1", tmp_path / "2")


def test_accumulation_is_one_large_batch(tmp_path, store):
    options = ["data.validation_fraction=0", "training.epochs=4", "data.tokens_per_batch=100000"]
    for name, pieces in (("one", []), ("four", ["data.batches_per_step=4"])):
        train(bag(*options, *pieces), store, tmp_path / name, progress="none")
    one, four = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "four")
    )
    steps = [(a, b) for a, b in zip(one, four, strict=True) if a["split"] == "train"]
    assert len(steps) == 4
    for a, b in steps:
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2)


def test_an_n_gram_that_training_never_met_says_nothing(tmp_path, store):
    train(bag("training.max_steps=1", "data.validation_fraction=0"), store, tmp_path, progress="none")
    table = weights(tmp_path)["embeddings.weight"]
    touched = (table != 0).any(1)
    assert 0 < touched.sum() < len(table) / 2
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["ngrams"], config["embedding_size"]) == ("penstock_bag", 2, 16)
    assert len(table) == store.vocab_size + config["buckets"]


def test_a_long_gradient_is_clipped_in_its_rows(tmp_path, store):
    """The sums of squares are those of what is left."""
    norms = []
    for number, norm in enumerate((0, 1e-3)):
        run = tmp_path / str(number)
        train(bag("training.max_steps=1", f"training.max_grad_norm={norm}"), store, run, progress="none")
        state = torch.load(run / "last" / "training_state.pt", weights_only=True)
        sums = [each["sum"].double() - 1e-6 for each in state["stepper"]["optimizer"]["state"].values()]
        norms.append(sum(float(each.sum()) for each in sums))
    assert norms[1] < norms[0] * 1e-3


@pytest.mark.parametrize("labels", [2, 5])
def test_forward_takes_both_forms_of_input(labels):
    torch.manual_seed(0)
    model = BagClassifier(BagClassifierConfig(vocab_size=20, buckets=32, num_labels=labels, embedding_size=7))
    torch.nn.init.normal_(model.embeddings.weight)
    ragged = Ragged.from_lengths(torch.tensor([1, 2, 3, 4, 5], dtype=torch.int32), [3, 0, 2])
    padded = torch.tensor([[1, 2, 3], [0, 0, 0], [4, 5, 0]])
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 0]])
    targets = torch.tensor([0, 1, 1])
    one, other = model(ragged, labels=targets), model(padded, mask, labels=targets)
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one.loss, other.loss)
    torch.testing.assert_close(one.logits[1], model.classifier.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(ragged).logits, one.logits)


def test_the_step_of_dense_weights_is_torchs_adagrad():
    torch.manual_seed(0)
    mine = torch.nn.Linear(4, 3)
    theirs = torch.nn.Linear(4, 3)
    theirs.load_state_dict(mine.state_dict())
    optimizers = (
        RowAdagrad(mine.parameters(), lr=0.1),
        torch.optim.Adagrad(theirs.parameters(), lr=0.1, initial_accumulator_value=1e-6),
    )
    for _ in range(5):
        x = torch.randn(6, 4)
        for model, optimizer in zip((mine, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict())


def test_which_optimizer_follows_from_the_model():
    model = BagClassifier(BagClassifierConfig(vocab_size=20, buckets=32, num_labels=2))
    assert isinstance(build_optimizer(model, learning_rate=0.1, weight_decay=0.01), RowAdagrad)
    assert isinstance(build_optimizer(torch.nn.Linear(2, 2), learning_rate=0.1, weight_decay=0.01), torch.optim.AdamW)


def test_it_starts_from_an_earlier_run(tmp_path, store):
    train(bag("training.max_steps=3", "model.ngrams=3", "model.buckets=500"), store, tmp_path / "one", progress="none")
    begun = load_settings(
        None, [f"model.start_from={tmp_path / 'one'}", "training.max_steps=1", "training.learning_rate=0"]
    )
    train(begun, store, tmp_path / "two", progress="none")
    assert same(tmp_path / "one", tmp_path / "two")
    with pytest.raises(ConfigError, match=r"model\.buckets=64 contradicts model\.start_from"):
        load_settings(None, [f"model.start_from={tmp_path / 'one'}", "model.buckets=64"])


def test_several_processes_are_refused(tmp_path, store, monkeypatch):
    from penstock.engine.training import train as module
    from penstock.engine.training.distributed import World

    monkeypatch.setattr(module.World, "join", lambda device, *_: World(0, 2, torch.device("cpu")))
    monkeypatch.setattr(module.World, "on_main", lambda self, action: action())
    monkeypatch.setattr(module.World, "wait_at_most", lambda self, seconds: None)
    with pytest.raises(ConfigError, match=r"model\.kind=bag trains in one process"):
        train(bag("data.batches_per_step=2"), store, tmp_path, progress="none")
