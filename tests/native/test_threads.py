"""Threads that the system does not start: fewer do the work, and nobody waits for the others."""

import subprocess
from pathlib import Path

import pytest
from native_building import COMPILER, CSRC, HERE, THREADS, compiled, linked

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not CSRC.is_dir(), reason="not a checkout"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threads")
    sources = [HERE / "threads_that_cannot_start.cpp", *THREADS, CSRC / "lstm" / "cpu" / "team.cpp"]
    sources += [CSRC / "data" / "prefetch.cpp", CSRC / "data" / "shards.cpp"]
    return linked(compiled(sources, ["-O0"], folder), [], folder / "threads")


@pytest.mark.slow
@pytest.mark.parametrize("allowed", range(5))
def test_fewer_threads_do_the_work(program: Path, allowed: int) -> None:
    done = subprocess.run([program, str(allowed)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all was done\n"
