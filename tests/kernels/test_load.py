"""How threads wait on a busy machine: `waits_briefly`, which follows what other processes take of the cores."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from penstock.kernels import compiled

pytestmark = [
    pytest.mark.skipif(compiled.native is None, reason="the compiled module is not there"),
    pytest.mark.skipif(not os.path.exists("/proc/thread-self/schedstat"), reason="the system tells no waiting times"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one thread waits for no other"),
]
BUSY = "while True: pass"
# Calls a kernel for as long as it takes, with torch's threads, and says what it finds.
PROGRAM = """
import sys, time
import torch
{first}
from penstock import _native
from penstock.kernels.gelu import bias_gelu
torch.set_num_threads({threads})
x, bias = torch.randn(4096, 256), torch.randn(256)
rows = x[:{rows}]
end = time.monotonic() + float(sys.argv[1])
def work_until(briefly):
    found = None
    while found != briefly and time.monotonic() < end:
        bias_gelu(rows, bias)
        x @ x.T
        found = _native.waits_briefly()
    print(found, flush=True)
work_until(True)
{then}
"""
NOTEBOOK = "torch.ones(512, 512) @ torch.ones(512, 512)  # starts OpenMP's threads before penstock is there"


@pytest.fixture
def busy_cores() -> Iterator[list[subprocess.Popen]]:
    """One process a core beside the test's, at equal priority; all that are in the list at the end are ended."""
    begun = [subprocess.Popen([sys.executable, "-S", "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    yield begun
    for process in begun:
        process.kill()
        process.wait()


def program(first: str, threads: int, then: str = "", rows: int = 4096) -> str:
    return PROGRAM.format(first=first, threads=threads, then=then, rows=rows)


def found(first: str, seconds: float, threads: int = 2, rows: int = 4096, **environment: str) -> str:
    others = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    kept = {name: value for name, value in os.environ.items() if name not in others}
    command = [sys.executable, "-c", program(first, threads, rows=rows), str(seconds)]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.usefixtures("busy_cores")
@pytest.mark.parametrize("first", ["", NOTEBOOK], ids=["fresh", "notebook"])
def test_threads_sleep_at_once_beside_busy_processes(first: str) -> None:
    assert found(first, 60) == "True"


@pytest.mark.slow
@pytest.mark.usefixtures("busy_cores")
def test_threads_of_torch_sleep_too_where_a_kernel_has_work_for_one_alone() -> None:
    assert found("", 60, rows=1) == "True"


@pytest.mark.slow
def test_threads_try_to_spin_again_beside_one_process_of_a_low_priority(busy_cores: list[subprocess.Popen]) -> None:
    """That they go on spinning cannot be told where other tests run beside this one."""
    command = [sys.executable, "-c", program("", 2, then="work_until(False)"), "120"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ours:
        assert ours.stdout is not None
        assert ours.stdout.readline() == "True\n"
        busy_cores.append(subprocess.Popen(["nice", "-n", "19", sys.executable, "-S", "-c", BUSY]))
        for other in busy_cores[:-1]:
            other.kill()
        assert ours.stdout.readline() == "False\n"


@pytest.mark.slow
@pytest.mark.usefixtures("busy_cores")
@pytest.mark.parametrize("more", [1, 3])
def test_more_threads_than_cores_sleep_as_they_are(more: int) -> None:
    assert found("", 60, (os.cpu_count() or 1) + more) == "True"


@pytest.mark.slow
@pytest.mark.usefixtures("busy_cores")
@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_says_of_waiting_stays(name: str) -> None:
    assert found("", 2, **{name: "active" if name == "OMP_WAIT_POLICY" else "10000"}) == "False"
