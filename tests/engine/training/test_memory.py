"""Freed memory is used again where that is asked for; memory that runs out is said with its batch."""

import itertools
import platform
import re
import subprocess
import sys

import pytest
import torch
from command_line import penstock
from subtested import as_subtests

from penstock.engine.errors import is_out_of_memory
from penstock.engine.models.lstm import LSTMClassifier
from penstock.engine.study.run_trial import TrialTask, run_trial
from penstock.engine.study.trials import Trial

_FAULTS_OF_A_TENSOR = """
import resource, torch
from penstock.engine.training.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(48 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for prepare in (lambda: None, keep_freed_memory):
    prepare()
    # what is asked for is a little larger than what was freed: not each one fits
    print(min(faults() for _ in range(20)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told how to give out memory")
@pytest.mark.slow
def test_a_tensor_takes_the_pages_of_the_ones_before(tmp_path) -> None:
    command = [sys.executable, "-P", "-c", _FAULTS_OF_A_TENSOR]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    left, kept = map(int, done.stdout.split())
    assert kept == 0 < left


SAID = {
    "torch on a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: x"
    ),
    "torch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "numpy": MemoryError("Unable to allocate 7.45 GiB"),
    "C++": MemoryError("std::bad_alloc"),
}


@pytest.mark.slow
@as_subtests("said, moment", itertools.product(SAID, ["training", "evaluating"]))
def test_memory_that_runs_out_names_the_batch(said, moment, store, tmp_path, monkeypatch):
    forward = LSTMClassifier.forward

    def fails(self, *args, **options):
        if self.training == (moment == "training"):
            raise SAID[said]
        return forward(self, *args, **options)

    monkeypatch.setattr(LSTMClassifier, "forward", fails)
    small = ("model.hidden_size=4", "model.embedding_size=4", "data.tokens_per_batch=200", "training.epochs=1")
    done = penstock("train", "--model", "lstm", "--train", store.path, "--out", tmp_path / "run", *small)
    assert done.returncode == 11
    last = done.stderr.splitlines()[-1]
    assert re.search(
        rf"out of memory while {moment} a batch of \d+ texts with \d+ tokens, the longest of \d+: set", last
    )
    assert "Traceback" not in done.stderr


def test_a_trial_that_runs_out_of_memory_has_failed(store, test_store, settings, tmp_path, monkeypatch):
    def fails(self, *args, **options):
        raise MemoryError

    monkeypatch.setattr(LSTMClassifier, "forward", fails)
    task = TrialTask(Trial(60, 0, "lstm"), settings(), store.path, test_store.path, 0, None, tmp_path / "run")
    result = run_trial(task)
    assert result.status == "failed"
    assert result.error.startswith("out of memory while training a batch of")


def test_other_errors_are_not_taken_for_it():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
