"""The correctness tests of every kernel, before anything is timed.

Each of penstock's GPU backends of each operation must have a test that passes; the first failing one ends the run.
"""

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

from penstock.benchmarks.gpu.backends import GPU_BACKENDS
from penstock.benchmarks.gpu.context import Context, WrongResultError, emit
from penstock.benchmarks.gpu.machine import ROOT
from penstock.kernels import dispatch

# By which word a test's name or file tells the operation that it tests, where that is not the operation's own name.
WORDS = {"lstm_cell": "cell", "varlen_attention": "attention", "segment_pool": "pooling"}
_MOST_WORKERS = 15


def test_files() -> list[str]:
    """The test files that hold a GPU test."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text()]


def run(context: Context) -> None:
    report = context.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    if context.smoke:
        command += ["-m", "not gpu", "tests/kernels/test_ragged.py"]
    else:
        command += ["-m", "gpu", *test_files()]
        left_out = " and ".join(f"not {name}" for name in context.without)
        wanted = " and ".join(f"({part})" for part in (context.tests, left_out) if part)
        command += ["-k", wanted] if wanted else []
        if importlib.util.find_spec("xdist"):
            # most of the time goes into compiling Triton's kernels, which is the processor's work
            workers = min(_MOST_WORKERS, os.cpu_count() or 1)
            command += ["-n", str(workers), "--dist", "worksteal"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    status = subprocess.call([*command, f"--junitxml={report}"], cwd=ROOT, env=environment)
    cases = read(report)
    counts = {outcome: sum(case["outcome"] == outcome for case in cases) for outcome in ("passed", "failed", "skipped")}
    emit(kind="tests", command=" ".join(command[1:]), **counts)
    for operation, backend, *_ in dispatch.status():
        if backend in GPU_BACKENDS:
            emit(kind="kernel", operation=operation, backend=backend, **count(cases, operation, backend))
    wrong = [case for case in cases if case["outcome"] == "failed"]
    if wrong:
        raise WrongResultError(f"{wrong[0]['name']}: {wrong[0]['message']}")
    if status not in (0, 5):  # 5: no test was selected
        raise RuntimeError(f"pytest ended with {status}")


def read(report: Path) -> list[dict[str, str]]:
    """Name, outcome and message of every test in a JUnit file."""
    if not report.is_file():
        return []
    out = []
    for case in xml.parse(report).getroot().iter("testcase"):
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        outcome = "failed" if bad is not None else "skipped" if case.find("skipped") is not None else "passed"
        message = "" if bad is None else (bad.get("message") or "").splitlines()[0][:300]
        out.append({"name": f"{case.get('classname')}.{case.get('name')}", "outcome": outcome, "message": message})
    return out


def count(cases: list[dict[str, str]], operation: str, backend: str) -> dict[str, int]:
    """How the tests of one backend of one operation went."""
    word = WORDS.get(operation, operation)
    names = [case["outcome"] for case in cases if word in case["name"] and backend in case["name"]]
    return {outcome: names.count(outcome) for outcome in ("passed", "failed", "skipped")}


def tested(rows: list[dict[str, Any]]) -> list[str]:
    """ "operation/backend" of what passed, among a finished part's rows."""
    kernels = [row for row in rows if row.get("kind") == "kernel"]
    return [f"{row['operation']}/{row['backend']}" for row in kernels if row["passed"] and not row["failed"]]
