"""The Triton kernels' values, in Triton's interpreter. It is chosen when a kernel is decorated, so that one process
either interprets or compiles: those tests are the files interpreted_*.py, which pytest collects where it is told to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("cases", ["not slow", "slow"])
def test_in_the_interpreter(cases: str) -> None:
    pytest.importorskip("triton")
    files = sorted(map(str, HERE.glob("interpreted_*.py")))
    assert len(files) == 3
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", cases, *files],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
