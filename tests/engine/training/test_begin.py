"""How runs begin, begin again, go on, and go on for longer."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from earlier_runs import as_before_checksums
from stopping import stop_at
from subtested import as_subtests
from tiny_encoders import stock_model
from typer.testing import CliRunner

from penstock.engine.cli import app
from penstock.engine.errors import ConfigError, ModelError, PenstockError, RunError, StoreError
from penstock.engine.training.settings import load_settings
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.train import train
from penstock.kernels.philox import DROPOUT_RULE

TINY = ["model.hidden_size=8", "model.embedding_size=8", "training.tensorboard=false", "training.log_every_steps=1"]


def penstock(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@as_subtests(
    "wrong, error",
    [
        (["model.encoder=no/such-encoder"], ModelError),
        (["model.kind=lstm", "model.embeddings=encoder", "model.encoder=no/such-encoder"], ModelError),
        (["training.precision=fp16"], ConfigError),
        (["training.class_weights={no such label: 3}"], ConfigError),
        (["data.batches_per_step=100000"], ConfigError),
        (["model.start_from=no/such/run"], RunError),
    ],
)
def test_a_start_that_failed_does_not_refuse_the_corrected_command(tmp_path, store, settings, wrong, error):
    from penstock.engine.training.settings import load_settings

    run = tmp_path / "run"
    with pytest.raises(error):
        train(load_settings(None, ["training.tensorboard=false", *wrong]), store, run, progress="none", device="cpu")
    assert train(settings("training.max_steps=2"), store, run, progress="none").steps == 2


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def unstarted(store, tmp_path_factory):
    """A run that was killed before its first checkpoint."""

    def dies(*args, **rest):
        raise Killed

    run = tmp_path_factory.mktemp("unstarted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.engine.training.saver.write_checkpoint", dies)
        with pytest.raises(Killed):
            train(load_settings(None, [*TINY, "training.max_steps=2"]), store, run, progress="none")
    assert (run / "metrics.jsonl").exists()
    return run


@pytest.mark.parametrize("call", ["mkdir", "replace", "unlink", "fsync"])
def test_an_unstarted_run_is_replaced_whenever_that_is_interrupted(tmp_path, store, settings, unstarted, call):
    """Killed again at every call while the next one takes its place."""
    from penstock.engine.training.run_directory import RunDirectory

    original, number, finished = getattr(os, call), 0, False
    while not finished:
        run, left = tmp_path / f"run{number}", number

        def dying(*args, **rest):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return original(*args, **rest)

        shutil.copytree(unstarted, run)
        with pytest.MonkeyPatch.context() as patch, RunDirectory(run) as directory:
            directory.open()
            patch.setattr(os, call, dying)
            with contextlib.suppress(Killed):
                directory.create({"other": 1}, "other", {}, np.arange(2))
                finished = True
        result = train(settings("training.max_steps=2", "training.seed=7"), store, run, progress="none")
        assert result.steps == 2
        assert [line["step"] for line in lines(run) if line["split"] == "train"] == [1, 2]
        number += 1
    assert number > 1, "it was never killed"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "distil", "pretrain"])
def test_out_alone_begins_again_what_was_killed_before_its_first_checkpoint(tmp_path, store, command):
    def dies(*args, **rest):
        raise Killed

    run, chosen = tmp_path / "run", ["--model", "lstm", *TINY, "training.max_steps=2"]
    data = ["--texts" if command == "pretrain" else "--train", store.path]
    if command == "distil":
        penstock("train", *data, "--out", tmp_path / "teacher", *chosen)
        data = ["--teacher", tmp_path / "teacher", "--unlabelled", store.path, "--logits", tmp_path / "logits"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.engine.training.saver.write_checkpoint", dies)
        with pytest.raises(Killed):
            penstock(command, *data, "--out", run, *chosen)
    if command != "distil":
        assert "nothing is written" in penstock(command, "--out", run, "--dry-run")
    assert "in 2 steps" in penstock(command, "--out", run)


def test_out_alone_goes_on(tmp_path, store, test_store):
    run = tmp_path / "run"
    command = ["train", "--train", store.path, "--eval", test_store.path, "--out", run, *TINY, "training.max_steps=6"]
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            penstock(*command)
    assert "6 steps" in (out := penstock("train", "--out", run))
    assert "test: accuracy" in out
    whole = tmp_path / "whole"
    command[command.index(run)] = whole
    penstock(*command)
    for name in ("last", "best"):
        here, there = (weights(folder / name) for folder in (run, whole))
        assert all(torch.equal(here[key], there[key]) for key in here)
    for contradicting in ("training.seed=3", "model.hidden_size=9", "data.tokens_per_batch=100"):
        with pytest.raises(RunError, match=f"holds another run: {contradicting.partition('=')[0]} is"):
            penstock("train", "--out", run, contradicting)
    with pytest.raises(ConfigError, match=r"there is no run in .* give --train STORE"):
        penstock("train", "--out", tmp_path / "absent")


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_out_alone_where_the_data_are_gone_or_changed(tmp_path, store, settings):
    run = tmp_path / "run"
    train(settings("training.max_steps=2"), store, run, progress="none")
    record = json.loads((run / "run.json").read_text())
    del record["crc32"]
    for place, message in ((tmp_path / "gone", "the training data of .*; give --train STORE"), (None, "no longer")):
        if place is None:
            record["identity"]["training data"] = "another"
            place = store.path
        record["data"]["store"] = str(place)
        (run / "run.json").write_text(json.dumps(record))
        with pytest.raises(StoreError, match=message):
            penstock("train", "--out", run)


@pytest.mark.parametrize("ends", [True, False])
def test_stores_that_were_moved_are_given_once(tmp_path, store, test_store, ends):
    """To a run that is complete, too, which keeps all else that it was."""
    run = tmp_path / "run"
    for name, one in (("train", store), ("test", test_store)):
        shutil.copytree(one.path, tmp_path / name)
    given = ["--train", tmp_path / "train", "--eval", tmp_path / "test"]
    command = ["train", "--out", run, *given, *TINY, "training.max_steps=4"]
    with pytest.MonkeyPatch.context() as patch:
        if not ends:
            stop_at(patch, 2)
        with contextlib.nullcontext() if ends else pytest.raises(Interrupted):
            penstock(*command)
    before = json.loads((run / "run.json").read_text())
    for name in ("train", "test"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    with pytest.raises(StoreError, match="give --train STORE if it is elsewhere"):
        penstock("train", "--out", run)
    penstock("train", "--out", run, "--train", tmp_path / "moved-train", "--eval", tmp_path / "moved-test")
    after = json.loads((run / "run.json").read_text())
    if ends:
        places = {name: str(tmp_path / f"moved-{where}") for name, where in (("store", "train"), ("test", "test"))}
        assert after.pop("crc32") != before.pop("crc32")
        assert after == {**before, "data": {**before["data"], **places}}
    assert "4 steps" in penstock("train", "--out", run)
    assert "8 steps" in penstock("train", "--out", run, "training.max_steps=8")


@pytest.mark.parametrize(
    ("first", "then", "steps"),
    [
        (["training.max_steps=4"], ["training.max_steps=9"], 9),
        (["training.epochs=1"], ["training.epochs=3"], None),
        (["training.epochs=40", "training.patience=1", "training.learning_rate=0"], ["training.patience=3"], None),
    ],
)
def test_a_finished_run_is_extended(tmp_path, store, settings, capsys, first, then, steps):
    run = tmp_path / "run"
    before = train(settings(*first), store, run, progress="none")
    # the test's own settings state 4 epochs where `first` does not
    after = train(settings(*first, *then), store, run, progress="plain")
    said = capsys.readouterr().err
    assert "the learning rate follows the schedule of the new total" in said
    assert after.steps > before.steps
    assert steps in (None, after.steps)
    assert [line["step"] for line in lines(run) if line["split"] == "train"] == list(range(1, after.steps + 1))
    assert json.loads((run / "run.json").read_text())["status"] == "complete"
    assert train(load_settings(), store, run, progress="none") == after
    assert train(settings(*first, *then), store, run, progress="none") == after


@pytest.mark.parametrize(
    ("first", "then", "after"),
    [
        (["max_steps=3"], ["max_steps=null", "epochs=1"], "training.epochs"),
        (["epochs=1"], ["max_steps=9", "epochs=null"], "training.max_steps"),
        (["epochs=1", "max_steps=2"], ["max_steps=null"], "training.epochs"),
        (["epochs=1"], ["epochs=2", "max_steps=null"], "training.epochs"),
    ],
)
def test_null_lifts_a_limit(tmp_path, store, first, then, after):
    first, then = ([f"training.{key}" for key in given] for given in (first, then))
    common = [*TINY, "data.tokens_per_batch=512"]
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(Interrupted):
            train(load_settings(None, [*common, *first]), store, tmp_path / "run", progress="none")
    result = train(load_settings(None, [*common, *then]), store, tmp_path / "run", progress="none")
    fresh = train(load_settings(None, [*common, *first, *then]), store, tmp_path / "fresh", progress="none")
    assert (result.steps, result.stopped_by) == (fresh.steps, after.partition(".")[2])


def test_what_is_left_open_later_stays_as_it_was_begun(tmp_path, store, settings, capsys):
    given = ["training.max_steps=2", "training.patience=null", "data.tokens_per_batch=null"]
    begun = train(load_settings(None, [*TINY, *given]), store, tmp_path, progress="none")
    assert (
        train(load_settings(None, [*TINY, *given, "training.epochs=null"]), store, tmp_path, progress="plain") == begun
    )
    assert "note: what is left open now stays as" in (said := capsys.readouterr().err)
    assert "training.patience=" in said
    with pytest.raises(
        ConfigError, match=r"training\.max_steps=null leaves nothing that ends .*: give training\.epochs"
    ):
        train(load_settings(None, ["training.max_steps=null"]), store, tmp_path, progress="none")
    train(load_settings(None, [*TINY, "training.layer_decay=0.9", *given]), store, tmp_path / "other", progress="none")
    with pytest.raises(RunError, match=r"training\.layer_decay is 0\.9 there and None here"):
        train(load_settings(None, ["training.layer_decay=null"]), store, tmp_path / "other", progress="none")


def test_an_extended_run_goes_on_with_its_optimizer(tmp_path, store, settings):
    """With a constant rate, extending is the same as having asked for more at first."""
    same = ("training.schedule=constant", "training.warmup=0", "training.epochs=1000")
    train(settings(*same, "training.max_steps=7"), store, tmp_path / "parts", progress="none")
    train(settings(*same, "training.max_steps=19"), store, tmp_path / "parts", progress="none")
    train(settings(*same, "training.max_steps=19"), store, tmp_path / "whole", progress="none")
    one, other = weights(tmp_path / "parts" / "last"), weights(tmp_path / "whole" / "last")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_extensions_that_are_none(tmp_path, store, settings):
    train(settings("training.epochs=2"), store, tmp_path, progress="none")
    with pytest.raises(ConfigError, match=r"training\.epochs=1: .* has done 2 epochs already"):
        train(settings("training.epochs=1"), store, tmp_path, progress="none")
    with pytest.raises(ConfigError, match=r"training\.max_steps=3: .* has done \d+ steps already"):
        train(settings("training.epochs=2", "training.max_steps=3"), store, tmp_path, progress="none")
    with pytest.raises(ConfigError, match=r"changes nothing: .* is over by training\.epochs=2; raise that"):
        train(settings("training.epochs=2", "training.patience=9"), store, tmp_path, progress="none")
    state = torch.load(tmp_path / "last" / "training_state.pt", weights_only=True)
    # as earlier versions left a finished run
    del state["stepper"], state["loader"]
    torch.save(state, tmp_path / "last" / "training_state.pt")
    as_before_checksums(tmp_path)
    with pytest.raises(RunError, match=r"kept no optimizer state: it cannot go on; .* --from"):
        train(settings("training.epochs=3"), store, tmp_path, progress="none")
    assert train(settings("training.epochs=2"), store, tmp_path, progress="none").epochs == 2


def test_an_earlier_versions_run_is_resumed_as_it_was(tmp_path, store, settings):
    """Its config.yaml and its identity lack what came later, its batches are those it was begun with."""
    import yaml

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            train(settings("data.tokens_per_batch=8192"), store, run, progress="none")
    as_before_checksums(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    record = json.loads((run / "run.json").read_text())
    for key in ("class_weights", "label_smoothing", "calibrate"):
        del config["training"][key], record["identity"][f"training.{key}"]
    del config["model"]["start_from"], record["identity"]["model.start_from"]
    config["model"]["encoder"] = "some/encoder"  # which the lstm never used
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "run.json").write_text(json.dumps(record))
    result = train(load_settings(), store, run, progress="none")
    assert result.steps == 4
    assert "tokens_per_batch: 8192" in (run / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("kind", "rule", "noted"),
    [
        ("encoder", None, "by rule 1"),
        ("encoder", 7, "by rule 7"),
        ("encoder", DROPOUT_RULE, None),
        ("lstm", None, "by rule 1"),
    ],
)
def test_a_run_that_drew_its_dropout_by_another_rule_goes_on_with_a_note(
    tmp_path, store, settings, capsys, kind, rule, noted
):
    run, wanted = tmp_path / "run", settings()
    if kind == "encoder":
        stock_model("bert", vocab_size=store.vocab_size).save_pretrained(tmp_path / "encoder")
        store.tokenizer().save_pretrained(tmp_path / "encoder")
        wanted = settings("model.kind=encoder", f"model.encoder={tmp_path / 'encoder'}", "training.epochs=1")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            train(wanted, store, run, progress="none")
    as_before_checksums(run)
    state = torch.load(run / "last" / "training_state.pt", weights_only=True)
    assert state.pop("dropout_rule") == DROPOUT_RULE
    torch.save({**state, **({} if rule is None else {"dropout_rule": rule})}, run / "last" / "training_state.pt")
    capsys.readouterr()
    assert train(wanted, store, run, progress="plain").steps > 3
    said = capsys.readouterr().err
    assert ("drew its dropout" in said) == (noted is not None)
    assert noted is None or noted in said


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], [r"BiLSTM \(1 layer of 8\), [\d,]+ parameters, from scratch; 216 examples in 3 classes", "33.3% 'bad'"]),
        (["training.max_steps=2"], ["24 more for validation; in 2 steps", "learning rate 0.03, batches of 256 tokens"]),
        (["training.max_steps=2", "training.class_weights=balanced"], ["class weights balanced"]),
    ],
)
def test_a_run_begins_with_a_line(tmp_path, store, settings, capsys, overrides, parts):
    train(settings("training.epochs=1", *overrides), store, tmp_path, progress="plain")
    import re

    first = capsys.readouterr().err.splitlines()[0]
    assert all(re.search(part, first) for part in parts), first


MISTAKES = [
    ["--train", "absent", "--out", "run"],
    ["--train", "STORE", "--out", "run", "training.epoch=1"],
    ["--train", "STORE", "--out", "file"],
    ["--train", "STORE", "--out", "file/run"],
    ["--train", "STORE", "--out", "run", "--encoder", "a", "--model", "lstm"],
    ["--train", "STORE", "--out", "run", "--model", "lstm", "model.kind=encoder"],
    ["--train", "STORE", "--out", "run", "--from", "absent"],
    ["--train", "STORE", "--out", "run", "--config", "absent.yaml"],
    ["--train", "STORE", "--eval", "absent", "--out", "run"],
    ["--out", "absent"],
]


@pytest.mark.slow
def test_mistakes_are_found_before_torch_is_imported(tmp_path, store):
    """In one process, with torch out of reach."""
    (tmp_path / "file").write_text("x")
    script = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from penstock.engine.cli import app
from penstock.engine.errors import PenstockError
for arguments in {MISTAKES!r}:
    try:
        app(["train", *[{str(store.path)!r} if a == "STORE" else a for a in arguments]], standalone_mode=False)
    except PenstockError as error:
        print(error.exit_code, error)
    else:
        print("no error", arguments)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    found = [line.split()[0] for line in done.stdout.splitlines()]
    assert found == ["5", "6", "7", "7", "6", "6", "7", "6", "5", "6"], done.stdout + done.stderr
    assert not (tmp_path / "run").exists()
    assert issubclass(RunError, PenstockError)
