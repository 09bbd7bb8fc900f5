"""A dry run says what a run will need, by its heaviest batches, and leaves nothing behind."""

import dataclasses
import os
import re
import shutil
import tempfile

import numpy as np
import pytest
from command_line import penstock
from stopping import stop_at
from subtested import as_subtests

from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.prepare import begin
from penstock.engine.errors import ConfigError, RunError
from penstock.engine.models.lstm import LSTMClassifier
from penstock.engine.training import rehearsal
from penstock.engine.training.checkpoint import read_state
from penstock.engine.training.dry_run import dry_run
from penstock.engine.training.loop import Loop
from penstock.engine.training.memory import _free_of_the_control_groups, _free_of_the_machine, memory_limit
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.step import Stepper, derive_seed
from penstock.engine.training.train import train

TINY = ("--model", "lstm", "model.hidden_size=4", "model.embedding_size=4", "training.tensorboard=false")


def everything(folder):
    """Every file with its content and time."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(place, name)
            state = os.lstat(file)
            found[file] = (state.st_size, state.st_mtime_ns, state.st_ino)
    return found


def plan_of(store, mode="pack", width=1):
    parameters = PlanParameters(tokens_per_batch=256, batches_per_step=width, mode=mode)
    return Loader(store, seed=derive_seed(0, "order"), parameters=parameters).plan()


@pytest.mark.slow
def test_it_says_what_a_run_needs_and_writes_nothing(store, test_store, tmp_path):
    before = everything(store.path.parent)
    chosen = (*TINY, "data.tokens_per_batch=300", "training.epochs=3", "--eval", test_store.path)
    done = penstock("train", "--train", store.path, "--out", tmp_path / "run", *chosen, "--dry-run")
    assert done.returncode == 0, done.stderr
    first, peak, speed, whole = done.stdout.splitlines()
    assert re.fullmatch(
        r"dry run: nothing is written; the heaviest batch has \d+ texts with \d+ tokens, the longest of \d+", first
    )
    assert re.match(r"peak memory: \d+\.\d\d GiB of \d+\.\d\d GiB that there are", peak)
    assert re.match(r"time: \S+ s a step \(\S+ s the slowest tried\), \d+ steps and about \S+ \w+ an epoch;", speed)
    steps = int(re.search(r"(\d+) steps and", speed)[1])
    assert whole.startswith(f"the run: at most {3 * steps:,} steps, about ")
    assert list(tmp_path.iterdir()) == []
    assert everything(store.path.parent) == before


@pytest.mark.slow
def test_raw_texts_are_prepared_elsewhere(texts, tmp_path, monkeypatch):
    """Where a run has prepared its texts, or has begun to, nothing changes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    raw = ["--texts", texts["train"], "--text", "text", "--tokenizer", "train:bpe:300", "--out", tmp_path / "run"]
    command = ["pretrain", *raw, *TINY, "training.max_steps=2"]
    for made in ("nothing", "begun", "finished"):
        if made == "begun":
            begin(str(texts["train"]), tmp_path / "run.texts", tokenizer="train:bpe:300", text="text", unlabelled=True)
        if made == "finished":
            assert penstock(*command).returncode == 0
        before = everything(tmp_path)
        done = penstock(*command, "--dry-run")
        assert done.returncode == 0, done.stderr
        assert ("is complete" if made == "finished" else "dry run: nothing is written") in done.stdout
        assert everything(tmp_path) == before, made
        assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
def test_of_a_run_that_is_there_nothing_changes(store, settings, tmp_path):
    train(settings("training.max_steps=3"), store, tmp_path, progress="none")
    before = everything(tmp_path)
    asked = settings("training.max_steps=9")
    found, lines = dry_run(asked, store, tmp_path)
    assert everything(tmp_path) == before
    assert found.steps > 1
    assert lines[-1].startswith("the rest of the run: at most 6 steps")
    done = penstock("train", "--out", tmp_path, "--dry-run")
    assert done.stdout == f"dry run: {tmp_path} is complete: there is nothing left to do\n"
    assert everything(tmp_path) == before
    assert train(asked, store, tmp_path, progress="none").steps == 9


@pytest.mark.slow
def test_it_says_what_going_on_takes(store, settings, tmp_path):
    """In the epoch that the run has come to, by the steps that it has left, with the evaluations after them."""
    chosen = settings("training.epochs=3", "training.checkpoint_every_steps=1")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 15)
        with pytest.raises(Interrupted):
            train(chosen, store, tmp_path, progress="none")
    said = []
    found, lines = dry_run(chosen, store, tmp_path, say=said.append)
    stopped = read_state(tmp_path)["counters"]["step"]
    assert found.steps < stopped < 2 * found.steps
    left = int(re.match(r"the rest of the run: at most (\d+) steps", lines[-1])[1])
    assert left == pytest.approx(3 * found.steps - stopped, abs=2)
    assert f"resumes after step {stopped} of" in said[0]
    known = dataclasses.replace(found, seconds=3600.0, validation=rehearsal.EvaluationTime(5, 7200.0))
    loops = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "rehearse_checkpoint", lambda self: loops.append(self))
        dry_run(chosen, store, tmp_path)
    hours = float(re.search(r"about (\S+) hours with its evaluations", list(known.lines(loops[0]))[-1])[1])
    assert hours == left + 2 * 2  # of three evaluations one has been


@pytest.mark.slow
def test_it_checks_what_going_on_checks(store, settings, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            train(settings("training.max_steps=9"), store, tmp_path / "stopped", progress="none")
    train(settings("training.max_steps=9"), store, tmp_path / "complete", progress="none")
    shutil.copytree(tmp_path / "stopped", tmp_path / "damaged", symlinks=True)
    (tmp_path / "damaged" / "last" / "model.safetensors").write_bytes(b"nothing")
    for run, asked, error, message in (
        ("stopped", "training.max_steps=2", ConfigError, r"max_steps=2: .* has done \d steps already"),
        ("complete", "training.max_steps=5", ConfigError, r"max_steps=5: .* has done 9 steps already"),
        ("complete", "training.patience=7", ConfigError, r"changes nothing: .* is over by training\.max_steps=9"),
        ("damaged", "training.max_steps=9", RunError, r"model\.safetensors has 7 bytes"),
    ):
        chosen = settings("training.max_steps=9", asked)
        for attempt in (dry_run, train):
            with pytest.raises(error, match=message):
                attempt(chosen, store, tmp_path / run)


@pytest.mark.slow
@pytest.mark.parametrize(("heaviest", "others"), [(1.0, 3.0), (2.0, 0.5), (1.0, 1.0)])
def test_no_step_is_slower_in_the_mean_than_the_slowest(store, settings, tmp_path, monkeypatch, heaviest, others):
    """Whatever the few that are timed take for their tokens."""
    timed = []

    def known(action):
        timed.append(action())
        return heaviest if len(timed) <= count else others

    monkeypatch.setattr(rehearsal, "_timed", known)
    monkeypatch.setattr(rehearsal, "_TYPICAL_STEPS", 2)
    chosen = settings("data.validation_fraction=0", "data.mode=pack")
    count = len(rehearsal.heaviest_steps(plan_of(store)))
    found, _ = dry_run(chosen, store, tmp_path / "run")
    assert found.worst_seconds == max(heaviest, others)
    assert found.seconds <= found.worst_seconds


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pack", "bucket"])
@pytest.mark.parametrize("width", [1, 3])
def test_the_heaviest_batches_are_tried(store, settings, tmp_path, monkeypatch, mode, width):
    tried = []
    plain = Stepper.__call__

    def noted(self, batches, **rest):
        tried.extend((batch.num_tokens, batch.tokens.max_seqlen) for batch in batches)
        return plain(self, batches, **rest)

    monkeypatch.setattr(Stepper, "__call__", noted)
    chosen = settings(f"data.mode={mode}", f"data.batches_per_step={width}", "data.validation_fraction=0")
    found, _ = dry_run(chosen, store, tmp_path / "run")
    plan = plan_of(store, mode, width)
    sums = [int(store.lengths[plan.rows(batch)].sum()) for batch in range(plan.num_batches)]
    assert (found.heaviest.tokens, found.steps) == (max(sums), plan.num_steps)
    assert max(tokens for tokens, _ in tried) == max(sums)
    assert max(longest for _, longest in tried) == store.lengths.max()
    squares = [int((store.lengths[plan.rows(batch)].astype(np.int64) ** 2).sum()) for batch in range(plan.num_batches)]
    assert int(np.argmax(squares)) // width in rehearsal.heaviest_steps(plan)


@pytest.mark.slow
def test_it_trains_nothing(store, settings, tmp_path, monkeypatch):
    made = []
    plain = Loop.rehearse_checkpoint
    monkeypatch.setattr(Loop, "rehearse_checkpoint", lambda self: (made.append(self), plain(self)))
    dry_run(settings(), store, tmp_path / "run")
    [loop] = made
    new = [parameter.clone() for parameter in loop.model.parameters()]
    loop.rehearse_step(0)
    assert all((one == other).all() for one, other in zip(new, loop.model.parameters(), strict=True))
    assert (loop.counters.step, loop.counters.examples) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("peak", "limit", "fits"), [(2**30, 2**31, True), (2**31, 2**30, False), (None, 1, True)])
def test_it_says_whether_it_fits(store, settings, tmp_path, monkeypatch, peak, limit, fits):
    monkeypatch.setattr(rehearsal, "peak_of", lambda device: peak)
    monkeypatch.setattr(rehearsal, "limit_of", lambda device: limit)
    found, lines = dry_run(settings(), store, tmp_path / "run")
    assert found.fits == fits
    assert ("set data.tokens_per_batch below 256" in " ".join(lines)) == (not fits)


@pytest.mark.slow
def test_memory_that_runs_out_is_said_as_in_a_run(store, tmp_path, monkeypatch):
    def fails(self, *args, **options):
        raise MemoryError

    monkeypatch.setattr(LSTMClassifier, "forward", fails)
    done = penstock("train", "--train", store.path, "--out", tmp_path / "run", *TINY, "--dry-run")
    assert done.returncode == 11
    assert "out of memory while training a batch of" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (("--resume", "previous"), {}, "leave --resume out"),
        ((), {"WORLD_SIZE": "2"}, "start it without torchrun"),
        (("training.epochs=0",), {}, "training.epochs must be at least 1"),
    ],
)
def test_what_it_refuses(store, tmp_path, monkeypatch, options, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = penstock("train", "--train", store.path, "--out", tmp_path / "run", *TINY, *options, "--dry-run")
    assert done.returncode == ConfigError.exit_code
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


def group(root, path, most, used, files):
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\nactive_file 7\n")


@as_subtests(
    "path, expected",
    [
        ("/", [800]),
        ("/a", [800]),  # no limit of its own
        ("/a/b", [350, 800]),
        ("/a/b/c", [40, 350, 800]),
        ("/of/the/host", [800]),  # a container sees the host's path
    ],
)
def test_every_group_with_a_limit_counts(tmp_path, path, expected):
    root, own = tmp_path / "root", tmp_path / "own"
    group(root, "", 1000, 300, 100)
    group(root, "a", "max", 200, 0)
    group(root, "a/b", 500, 150, 0)
    group(root, "a/b/c", 100, 90, 30)
    own.write_text(f"12:cpu:/elsewhere\n0::{path}\n")
    assert list(_free_of_the_control_groups(own, root)) == expected


def test_groups_of_the_first_kind_and_what_is_missing(tmp_path):
    root, own = tmp_path / "root", tmp_path / "own"
    folder = root / "memory" / "job"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("1000")
    (folder / "memory.usage_in_bytes").write_text("600")
    (folder / "memory.stat").write_text("total_inactive_file 50\n")
    own.write_text("9:memory:/job\n8:cpu,cpuacct:/job\n")
    assert list(_free_of_the_control_groups(own, root)) == [450]
    assert list(_free_of_the_control_groups(tmp_path / "none", root)) == []
    assert list(_free_of_the_machine(tmp_path / "none")) == []


def test_this_machines_memory():
    alone, shared = memory_limit(), memory_limit(4)
    assert alone is None or 0 < shared < alone
