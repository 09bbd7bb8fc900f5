"""Freed memory is used again where that is asked for."""

import platform
import subprocess
import sys

import pytest

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
def test_a_tensor_takes_the_pages_of_the_ones_before(tmp_path) -> None:
    command = [sys.executable, "-P", "-c", _FAULTS_OF_A_TENSOR]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    left, kept = map(int, done.stdout.split())
    assert kept == 0 < left
