"""Checkpoints beside the training, several at a time, and what a run that goes on has kept from its beginning."""

import errno
import json
import os
import shutil
import threading

import pytest
import torch
from stopping import stop_at
from tiny_encoders import stock_model

from penstock.engine.checked import check_sealed, read_seal
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, DiskError, RunError, StoreError
from penstock.engine.files import settle_pointer
from penstock.engine.training import saver
from penstock.engine.training.checkpoint import write_checkpoint
from penstock.engine.training.resume import settle_links
from penstock.engine.training.settings import load_settings
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.step import Stepper
from penstock.engine.training.train import train
from penstock.engine.training.writer import HostCopy, Writer

OFTEN = ("training.max_steps=10", "training.checkpoint_every_steps=2", "training.precision=fp32")


def weights(run, name="last"):
    return (run / name / "model.safetensors").read_bytes()


def stopped(settings, store, run, step, **options):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Interrupted):
            train(settings, store, run, progress="none", **options)


def test_a_copy_is_of_one_moment_and_keeps_what_is_shared():
    weight = torch.arange(6.0).view(2, 3)
    tree = {"a": weight, "b": [weight, weight.T, {"c": torch.tensor(1)}], "n": 3, "none": torch.zeros(0)}
    copies = HostCopy()
    copy = copies.of(tree)
    weight.add_(1)
    assert torch.equal(copy["a"], torch.arange(6.0).view(2, 3))
    assert torch.equal(copy["b"][1], torch.arange(6.0).view(2, 3).T)
    assert copy["a"] is copy["b"][0]
    assert copy["n"] == 3
    again = copies.of(tree)
    assert again["a"].data_ptr() == copy["a"].data_ptr(), "the buffers are used again"
    assert torch.equal(again["a"], weight)
    assert copies.of({"a": torch.zeros(9)})["a"].shape == (9,)


def test_what_a_write_raises_comes_out_when_it_is_waited_for():
    def fail():
        raise DiskError("full")

    writer = Writer()
    writer.wait()
    writer.start(fail)
    with pytest.raises(DiskError, match="full"):
        writer.wait()
    writer.start(lambda: None)
    writer.wait()
    writer.close()
    assert not writer.has_failed


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, store, settings, monkeypatch):
    chosen = settings(*OFTEN, "training.keep_checkpoints=9")
    train(chosen, store, tmp_path / "plain", progress="none")
    taken, write, seen = threading.Condition(), saver.write_checkpoint, []
    steps = [0]
    take_step = Stepper.__call__

    def counted(self, *args, **kwargs):
        report = take_step(self, *args, **kwargs)
        with taken:
            steps[0] += 1
            taken.notify_all()
        return report

    def slow(run, step, *args, **kwargs):
        # ends only once the step after it has been taken, whose weights must not be in it
        if step < 6:
            with taken:
                assert taken.wait_for(lambda: steps[0] > step, timeout=60)
        seen.append((threading.current_thread() is not threading.main_thread(), steps[0] - step))
        write(run, step, *args, **kwargs)

    monkeypatch.setattr(Stepper, "__call__", counted)
    monkeypatch.setattr(saver, "write_checkpoint", slow)
    stopped(chosen, store, tmp_path / "slow", 5)
    monkeypatch.setattr(saver, "write_checkpoint", write)
    assert any(beside and ahead > 0 for beside, ahead in seen)
    for step in (2, 4, 6):
        name = f"checkpoints/step-{step:08d}"
        assert weights(tmp_path / "plain", name) == weights(tmp_path / "slow", name)
        one, other = (torch.load(tmp_path / run / name / "training_state.pt") for run in ("plain", "slow"))
        for kept, same in zip(
            *(state["stepper"]["optimizer"]["state"].values() for state in (one, other)), strict=True
        ):
            assert all(torch.equal(kept[key], same[key]) for key in kept)
    train(chosen, store, tmp_path / "slow", progress="none")
    for name in ("best", "last"):
        assert weights(tmp_path / "plain", name) == weights(tmp_path / "slow", name)


def test_every_kept_checkpoint_is_that_of_its_step(tmp_path, store, settings):
    """Also what was written while the next steps changed the weights: each is gone on from to the same end."""
    many = ("training.keep_checkpoints=4", "training.checkpoint_every_steps=1", "training.evaluate_every_steps=3")
    train(settings(*OFTEN, *many), store, tmp_path / "run", progress="none")
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    resumable = [folder for folder in kept if (folder / "training_state.pt").exists()][-4:]
    assert [read_seal(folder)["step"] for folder in resumable] == [7, 8, 9, 10]
    for folder in kept:
        check_sealed(folder, read_seal(folder))
        assert read_seal(folder)["best"] in {other.name for other in kept}
    for number in range(1, 4):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(tmp_path / "run", copy, symlinks=True)
        record = json.loads((copy / "run.json").read_text())
        del record["crc32"], record["result"]
        (copy / "run.json").write_text(json.dumps({**record, "status": "running"}))
        for folder in resumable[-number:]:
            (copy / "checkpoints" / folder.name / "config.json").write_text("{}")
        train(settings(*OFTEN, *many), store, copy, progress="none", resume="previous")
        for name in ("best", "last"):
            assert weights(copy, name) == weights(tmp_path / "run", name)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_are_kept_as_the_settings_say(tmp_path, store, settings, keep):
    train(settings(*OFTEN, f"training.keep_checkpoints={keep}"), store, tmp_path / "run", progress="none")
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    steps = [read_seal(folder)["step"] for folder in kept if (folder / "training_state.pt").exists()]
    last = list(range(10, 10 - 2 * keep, -2))[::-1]
    assert steps[-keep:] == last
    best = {read_seal(folder)["best"] for folder in kept[-keep:]} - {None}
    assert {folder.name for folder in kept} == best | {f"step-{step:08d}" for step in last}, (
        "and the bests of their time"
    )


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(tmp_path, store, settings, monkeypatch):
    write = saver.write_checkpoint

    def full(run, step, *args, **kwargs):
        if step == 6:
            raise DiskError("cannot write: the disk is full")
        write(run, step, *args, **kwargs)

    monkeypatch.setattr(saver, "write_checkpoint", full)
    with pytest.raises(DiskError, match="the disk is full"):
        train(settings(*OFTEN), store, tmp_path / "run", progress="none")
    monkeypatch.setattr(saver, "write_checkpoint", write)
    assert read_seal(tmp_path / "run" / "last")["step"] == 4
    train(settings(*OFTEN), store, tmp_path / "run", progress="none")
    train(settings(*OFTEN), store, tmp_path / "whole", progress="none")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_the_time_that_checkpoints_take_is_told_apart(tmp_path, store, settings):
    result = train(settings(*OFTEN), store, tmp_path / "run", progress="none")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    waits = [line["seconds"] for line in lines if line["split"] == "checkpoint"]
    assert len(waits) >= 5
    assert result.checkpoint_seconds == pytest.approx(sum(waits), abs=1e-3)
    assert result.checkpoint_seconds > 0


@pytest.mark.parametrize("answer", [True, False])
def test_somebody_is_asked_whether_the_previous_one_will_do(tmp_path, store, settings, answer):
    train(settings(*OFTEN), store, tmp_path / "whole", progress="none")
    stopped(settings(*OFTEN), store, tmp_path / "run", 6)
    with open(tmp_path / "run" / "last" / "model.safetensors", "r+b") as file:
        file.truncate(100)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    asked = []

    def confirm(question):
        asked.append(question)
        assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics, "nothing is cut before the answer"
        return answer

    def go_on():
        return train(settings(*OFTEN), store, tmp_path / "run", progress="none", confirm=confirm)

    if answer:
        go_on()
        assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    else:
        with pytest.raises(RunError, match=r"model\.safetensors has 100 bytes, .* with --resume=previous"):
            go_on()
        assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    assert len(asked) == 1
    assert "model.safetensors has 100 bytes" in asked[0]


def _computes_in_bf16(patch, yes):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        patch.setattr(torch.cpu, name, lambda: yes)


@pytest.mark.parametrize("begun_with", [True, False])
def test_what_auto_precision_was_it_stays(tmp_path, store, settings, monkeypatch, capsys, begun_with):
    chosen = settings("training.max_steps=6")
    _computes_in_bf16(monkeypatch, begun_with)
    train(chosen, store, tmp_path / "whole", progress="none")
    stopped(chosen, store, tmp_path / "run", 3)
    _computes_in_bf16(monkeypatch, not begun_with)
    train(chosen, store, tmp_path / "run", progress="plain")
    was, here = ("bf16", "fp32") if begun_with else ("fp32", "bf16")
    said = f"training.precision=auto was {was} where the run began and stays so; here it would be {here}"
    assert said in capsys.readouterr().err
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_auto_precision_of_a_gpu_is_no_cpus(tmp_path, store, settings):
    stopped(settings("training.max_steps=6"), store, tmp_path / "run", 3)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    del record["crc32"]
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "precision": "fp16"}))
    with pytest.raises(ConfigError, match=r"was begun on a GPU, where training\.precision=auto is fp16"):
        train(settings("training.max_steps=6"), store, tmp_path / "run", progress="none")


def test_a_store_that_disappears_while_its_run_trains(tmp_path, store, settings, monkeypatch):
    """What is open stays readable, and the tokenizer was read when the run began."""
    shutil.copytree(store.path, tmp_path / "store")
    take_step = Stepper.__call__

    def removing(self, *args, step, **kwargs):
        if step == 2:
            shutil.rmtree(tmp_path / "store")
        return take_step(self, *args, step=step, **kwargs)

    monkeypatch.setattr(Stepper, "__call__", removing)
    train(settings(*OFTEN), Store.open(tmp_path / "store"), tmp_path / "run", progress="none")
    for name in ("best", "last", "."):
        assert (tmp_path / "run" / name / "tokenizer.json").read_bytes() == (
            store.path / "tokenizer" / "tokenizer.json"
        ).read_bytes()


def test_a_run_does_not_go_on_with_another_tokenizer(tmp_path, store, settings):
    shutil.copytree(store.path, tmp_path / "store")
    stopped(settings(*OFTEN), Store.open(tmp_path / "store"), tmp_path / "run", 5)
    with open(tmp_path / "store" / "tokenizer" / "tokenizer_config.json", "a") as file:
        file.write("\n\n")
    with pytest.raises(StoreError, match=r"tokenizer_config\.json: damaged"):
        train(settings(*OFTEN), Store.open(tmp_path / "store"), tmp_path / "run", progress="none")


def _changed(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.6}))
    for file in ("model.safetensors", "tokenizer.json"):
        (folder / file).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("harm", [_changed, shutil.rmtree, lambda folder: folder.rename(folder.with_name("moved"))])
@pytest.mark.parametrize("kind", ["encoder", "lora", "lstm", "pretraining"])
def test_a_run_that_has_begun_needs_its_encoder_no_more(tmp_path, store, settings, monkeypatch, kind, harm):
    """Named by a relative path, and gone on with from another folder."""
    chosen = {
        "encoder": ["model.kind=encoder"],
        "lora": ["model.kind=encoder", "model.lora_rank=2"],
        "lstm": ["model.kind=lstm", "model.embeddings=encoder", "model.freeze_embeddings=true", "model.hidden_size=8"],
        "pretraining": ["model.kind=encoder", "pretraining.objective=masked"],
    }[kind]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    stock_model("bert", vocab_size=store.vocab_size).save_pretrained("encoder")
    store.tokenizer().save_pretrained("encoder")
    quiet = ["training.tensorboard=false", "data.tokens_per_batch=256", *OFTEN, "training.max_steps=5"]
    same = load_settings(None, ["model.encoder=encoder", *chosen, *quiet])
    train(same, store, tmp_path / "whole", progress="none")
    for run in ("run", "same"):
        stopped(same, store, tmp_path / run, 3)
    harm(tmp_path / "here" / "encoder")
    assert train(same, store, tmp_path / "same", progress="none").steps == 5
    monkeypatch.chdir(tmp_path)
    alone = load_settings(None, ["pretraining.objective=masked"] if kind == "pretraining" else [])
    train(alone, store, tmp_path / "run", progress="none")
    for run in ("run", "same"):
        for file in ("model.safetensors", "config.json"):
            found = (tmp_path / run / "last" / file).read_bytes()
            assert found == (tmp_path / "whole" / "last" / file).read_bytes()


class Killed(BaseException):
    pass


def killed(settings, store, run, step, **options):
    """Before it takes the step."""
    take_step, last = Stepper.__call__, step

    def dying(self, *args, step, **kwargs):
        if step == last:
            raise Killed
        return take_step(self, *args, step=step, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "__call__", dying)
        with pytest.raises(Killed):
            train(settings, store, run, progress="none", **options)


@pytest.mark.parametrize("keeps", ["the checkpoint", "the one before"])
def test_a_log_that_was_moved_away_begins_again(tmp_path, store, settings, capsys, keeps):
    """Killed before the next checkpoint, which would know its new size, and again; from the same checkpoint, or, where
    that was damaged meanwhile, from the one before it."""
    chosen = settings(*OFTEN, "training.checkpoint_every_steps=3", "training.log_every_steps=1")
    train(chosen, store, tmp_path / "whole", progress="none")
    run, begins, resume = tmp_path / "run", 6, "last"
    stopped(chosen, store, run, 5)
    (run / "metrics.jsonl").unlink()
    killed(chosen, store, run, 8)
    if keeps == "the one before":
        (run / "last" / "config.json").write_text("{}")
        begins, resume = 3, "previous"
    capsys.readouterr()
    killed(chosen, store, run, begins + 2, resume=resume)
    train(chosen, store, run, progress="plain", resume=resume)
    assert f"metrics.jsonl has no earlier lines: it begins again after step {begins}" in capsys.readouterr().err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"split": "log", "step": begins, "after": f"step-{begins:08d}"}
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(begins + 1, 11))
    assert weights(run) == weights(tmp_path / "whole")


@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_a_log_that_began_again_is_compared_as_well(tmp_path, store, settings, harm):
    chosen = settings(*OFTEN, "training.log_every_steps=1")
    run = tmp_path / "run"
    stopped(chosen, store, run, 3)
    (run / "metrics.jsonl").unlink()
    killed(chosen, store, run, 8)
    content = (run / "metrics.jsonl").read_bytes()
    place = len(content) // 3  # written before the checkpoint of step 6
    (run / "metrics.jsonl").write_bytes(content[:place] + (b"" if harm == "cut" else b"?" + content[place + 1 :]))
    with pytest.raises(RunError, match=r"metrics\.jsonl (has \d+ bytes|is damaged)"):
        train(chosen, store, run, progress="none")


def empty_model(folder):
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("links", [True, False])
def test_a_best_model_of_a_run_that_has_nothing_to_go_on_from_is_taken_back(tmp_path, monkeypatch, links):
    """Killed between its first best model and its first checkpoint, on file systems with links and without."""
    if not links:

        def refuse(*_, **__):
            raise OSError(errno.EPERM, "no links")

        monkeypatch.setattr(os, "symlink", refuse)
    for _ in range(2):
        write_checkpoint(tmp_path, 1, empty_model, None, ["best"])
        assert (tmp_path / "best").is_symlink() == links
        settle_links(tmp_path, None)
        settle_pointer(tmp_path / "best")
        assert sorted(os.listdir(tmp_path)) == ["checkpoints"]
