"""Answers from weights that stay packed, and in int8 where that costs next to nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from subtested import as_subtests
from tiny_encoders import stock_model
from typer.testing import CliRunner

from penstock.engine import LSTMClassifier, evaluate, train
from penstock.engine.cli import app
from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, PenstockError, RunError, StoreError
from penstock.engine.models import LSTMClassifierConfig
from penstock.engine.training import evaluate as evaluation
from penstock.engine.training import int8
from penstock.engine.training.distil import distil
from penstock.engine.training.int8 import Int8Check
from penstock.engine.training.run_record import read_record
from penstock.engine.training.settings import load_settings
from penstock.engine.training.trained import TrainedRun
from penstock.kernels import use_backend

TEXTS = ["a lovely film", "awful and dull and broken " * 9, "plain"]


@pytest.fixture(scope="module")
def encoder(store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "encoder"
    stock_model("bert", vocab_size=store.vocab_size).save_pretrained(folder)
    store.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["lstm", "encoder"])
def run(request, store, encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "run"
    of_kind = {
        "lstm": ["model.hidden_size=40", "model.embedding_size=8", "training.learning_rate=3e-2"],
        "encoder": [f"model.encoder={encoder}", "training.learning_rate=3e-3"],
    }[request.param]
    quick = ["data.tokens_per_batch=256", "training.epochs=4", "training.tensorboard=false"]
    train(load_settings(None, [f"model.kind={request.param}", *of_kind, *quick]), store, folder, progress="none")
    return folder


def packed(model: Any) -> Any:
    """What was packed, of which there is one for as long as the weights stay."""
    prepared = model.prepared
    return prepared.packed if isinstance(model, LSTMClassifier) else next(iter(prepared._packed.values()))


def same(found: Any, expected: Any, model: Any) -> bool:
    """An LSTM's kernels are the same with packed weights, to the bit; an encoder's are others."""
    if isinstance(model, LSTMClassifier):
        return found.equals(expected)
    return np.allclose(*(table["probability"].to_numpy() for table in (found, expected)), atol=1e-2)


def penstock(*arguments: object) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_prediction_keeps_weights_packed(run, monkeypatch) -> None:
    trained = TrainedRun.open(run)
    with use_backend("torch"):  # for which nothing is packed
        trained.predict(TEXTS)
    assert trained.model.prepared is None
    monkeypatch.setattr(evaluation, "prepare", lambda model, precision: None)
    expected = trained.predict(TEXTS, probabilities=True)
    assert trained.model.prepared is None
    monkeypatch.undo()
    found = trained.predict(TEXTS, probabilities=True)
    assert same(found, expected, trained.model)
    kept = packed(trained.model)
    assert "prepared=" in repr(trained.model)
    assert trained.predict(TEXTS, probabilities=True).equals(found)
    assert packed(trained.model) is kept
    assert trained.tokenizer() is trained.tokenizer()
    trained.model.train()
    assert trained.model.prepared is None


def test_evaluation_in_the_middle_of_a_training_leaves_nothing_packed(store) -> None:
    sizes = {"vocab_size": 150, "hidden_size": 8, "embedding_size": 8}
    model = LSTMClassifier(LSTMClassifierConfig(**sizes, num_labels=store.num_labels)).train()
    first = evaluate(model, store)
    assert model.training
    assert model.lstm.prepared is None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-2)
    assert evaluate(model, store) != first
    assert evaluate(model.eval(), store) == evaluate(model.train(), store)


def test_a_change_between_two_evaluations_is_seen(store) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 150, "hidden_size": 8, "embedding_size": 8}
    model = LSTMClassifier(LSTMClassifierConfig(**sizes, num_labels=store.num_labels)).eval()
    evaluate(model, store)
    assert model.lstm.prepared is not None
    for parameter in model.lstm.parameters():
        parameter.data.mul_(3)
    found = evaluate(model, store)
    model.lstm.prepared = None
    assert evaluate(model, store) == found


def test_int8_is_kept_where_it_costs_little(run, monkeypatch) -> None:
    monkeypatch.setattr(int8, "LARGEST_LOSS", 3 / 48)  # of 48 rows some may change sides on some machine
    trained, plain = TrainedRun.open(run), TrainedRun.open(run)
    check = trained.answer_in_int8()
    assert check.kept
    assert check.rows == 48  # of 240, a fifth
    assert trained.model.prepared.dtype == torch.int8
    found, expected = (each.predict(TEXTS * 4, probabilities=True) for each in (trained, plain))
    columns = [name for name in found.column_names if name.startswith("probability_")]
    one, other = (np.stack([table[name].to_numpy() for name in columns]) for table in (found, expected))
    assert not np.array_equal(one, other)
    assert np.abs(one - other).max() < 0.05


def test_int8_is_given_up_where_it_costs_more(run, monkeypatch) -> None:
    monkeypatch.setattr(int8, "LARGEST_LOSS", -0.5)  # it would have to gain
    trained = TrainedRun.open(run)
    check = trained.answer_in_int8()
    assert not check.kept
    assert trained.model.prepared.dtype is None
    assert "more than 0.2 points lost, so these answers are without it" in check.summary()
    assert trained.predict(TEXTS).equals(TrainedRun.open(run).predict(TEXTS))


def test_the_border_is_two_thousandths() -> None:
    assert Int8Check(1000, 0.9, 0.898).kept
    assert not Int8Check(1000, 0.9, 0.897).kept
    assert Int8Check(1000, 0.9, 0.95).kept


def test_commands(run, texts, tmp_path) -> None:
    out = tmp_path / "out.csv"
    _, said = penstock("predict", run, texts["test"], "--out", out, "--int8")
    assert "penstock: int8: accuracy" in said
    assert "on the 48 validation rows" in said
    assert out.read_text().count("\n") == 91
    _, said = penstock("evaluate", run, "--data", texts["test"], "--int8")
    assert "penstock: int8: accuracy" in said
    _, said = penstock("predict", run, texts["test"], "--out", out)
    assert "int8" not in said


def without_store(run: Path, copy: Path) -> None:
    (copy / "store").rename(copy / "moved")


def damaged(run: Path, copy: Path) -> None:
    shard = next((copy / "store").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def prepared_anew(run: Path, copy: Path) -> None:
    shutil.rmtree(copy / "store")
    rows = [(f"a text number {n}", "good" if n % 2 else "bad") for n in range(90)]
    prepare(rows, copy / "store", tokenizer="train:wordpiece:100", progress=False)


LOST: dict[str, tuple[Callable[[Path, Path], None], type[PenstockError], str]] = {
    "no store": (without_store, StoreError, "what int8 costs is measured on the validation rows"),
    "damaged": (damaged, StoreError, "leave --int8 out"),
    "another store": (prepared_anew, StoreError, "no longer to be found"),
}


@pytest.mark.slow
@as_subtests("how", LOST)
def test_without_the_validation_rows(how: str, texts, tmp_path) -> None:
    folder = tmp_path / how
    store = prepare(str(texts["train"]), folder / "store", tokenizer="train:wordpiece:150", progress=False)
    sizes = ["model.kind=lstm", "model.hidden_size=4", "model.embedding_size=4"]
    settings = load_settings(None, [*sizes, "training.max_steps=1", "training.tensorboard=false"])
    train(settings, store, folder / "run", progress="none")
    spoil, error, message = LOST[how]
    spoil(folder / "run", folder)
    trained = TrainedRun.open(folder / "run")
    with pytest.raises(error, match=message):
        trained.answer_in_int8()
    assert trained.predict(TEXTS).num_rows == 3


@as_subtests("tested", [False, True])
def test_a_store_that_was_moved_is_told_as_the_message_says(tested: bool, store, test_store, texts, tmp_path) -> None:
    folder = tmp_path / str(tested)
    shutil.copytree(store.path, folder / "store")
    sizes = ["--model", "lstm", "model.hidden_size=4", "model.embedding_size=4", "training.max_steps=1"]
    test = ["--eval", test_store.path] if tested else []
    penstock("train", "--out", folder / "run", "--train", folder / "store", *test, *sizes)
    (folder / "store").rename(folder / "moved")
    command = ["predict", folder / "run", texts["test"], "--out", folder / "out.csv", "--int8"]
    with pytest.raises(StoreError) as caught:
        penstock(*command)
    told = str(caught.value).rpartition("tell the run: penstock ")[2]
    for option, place in (("--train", folder / "moved"), ("--eval", test_store.path)):
        told = told.replace(f"{option} STORE", f"{option} {place}")
    penstock(*told.split())
    assert "penstock: int8: accuracy" in penstock(*command)[1]


def test_rows_that_were_chosen(store, tmp_path) -> None:
    settings = load_settings(None, ["model.kind=lstm", "model.hidden_size=4", "training.max_steps=1"])
    chosen = {"some": {"rows": np.arange(0, 60)}, "own": {"validation_rows": np.arange(7), "rows": np.arange(7, 60)}}
    for name, rows in chosen.items():
        train(settings, store, tmp_path / name, progress="none", **rows)
        assert TrainedRun.open(tmp_path / name).answer_in_int8().rows == (12 if name == "some" else 7)
    (tmp_path / "some" / "validation_rows.npy").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"validation_rows\.npy is damaged"):
        TrainedRun.open(tmp_path / "some").answer_in_int8()
    (tmp_path / "some" / "validation_rows.npy").unlink()
    with pytest.raises(StoreError, match="no longer to be found"):  # an earlier penstock's
        TrainedRun.open(tmp_path / "some").answer_in_int8()


def test_a_student(store, texts, tmp_path) -> None:
    """It is measured with true labels alone."""
    settings = load_settings(None, ["model.kind=lstm", "model.hidden_size=4", "training.max_steps=1"])
    train(settings, store, tmp_path / "teacher", progress="none")
    unlabelled = prepare(str(texts["test"]), tmp_path / "unlabelled", like=store.path, unlabelled=True, progress=False)
    distil(settings, [tmp_path / "teacher"], unlabelled, tmp_path / "student", train_store=store, progress="none")
    check = TrainedRun.open(tmp_path / "student").answer_in_int8()
    held = np.load(tmp_path / "student" / "validation_rows.npy")
    assert 0 < check.rows == (held < store.num_examples).sum() < len(held)
    distil(settings, [tmp_path / "teacher"], unlabelled, tmp_path / "alone", progress="none")
    unlabelled.path.rename(tmp_path / "moved")
    distil(
        settings,
        [tmp_path / "teacher"],
        Store.open(tmp_path / "moved", labelled=False),
        tmp_path / "student",
        train_store=store,
        progress="none",
    )
    origin = read_record(tmp_path / "student")["data"]["distillation"]
    assert (origin["unlabelled"], origin["labelled"]) == (str(tmp_path / "moved"), str(store.path))
    with pytest.raises(ConfigError, match="whose labels are its teachers' own"):
        TrainedRun.open(tmp_path / "alone").answer_in_int8()


def test_where_it_has_no_effect_or_cannot_be(store, run, tmp_path) -> None:
    settings = load_settings(None, ["model.kind=bag", "training.max_steps=1", "training.tensorboard=false"])
    train(settings, store, tmp_path / "bag", progress="none")
    with pytest.raises(ConfigError, match="int8 is for LSTMs and encoders"):
        TrainedRun.open(tmp_path / "bag").answer_in_int8()
    with use_backend("torch"), pytest.raises(ConfigError, match=r"cannot answer in int8 here: .*the backend is torch"):
        TrainedRun.open(run).answer_in_int8()
    sizes = ["model.kind=lstm", "model.hidden_size=4", "model.embedding_size=4", "data.validation_fraction=0"]
    settings = load_settings(None, [*sizes, "training.max_steps=1", "training.tensorboard=false"])
    train(settings, store, tmp_path / "whole", progress="none")
    with pytest.raises(ConfigError, match="and it has none"):
        TrainedRun.open(tmp_path / "whole").answer_in_int8()
