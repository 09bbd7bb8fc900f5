"""The kernels' correctness tests: those of each backend of each operation in processes of their own, with a limit each.

A wrong result, a crash or a hang switches off that backend for that operation, and nothing else. `quick` comes before
anything is timed: one shape for each operation and type. `run`, all of them, comes last: a backend that fails there has
been timed, and its figures are marked as worth nothing.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from penstock.benchmarks.gpu.backends import GPU_BACKENDS
from penstock.benchmarks.gpu.context import Context, emit, key
from penstock.benchmarks.gpu.machine import ROOT
from penstock.benchmarks.gpu.pytest_lines import OTHERS
from penstock.kernels import dispatch

QUICK = "tests/kernels/test_quick_gpu.py"
BAD = ("failed", "hung", "aborted")  # what a test comes to, beside "passed" and "skipped"
_MOST_WORKERS = 15
_SHARDS = {"lstm/cuda": 4, "lstm/triton": 2, "varlen_attention/triton": 4, "residual_norm/triton": 2}
_FIRST = ("lstm/", "varlen_attention/")
_TRIES = 3  # of a process that did not survive a test: each goes on behind that test
# seconds for one test: by the processor most of it, Triton's and ptxas' compiling
_QUICK_LIMIT, _LIMIT, _REHEARSED_LIMIT = 40.0, 60.0, 15.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The tests of one kernel, "operation/backend", or a share of them."""

    kernel: str
    files: tuple[str, ...]
    shard: str = "0/1"

    @property
    def label(self) -> str:
        return f"{self.kernel.replace('/', '-')}-{self.shard.replace('/', '-')}"


def test_files() -> list[str]:
    """The test files that hold a GPU test, without the quick ones."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    found = [file.relative_to(ROOT).as_posix() for file in files if "mark.gpu" in file.read_text()]
    return [file for file in found if file != QUICK and not file.startswith("tests/benchmarks/")]


def kernels(context: Context, backends: tuple[str, ...] = GPU_BACKENDS) -> list[str]:
    """ "operation/backend" of what is there to test, what is most wanted first."""
    found = [
        key(operation, backend)
        for operation, backend, _ in dispatch.status()
        if backend in backends
        and backend not in context.without
        and (not context.operations or operation in context.operations)
        and key(operation, backend) not in context.off
        and dispatch._registry[operation][backend].available() is None
    ]
    return sorted(found, key=lambda kernel: not kernel.startswith(_FIRST))


def quick(context: Context) -> None:
    jobs = [Job(kernel, (QUICK,)) for kernel in kernels(context)]
    _all(context, jobs, _REHEARSED_LIMIT if context.smoke else _QUICK_LIMIT, tries=1)


def run(context: Context) -> None:
    files = ("tests/kernels/test_ragged.py",) if context.smoke else tuple(test_files())
    jobs = [Job(OTHERS, files)]
    if context.smoke:
        jobs += [Job(kernel, (QUICK,)) for kernel in kernels(context) if kernel.startswith(("bias_gelu", "rotary"))]
    else:
        for kernel in kernels(context, (*GPU_BACKENDS, "torch")):
            count = _SHARDS.get(kernel, 1)
            jobs += [Job(kernel, files, f"{place}/{count}") for place in range(count)]
    _all(context, jobs, _REHEARSED_LIMIT if context.smoke else _LIMIT, tries=_TRIES)


def _all(context: Context, jobs: list[Job], limit: float, tries: int) -> None:
    """Runs the jobs side by side: a row for each test as it ends, one for each kernel, one for all."""
    workers = 2 if context.smoke else min(_MOST_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        found = dict(zip(jobs, pool.map(lambda job: _run(context, job, limit, tries), jobs), strict=True))
    rows = [row for job in jobs for row in found[job]]
    for kernel in dict.fromkeys(job.kernel for job in jobs):
        emit(**verdict(kernel, rows))
    emit(kind="tests", **{outcome: _count(rows, outcome) for outcome in ("passed", "skipped", *BAD)})


def verdict(kernel: str, rows: list[Row]) -> Row:
    """How the tests of a kernel went; with `off`, the reason, if any of them went wrong."""
    mine = [row for row in rows if row["kernel"] == kernel]
    counts = {outcome: _count(mine, outcome) for outcome in ("passed", "skipped", *BAD)}
    row: Row = {"kind": "kernel", "kernel": kernel, **counts}
    bad = next((each for each in mine if each["outcome"] in BAD), None)
    if bad is not None:
        row |= {"off": kernel, "what": f"{bad['test']} {bad['outcome']}: {bad['message']}"}
    return row


def _count(rows: list[Row], outcome: str) -> int:
    return sum(row["outcome"] == outcome for row in rows)


def _run(context: Context, job: Job, limit: float, tries: int) -> list[Row]:
    """The rows of a job's tests. After one that its process did not survive a new process goes on behind it."""
    rows: list[Row] = []
    for _ in range(tries):
        before = len(rows)
        if context.left() < 1:
            rows.append(_row(job, job.kernel, "skipped", "not run: the time was up"))
            emit(**rows[-1])
            break
        for row in _process(context, job, [row["test"] for row in rows], limit):
            emit(**row)
            rows.append(row)
        if len(rows) == before or rows[-1]["outcome"] not in ("hung", "aborted"):
            break
    return rows


def _process(context: Context, job: Job, done: list[str], limit: float) -> Iterator[Row]:
    """One pytest process, test by test."""
    but, log = (context.folder / f"{job.label}.{name}" for name in ("done", "log"))
    but.write_text("\n".join(done))
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-p", "penstock.benchmarks.gpu.pytest_lines", "--lines", str(writing), "--but", str(but)]
    command += ["--kernel", job.kernel, "--shard", job.shard, *job.files]
    command += [] if context.smoke else ["-m", "gpu"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[writing],
            process_group=0,
        )
    os.close(writing)
    began, running = time.monotonic(), None  # the test that is running now, and since when
    buffer, ended, overdue = b"", False, False
    try:
        while not ended and not overdue:
            if select.select([reading], [], [], 0.2)[0]:
                piece = os.read(reading, 1 << 16)
                ended = not piece
                *lines, buffer = (buffer + piece).split(b"\n")
                for line in map(json.loads, lines):
                    began, running = time.monotonic(), None if "outcome" in line else line["test"]
                    if "outcome" in line:
                        yield _row(job, line["test"], line["outcome"], line["message"], line["seconds"])
            overdue = context.left() < 0.5 or (running is not None and time.monotonic() - began > limit)
    finally:
        os.close(reading)
        if ended:
            _status(process)
        _kill(process)  # also what it has started
        status = _status(process)
    seconds = round(time.monotonic() - began, 2)
    if running is None:
        if overdue:
            yield _row(job, job.kernel, "skipped", "the others were not run: the time was up")
        elif status not in (0, 1, 5):  # 5: no test was selected
            yield _row(job, job.kernel, "aborted", f"pytest ended with {status}: {_last_line(log)}")
    elif overdue and seconds < limit:
        yield _row(job, running, "skipped", "not finished: the time was up", seconds)
    elif overdue:
        yield _row(job, running, "hung", f"no end within {limit:.0f} s", seconds)
    else:
        yield _row(job, running, "aborted", f"it ended the process with {status}: {_last_line(log)}", seconds)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _status(process: "subprocess.Popen[bytes]") -> int:
    """Its exit status; one that a driver holds fast is left behind."""
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL


def _last_line(log: Any) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    fatal = [line for line in lines if "Fatal" in line or "CUDA error" in line]
    return (fatal or lines or [""])[-1][:200]


def _row(job: Job, test: str, outcome: str, message: str, seconds: float = 0.0) -> Row:
    row = {"kind": "test", "kernel": job.kernel, "test": test, "outcome": outcome}
    return {**row, "message": message, "seconds": seconds}
