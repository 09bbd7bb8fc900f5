"""Runs that start from an earlier run's weights."""

import shutil
from pathlib import Path

import pytest
import torch
from stopping import stop_at
from transformers import BertConfig, BertForSequenceClassification

from penstock.engine.data.prepare import prepare
from penstock.engine.errors import ConfigError, RunError, StoreError
from penstock.engine.models import load_model
from penstock.engine.training.command import read_settings
from penstock.engine.training.settings import load_settings
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.train import train

QUICK = ["training.tensorboard=false", "training.max_steps=2", "training.learning_rate=0", "training.precision=fp32"]


@pytest.fixture(params=["lstm", "encoder"])
def earlier(request, tmp_path, store, settings):
    """A run of three labels."""
    chosen = ["training.max_steps=3"]
    if request.param == "encoder":
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = BertConfig(vocab_size=store.vocab_size, max_position_embeddings=64, **sizes)
        BertForSequenceClassification(config).save_pretrained(tmp_path / "encoder")
        store.tokenizer().save_pretrained(tmp_path / "encoder")
        chosen += ["model.kind=encoder", f"model.encoder={tmp_path / 'encoder'}"]
    train(settings(*chosen), store, tmp_path / "earlier", progress="none")
    return tmp_path / "earlier"


@pytest.fixture
def other_labels(tmp_path, store):
    source = tmp_path / "other.csv"
    source.write_text("text,label\n" + "".join(f"a lovely film {i},{'yes' if i % 2 else 'no'}\n" for i in range(40)))
    return prepare(str(source), tmp_path / "other", tokenizer=str(store.path / "tokenizer"), progress=False)


def state(folder):
    return load_model(folder).state_dict()


def test_the_same_labels_keep_all_weights(tmp_path, store, earlier):
    run = tmp_path / "run"
    result = train(load_settings(None, [f"model.start_from={earlier}", *QUICK]), store, run, progress="none")
    before, after = state(earlier), state(run)
    assert all(torch.equal(before[key], after[key]) for key in before)
    again = train(load_settings(None, [f"model.start_from={earlier}", *QUICK]), store, run, progress="none")
    assert again == result


def test_other_labels_get_a_new_output_layer(tmp_path, other_labels, earlier, capsys):
    run = tmp_path / "run"
    chosen = load_settings(None, [f"model.start_from={earlier}", *QUICK])
    train(chosen, other_labels, run, progress="plain")
    said = capsys.readouterr().err
    assert "its 3 labels are not the 2 of the data: the output layer" in said
    assert f"from the weights of the run {earlier}" in said
    before, after = state(earlier), state(run)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        key for key in before if "classifier" in key
    }
    assert list(load_model(run).config.id2label.values()) == ["no", "yes"]


def test_it_resumes_without_the_earlier_run(tmp_path, other_labels, earlier):
    run = tmp_path / "run"
    chosen = load_settings(None, [f"model.start_from={earlier}", *QUICK])
    train(chosen, other_labels, run, progress="none")
    shutil.rmtree(earlier)
    longer = load_settings(None, ["training.max_steps=4"])
    assert train(longer, other_labels, run, progress="none").steps == 4


@pytest.mark.slow
@pytest.mark.parametrize("earlier", ["encoder"], indirect=True)
@pytest.mark.parametrize(
    ("chosen", "said", "undone"),
    [
        (["model.freeze_layers=1"], "frozen: embeddings, 1 layer", ["model.freeze_layers=null"]),
        (["model.lora_rank=2", "model.lora_alpha=3"], "adapters of rank 2", ["model.lora_rank=null"]),
    ],
)
def test_null_undoes_what_the_earlier_run_had(tmp_path, store, earlier, capsys, chosen, said, undone):
    pytest.importorskip("peft")
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    train(load_settings(None, [f"model.start_from={earlier}", *chosen, *QUICK]), store, first, progress="none")
    for run, more in ((second, []), (third, undone)):
        train(load_settings(None, [f"model.start_from={first}", *more, *QUICK]), store, run, progress="plain")
        line = capsys.readouterr().err.splitlines()[0]
        assert (" of them trained" in line) == (said in line) == (run == second), line
    before, after = state(first), state(third)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert load_settings(third / "config.yaml").model.lora_alpha is None
    with pytest.raises(RunError, match=f"holds another run: {undone[0].partition('=')[0]} is . there and None here"):
        train(load_settings(None, undone), store, second, progress="none")


@pytest.mark.slow
def test_the_same_command_goes_on_without_the_earlier_run_and_its_encoder(tmp_path, store, earlier):
    shutil.rmtree(tmp_path / "encoder", ignore_errors=True)
    options = {"model.start_from": str(earlier)}
    run, chosen = tmp_path / "run", [*QUICK, "training.checkpoint_every_steps=1"]
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(Interrupted):
            train(read_settings(None, options, chosen, run), store, run, progress="none")
    shutil.rmtree(earlier)
    assert train(read_settings(None, options, chosen, run), store, run, progress="none").steps == 2
    with pytest.raises(RunError, match="holds no run"):
        read_settings(None, options, chosen, tmp_path / "new")


@pytest.mark.parametrize("gone", [False, True])
def test_the_same_command_goes_on_in_a_folder_that_was_moved(tmp_path, store, settings, monkeypatch, gone):
    project, moved, run = tmp_path / "project", tmp_path / "moved", Path("run")
    project.mkdir()
    monkeypatch.chdir(project)
    train(settings("training.max_steps=1"), store, "earlier", progress="none")
    options = {"model.start_from": "earlier"}
    train(read_settings(None, options, QUICK, run), store, run, progress="none")
    assert load_settings(run / "config.yaml").model.start_from == str(project / "earlier")
    project.rename(moved)
    monkeypatch.chdir(moved)
    if gone:  # but for a folder of its name
        shutil.rmtree("earlier")
        Path("earlier").mkdir()
    longer = [*QUICK[:1], *QUICK[2:], "training.max_steps=3"]
    assert train(read_settings(None, options, longer, run), store, run, progress="none").steps == 3
    with pytest.raises(
        RunError, match=r"run holds another run: model\.start_from is .*earlier' there and 'other' here"
    ):
        train(read_settings(None, {"model.start_from": "other"}, longer, run), store, run, progress="none")
    with pytest.raises(RunError, match=r"run holds another run: model\.hidden_size is 8 there and 9 here"):
        read_settings(None, options, [*longer, "model.hidden_size=9"], run)


def test_what_does_not_fit(tmp_path, texts, store, earlier, settings):
    wrong = "model.kind=lstm" if load_model(earlier).config.model_type == "bert" else "model.hidden_size=9"
    with pytest.raises(ConfigError, match=r"contradicts model\.start_from=.*, where it is"):
        load_settings(None, [f"model.start_from={earlier}", wrong])
    with pytest.raises(RunError, match="holds no run"):
        load_settings(None, [f"model.start_from={tmp_path}"])
    other = prepare(str(texts["train"]), tmp_path / "words", tokenizer="train:wordpiece:110", progress=False)
    with pytest.raises(StoreError, match="was prepared with another tokenizer"):
        train(load_settings(None, [f"model.start_from={earlier}", *QUICK]), other, tmp_path / "run", progress="none")
    assert not (tmp_path / "run").exists()
