import contextlib
import json
from functools import partial

import numpy as np
import pytest
import torch
from stopping import stop_at

from penstock.engine.errors import ConfigError, NonFiniteError, RunError, StoreError
from penstock.engine.training.evaluate import evaluate
from penstock.engine.training.train import train
from penstock.engine.training.trained import TrainedRun


def records(run, split):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same_weights(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_learns_and_leaves_all_that_it_should(tmp_path, store, test_store, settings):
    run = tmp_path / "run"
    result = train(settings(), store, run, test_store=test_store, progress="none")
    losses = [record["loss"] for record in records(run, "train")]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert result.validation.accuracy > 0.9
    assert result.test.accuracy > 0.9
    assert result.test.num_examples == 90
    assert (result.steps, result.examples, result.stopped_by) == (len(losses), 4 * 216, "epochs")
    assert result.epochs == 4
    assert len(records(run, "validation")) == 4
    tokens = [0, *(record["tokens"] for record in records(run, "train"))]
    assert 128 < max(np.diff(tokens)) <= 256, "a step is a batch of data.tokens_per_batch tokens"
    plans = records(run, "plan")
    assert [plan["epoch"] for plan in plans] == [0, 1, 2, 3]
    assert sum(plan["steps"] for plan in plans) == result.steps
    assert all(plan["examples"] == 216 and 0 < plan["fill"] <= 1 >= plan["attention_balance"] > 0 for plan in plans)
    for name in (
        "config.yaml",
        "run.json",
        "best/model.safetensors",
        "last/config.json",
        "config.json",
        "tokenizer.json",
    ):
        assert (run / name).exists(), name
    assert (run / "training_state.pt").exists() is False
    assert not any(file.name.startswith(".writing") for file in (run / "checkpoints").iterdir())


def test_the_run_serves_in_a_pipeline(tmp_path, store, settings):
    from transformers import pipeline

    train(settings("training.epochs=6"), store, tmp_path, progress="none")
    for folder in (tmp_path, tmp_path / "best", tmp_path / "last"):
        classify = pipeline("text-classification", str(folder))
        assert [found["label"] for found in classify(["a lovely bright film", "awful and broken"])] == ["good", "bad"]


def test_a_complete_run_gives_its_result_again_and_reads_nothing(tmp_path, store, test_store, settings, monkeypatch):
    first = train(settings(), store, tmp_path, test_store=test_store, progress="none")
    monkeypatch.setattr("penstock.engine.training.train.Loop", None)
    assert train(settings(), store, tmp_path, test_store=test_store, progress="none") == first


def test_another_run_in_the_directory(tmp_path, store, settings):
    train(settings("training.max_steps=2"), store, tmp_path, progress="none")
    with pytest.raises(RunError, match=r"holds another run: training.seed is 0 there and 1 here"):
        train(settings("training.max_steps=2", "training.seed=1"), store, tmp_path, progress="none")
    with pytest.raises(RunError, match=r"holds another run: training rows is"):
        train(settings("training.max_steps=2"), store, tmp_path, rows=np.arange(100), progress="none")


def test_accumulation_is_one_large_batch(tmp_path, store, settings):
    """Four batches of a quarter in a step, and one batch of all: the same gradient, up to rounding."""
    same = ("training.epochs=4", "model.head_dropout=0", "data.mode=pack", "data.validation_fraction=0")
    one = train(settings(*same, "data.tokens_per_batch=100000"), store, tmp_path / "one", progress="none")
    four = train(
        settings(*same, "data.tokens_per_batch=100000", "data.batches_per_step=4"),
        store,
        tmp_path / "four",
        progress="none",
    )
    assert one.examples == four.examples == 4 * 240
    for a, b in zip(records(tmp_path / "one", "train"), records(tmp_path / "four", "train"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-3)  # of bfloat16


@pytest.mark.parametrize("stops", [[1, 20], [9, 11]])
def test_an_interrupted_run_ends_bitwise_as_an_uninterrupted_one(tmp_path, store, settings, stops):
    """Stopped in the middle of an epoch, at its end and beyond, with accumulation and dropout."""

    from penstock.engine.training.signals import Interrupted

    chosen = settings("data.batches_per_step=2", "data.tokens_per_batch=128", "training.log_every_steps=3")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = train(chosen, store, whole, progress="none")
    assert result.steps > 21
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, stop)
            # the step that comes with it is finished, and one more, unless a validation is due, which is left
            with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step ({stop}|{stop + 1});") as caught:
                train(chosen, store, parts, progress="none")
        assert caught.value.exit_code == 143
    again = train(chosen, store, parts, progress="none")
    assert same_weights(whole / "last", parts / "last")
    assert same_weights(whole / "best", parts / "best")
    assert again.validation == result.validation
    assert records(parts, "plan") == records(whole, "plan")
    assert (again.steps, again.examples, again.tokens) == (result.steps, result.examples, result.tokens)
    timeless = ("seconds", "tokens_per_second", "examples_per_second", "data_wait", "mfu", "time")
    for split in ("train", "validation"):
        one, other = (
            [{k: v for k, v in r.items() if k not in timeless} for r in records(run, split)] for run in (whole, parts)
        )
        assert one == other


def test_the_callers_random_numbers_are_left_alone(tmp_path, store, settings):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(settings("training.max_steps=2"), store, tmp_path, progress="none")
    assert torch.equal(torch.rand(3), expected)


def test_seeds_differ_and_repeat(tmp_path, store, settings):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(settings("training.max_steps=3", f"training.seed={seed}"), store, tmp_path / name, progress="none")
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


def test_early_stopping_keeps_the_best(tmp_path, store, settings):
    # a rate of 0 never gets better than the first evaluation
    chosen = settings("training.learning_rate=0", "training.epochs=50", "training.patience=2")
    result = train(chosen, store, tmp_path, progress="none")
    validations = records(tmp_path, "validation")
    assert [record["best"] for record in validations] == [True, False, False]
    assert (result.stopped_by, result.best_step) == ("patience", validations[0]["step"])
    assert result.steps == validations[2]["step"]


def test_evaluation_and_lines_at_intervals_of_steps_and_at_the_end(tmp_path, store, settings):
    chosen = settings("training.max_steps=7", "training.evaluate_every_steps=3", "training.log_every_steps=5")
    train(chosen, store, tmp_path, progress="none")
    assert [record["step"] for record in records(tmp_path, "validation")] == [3, 6, 7]
    assert [record["step"] for record in records(tmp_path, "train")] == [5, 7]


def test_without_a_validation_split_the_last_model_is_the_best(tmp_path, store, settings):
    result = train(settings("training.max_steps=3", "data.validation_fraction=0"), store, tmp_path, progress="none")
    assert result.validation is None
    assert result.best_step == 3
    assert same_weights(tmp_path, tmp_path / "last")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_before_the_weights_are_touched(tmp_path, store, settings, where):
    from penstock.engine.training.step import Stepper

    take_step = Stepper.__call__

    def poison(self, batches, *, step, **rest):
        if step == 5:
            parameter = self._parameters[-1]
            if where == "loss":
                parameter.register_hook(lambda grad: grad)
                with torch.no_grad():
                    parameter[0] = float("nan")
            else:
                self._parameters[0].register_hook(lambda grad: grad * float("inf"))
        return take_step(self, batches, step=step, **rest)

    chosen = settings("training.checkpoint_every_steps=4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "__call__", poison)
        what = "the loss is nan" if where == "loss" else "the gradient norm is"
        with pytest.raises(NonFiniteError, match=f"step 5: {what}.*RUN/last|step 5: {what}"):
            train(chosen, store, tmp_path, progress="none")
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "last").values())
    # the same command goes on from the checkpoint
    assert train(chosen, store, tmp_path, progress="none").validation is not None


def test_given_validation_rows_and_a_subset(tmp_path, store, settings):
    result = train(
        settings("training.max_steps=2"),
        store,
        tmp_path,
        rows=np.arange(60),
        validation_rows=np.arange(60, 90),
        progress="none",
    )
    assert result.validation.num_examples == 30
    model = __import__("penstock.engine.models", fromlist=["load_model"]).load_model(tmp_path)
    again = evaluate(model, store, rows=np.arange(60, 90))
    assert again.accuracy == result.validation.accuracy
    assert again.loss == pytest.approx(result.validation.loss, rel=1e-6)


def test_without_rows_those_that_validate_are_not_trained_on(tmp_path, store, settings):
    held = np.arange(3, store.num_examples, 5)
    found = [
        train(settings("training.max_steps=3"), store, tmp_path / name, validation_rows=held, progress="none", **rows)
        for name, rows in (("all", {}), ("others", {"rows": np.setdiff1d(np.arange(store.num_examples), held)}))
    ]
    assert found[0].validation.num_examples == len(held)
    assert same_weights(tmp_path / "all/last", tmp_path / "others/last")


@contextlib.contextmanager
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND = {
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "autocast, off": partial(torch.autocast, "cpu", enabled=False),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": float64,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("around", AROUND)
def test_what_the_caller_has_set_changes_nothing(tmp_path, store, settings, around, precision):
    chosen = settings("training.max_steps=8", f"training.precision={precision}", "training.learning_rate=0.02")
    with AROUND[around]():
        within = train(chosen, store, tmp_path / "within", progress="none")
    alone = train(chosen, store, tmp_path / "alone", progress="none")
    assert same_weights(tmp_path / "within/last", tmp_path / "alone/last")
    assert within.validation.loss == alone.validation.loss
    run, text = TrainedRun.open(tmp_path / "alone"), ["a lovely film"]
    with AROUND["autocast"]():
        answers = run.predict(text)
    assert answers == run.predict(text)


def test_a_test_set_with_other_labels(tmp_path, texts, store, settings):
    from penstock.engine.data.prepare import prepare

    other = tmp_path / "other.csv"
    other.write_text("text,label\na,x\nb,y\n")
    others = prepare(str(other), tmp_path / "other", tokenizer=str(store.path / "tokenizer"), progress=False)
    with pytest.raises(StoreError, match=r"was prepared with other (labels|tokenizer) than the training data"):
        train(settings(), store, tmp_path / "run", test_store=others, progress="none")
    assert not (tmp_path / "run").exists()


def test_no_rows(tmp_path, store, settings):
    with pytest.raises(ConfigError, match="there are no training rows"):
        train(settings(), store, tmp_path / "run", rows=np.empty(0, np.int64), progress="none")


def test_bf16_on_a_cpu_learns(tmp_path, store, settings):
    result = train(settings("training.precision=bf16", "training.epochs=6"), store, tmp_path, progress="none")
    assert result.validation.accuracy > 0.8


def test_fp16_on_a_cpu_is_refused(tmp_path, store, settings):
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        train(settings("training.precision=fp16"), store, tmp_path, progress="none", device="cpu")


def test_a_last_step_with_fewer_examples_than_batches(tmp_path, store, settings):
    chosen = settings("data.batches_per_step=4", "data.tokens_per_batch=1", "data.validation_fraction=0")
    result = train(chosen, store, tmp_path, rows=np.arange(9), progress="none")
    assert (result.steps, result.examples) == (4 * 3, 4 * 9)


@pytest.mark.usefixtures("heard_signals")
def test_a_tiny_encoder_learns_and_resumes_bitwise(tmp_path, store, settings):
    import signal

    from transformers import BertConfig, BertForSequenceClassification

    from penstock.engine.training.signals import Interrupted

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=store.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "encoder")
    store.tokenizer().save_pretrained(tmp_path / "encoder")
    chosen = settings(
        "model.kind=encoder",
        f"model.encoder={tmp_path / 'encoder'}",
        "training.learning_rate=1e-2",
        "training.epochs=4",
        "data.tokens_per_batch=128",
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = train(chosen, store, whole, progress="none")
    assert result.validation.accuracy > 0.6
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 25, signal.SIGINT)
        with pytest.raises(Interrupted) as caught:
            train(chosen, store, parts, progress="none")
    assert caught.value.exit_code == 130
    train(chosen, store, parts, progress="none")
    assert same_weights(whole / "last", parts / "last")


@pytest.mark.slow
def test_a_compiled_model_trains_alike(tmp_path, store, settings):
    same = ("training.max_steps=4", "model.head_dropout=0", "data.validation_fraction=0")
    train(settings(*same), store, tmp_path / "eager", progress="none")
    train(settings(*same, "training.compile=true"), store, tmp_path / "compiled", progress="none")
    for a, b in zip(records(tmp_path / "eager", "train"), records(tmp_path / "compiled", "train"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
