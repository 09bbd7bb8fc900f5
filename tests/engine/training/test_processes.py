"""Runs in processes of their own: killed at any time, or several at once."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

TINY = [
    "model.hidden_size=8",
    "model.embedding_size=8",
    "model.embedding_dropout=0.2",
    "data.tokens_per_batch=128",
    "data.batches_per_step=2",
    "training.learning_rate=1e-2",
    "training.epochs=8",
    "training.patience=0",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=2",
    "training.tensorboard=false",
]

STEP = ("data", "forward", "backward", "optimizer", "communication")  # the phases that `seconds` has


def command(store, run, *overrides, launcher=(), verb=("train", "--train")):
    arguments = [*launcher, "-m", "penstock.engine.cli", *verb, str(store.path), "--out", str(run)]
    return [sys.executable, *arguments, *TINY, *overrides]


def start(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(arguments):
    process = start(arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def lines(run):
    timeless = ("seconds", "tokens_per_second", "examples_per_second", "data_wait", "mfu", "time")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in timeless} for record in records]


# Runs the command line and kills it `delay` seconds after it began its `after`-th step, wherever it is by then.
KILLED = """
import os, signal, sys, threading
from penstock.engine.cli import main
from penstock.engine.training.step import Stepper

after, delay = int(sys.argv.pop(1)), float(sys.argv.pop(1))
take_step, taken = Stepper.__call__, 0

def counted(self, *args, **kwargs):
    global taken
    taken += 1
    if taken == after:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return take_step(self, *args, **kwargs)

Stepper.__call__ = counted
main()
"""


@pytest.mark.parametrize("verb", [("train", "--train"), ("pretrain", "--texts")], ids=lambda verb: verb[0])
def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(store, tmp_path, verb):
    longer = "training.epochs=20"
    finish(command(store, tmp_path / "whole", longer, verb=verb))
    draw = random.Random(0)
    for _ in range(3):
        after, delay = draw.randint(3, 30), draw.random() * 0.05
        _, _, _, *arguments = command(store, tmp_path / "killed", longer, verb=verb)
        process = start([sys.executable, "-c", KILLED, str(after), str(delay), *arguments])
        process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL
    finish(command(store, tmp_path / "killed", longer, verb=verb))
    for name in ("best", "last"):
        one, other = (tmp_path / run / name / "model.safetensors" for run in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")


def progress_of(run):
    file = run / "metrics.jsonl"
    return file.stat().st_size if file.exists() else 0


@pytest.mark.usefixtures("heard_signals")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_checkpoints_and_exits(store, tmp_path, signum, code):
    process = start(command(store, tmp_path / "run", "training.checkpoint_every_steps=0", "training.epochs=200"))
    while not progress_of(tmp_path / "run"):
        time.sleep(0.05)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"penstock: stopped by {signum.name} after step" in err.splitlines()[-1]
    assert (tmp_path / "run" / "last" / "training_state.pt").exists()


def test_two_processes_train_as_one(store, tmp_path):
    overrides = ["training.epochs=2"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finish(command(store, tmp_path / "one", *overrides))
    finish(command(store, tmp_path / "two", *overrides, launcher=launcher))
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert len(one) == len(two) > 10
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == (pytest.approx(b[key], rel=1e-3, abs=1e-6) if isinstance(a[key], float) else b[key]), key
    # waiting for each other is known for what it is, and the phases still add up
    alone, shared = (json.loads((tmp_path / run / "run.json").read_text())["result"] for run in ("one", "two"))
    assert alone["time"]["communication"] == 0 < shared["time"]["communication"]
    for result in (alone, shared):
        assert sum(result["time"][phase] for phase in STEP) == pytest.approx(result["seconds"], rel=0.1, abs=0.05)


def test_fewer_validation_rows_than_processes(store, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, more in (("one", {}), ("two", {"launcher": launcher})):
        finish(command(store, tmp_path / name, "training.epochs=2", "data.validation_max=1", **more))
    one, two = ([line for line in lines(tmp_path / name) if line["split"] == "validation"] for name in ("one", "two"))
    assert [line["accuracy"] for line in one] == [line["accuracy"] for line in two]
    assert len(one) == 2


def test_processes_that_do_not_divide_a_step(store, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start(command(store, tmp_path / "run", "data.batches_per_step=3", launcher=launcher))
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "data.batches_per_step=3 cannot be shared by 2 processes: set it to a multiple of 2" in err


def together(store, run, *overrides):
    """The two processes of a run, without a launcher that would end the one when the other does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.items():
            patch.setenv(name, value)
        for rank in ("0", "1"):
            patch.setenv("RANK", rank)
            patch.setenv("LOCAL_RANK", rank)
            yield start(command(store, run, *overrides))


@pytest.mark.parametrize(
    ("blow", "words"),
    [
        (signal.SIGSTOP, "another process did not answer within 6 s (training.rank_timeout)"),
        (signal.SIGKILL, "another process of this run has ended: its own message says why"),
    ],
)
@pytest.mark.parametrize("struck", [0, 1])
def test_a_process_that_hangs_or_is_gone_ends_the_others(store, tmp_path, blow, words, struck):
    processes = list(together(store, tmp_path / "run", "training.epochs=100000", "training.rank_timeout=6"))
    other = processes[1 - struck]
    try:
        while not progress_of(tmp_path / "run"):
            time.sleep(0.05)
            assert all(process.poll() is None for process in processes)
        processes[struck].send_signal(blow)
        _, err = other.communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert other.returncode == 12, err
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


# The command line, with a SIGKILL in one process of each start but the last: BLOWS has "rank moment number delay" of
# each; the process dies `delay` seconds after it came to the moment for the `number`-th time since it was started.
STRUCK = """
import os, signal, threading
from penstock.engine.cli import main
from penstock.engine.training import conclude, loop, saver
from penstock.engine.training.step import Stepper

blows = os.environ["BLOWS"].split(",")
start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
rank, moment, number, delay = (blows[start] if start < len(blows) else "none - 0 0").split()
where = {"step": (Stepper, "__call__"), "evaluation": (loop, "evaluate"), "checkpoint": (saver, "write_checkpoint"),
         "end": (conclude, "export_best"), "-": (loop, "evaluate")}
owner, name = where[moment]
action, calls = getattr(owner, name), 0

def counted(*arguments, **options):
    global calls
    calls += 1
    if os.environ["RANK"] == rank and calls == int(number):
        if float(delay):
            threading.Timer(float(delay), os.kill, (os.getpid(), signal.SIGKILL)).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return action(*arguments, **options)

setattr(owner, name, counted)
main()
"""


def under_torchrun(script, store, run, blows, *overrides):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "9"]
    arguments = ["train", "--train", str(store.path), "--out", str(run), *TINY, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "BLOWS": ",".join(blows)}
    command = [sys.executable, *launcher, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("shard", ["false", "true"])
def test_started_again_it_ends_with_the_same_bits(store, tmp_path, shard):
    script, overrides = tmp_path / "struck.py", ["training.epochs=6", f"training.shard={shard}"]
    script.write_text(STRUCK)
    draw = random.Random(shard)
    blows = [
        f"1 step {draw.randint(3, 20)} {draw.random() * 0.02:.4f}",
        f"0 checkpoint {draw.randint(1, 5)} 0",  # its thread has not begun to write
        f"0 step {draw.randint(3, 9)} {draw.random() * 0.02:.4f}",
        f"1 evaluation 1 {draw.random() * 0.01:.4f}",
        "0 end 1 0",
    ]
    under_torchrun(script, store, tmp_path / "whole", [], *overrides)
    said = under_torchrun(script, store, tmp_path / "struck", blows, *overrides)
    assert said.count("exitcode: -9") == len(blows), said
    assert said.count("resumes after step") >= len(blows) - 1  # the first may come before any checkpoint
    assert "Traceback" not in said
    for name in ("model.safetensors", "best/model.safetensors", "last/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "struck" / name).read_bytes(), name
    assert lines(tmp_path / "whole") == lines(tmp_path / "struck")
