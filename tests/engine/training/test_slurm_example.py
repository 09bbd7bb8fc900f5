"""examples/train_on_slurm.sbatch as it stands, with commands of SLURM that start processes of this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "examples" / "train_on_slurm.sbatch"
SETTINGS = [
    "model.kind=lstm",
    "model.hidden_size=8",
    "model.embedding_size=8",
    "data.tokens_per_batch=128",
    "data.batches_per_step=2",
    "training.epochs=5",
    "training.checkpoint_every_steps=2",
    "training.log_every_steps=1",
    "training.tensorboard=false",
    "training.shard=true",
]
# Starts the tasks; with STOP_AT, a file, sends them SIGTERM when that is there, as a time limit does.
SRUN = f"""#!{sys.executable}
import os, pathlib, signal, subprocess, sys, time
arguments = sys.argv[1:]
while arguments[0].startswith("-"):
    del arguments[0]
tasks = []
for number in range(int(os.environ["SLURM_NTASKS"])):
    place = {{"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}}
    tasks.append(subprocess.Popen(arguments, env={{**os.environ, **place}}))
if "STOP_AT" in os.environ:
    file = pathlib.Path(os.environ["STOP_AT"])
    while not (file.exists() and file.stat().st_size) and all(task.poll() is None for task in tasks):
        time.sleep(0.02)
    for task in tasks:
        task.send_signal(signal.SIGTERM)
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """#!/bin/bash
case $1 in
show) echo localhost && echo elsewhere ;;
requeue) echo "$2" >> requeued ;;
esac
"""


@pytest.fixture
def submit(store, tmp_path):
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    job |= {"SLURM_CPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": path}

    def start(run, number, *settings, **environment):
        job["SLURM_JOB_ID"] = str(os.getpid() % 5000 * 2 + number)
        command = ["bash", str(SCRIPT), str(store.path), str(run), *SETTINGS, *settings]
        environment = {**os.environ, **job, **environment}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return start


@pytest.mark.slow
def test_a_job_that_is_stopped_is_queued_again_and_goes_on(submit, tmp_path):
    done = submit(tmp_path / "whole", 0)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["status"] == "complete"
    assert not (tmp_path / "requeued").exists()
    stopped = submit(tmp_path / "again", 1, STOP_AT=str(tmp_path / "again" / "metrics.jsonl"))
    assert stopped.returncode == 143, stopped.stderr
    assert len((tmp_path / "requeued").read_text().split()) == 1
    done = submit(tmp_path / "again", 1, SLURM_RESTART_COUNT="1")
    assert done.returncode == 0, done.stderr
    assert "resumes after step" in done.stderr
    one, other = (tmp_path / run / "last" / "model.safetensors" for run in ("whole", "again"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_an_error_of_the_user_is_not_tried_again(submit, tmp_path):
    done = submit(tmp_path / "run", 0, "data.batches_per_step=3")
    assert done.returncode == 6
    assert "data.batches_per_step=3 cannot be shared by 2 processes" in done.stderr
    assert not (tmp_path / "requeued").exists()


def test_it_says_how_it_is_used(tmp_path):
    done = subprocess.run(["bash", str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "usage: sbatch train_on_slurm.sbatch STORE RUN [section.key=value ...]\n",
    )
