"""Runs the parts one after the other, each in a process of its own and within its share of the time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from penstock.benchmarks.gpu import correctness, machine, page, parts
from penstock.benchmarks.gpu.context import FAILED, ROW, WRONG, Context, reason
from penstock.benchmarks.gpu.results import Results
from penstock.benchmarks.gpu.targets import outcomes

_GRACE = 12.0  # seconds that a part may take beyond its share before it is ended


def run(
    names: list[str], out: Path, seconds: float, *, without: list[str], checkouts: dict[str, str], smoke: bool
) -> int:
    """Returns the exit code: 0, WRONG at the first wrong result, or FAILED if some part did not come to its end."""
    began = time.monotonic()
    results = Results(out, machine.describe(smoke), smoke)
    code = 0
    with tempfile.TemporaryDirectory() as scratch, open(out / "log.txt", "a") as log:
        for place, name in enumerate(names):
            left = seconds - (time.monotonic() - began)
            if left < 1:
                results.begin(name)
                results.end(name, "not run", "the time was up", 0.0)
                code = code or FAILED
                continue
            context = Context(
                smoke=smoke,
                deadline=time.monotonic() + parts.limit(name, names[place:], left),
                scratch=scratch,
                rates=machine.rates(results.rows("machine")),
                tested=correctness.tested(results.rows("tests")),
                without=without,
                checkouts=checkouts,
                tests=parts.test_expression(names),
            )
            status = _run_part(name, context, results, log)
            _write_page(results, out)
            if status == "wrong result":
                print(f"{name}: WRONG RESULT: {results.data['parts'][name]['why']}: nothing more is timed")
                return WRONG
            code = code or (0 if status == "done" else FAILED)
    for outcome in outcomes(results.data["parts"]):
        if outcome.value is not None and not smoke:
            print(page.brief({"target": outcome.what, **page.verdict(outcome)}))
    return code


def _write_page(results: Results, out: Path) -> None:
    """A mistake in the page must not end a run whose figures are in results.json."""
    try:
        page.write(results.data, out)
    except Exception as error:
        print(f"report.html could not be written: {reason(error)}", flush=True)


def _run_part(name: str, context: Context, results: Results, log: TextIO) -> str:
    results.begin(name)
    print(f"{name}: up to {context.left():.0f} s", flush=True)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.benchmarks.gpu.part", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
        env=_environment(context.smoke),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(context.to_json())
    process.stdin.close()
    tail: deque[str] = deque(maxlen=12)
    reader = threading.Thread(target=_read, args=(name, process.stdout, results, log, tail), daemon=True)
    reader.start()
    cut_off = False
    try:
        process.wait(context.left() + _GRACE)
    except subprocess.TimeoutExpired:
        cut_off = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it has started: workers, compilers
        process.wait()
    reader.join(10)
    if cut_off:
        status, why = "cut off", "it did not end within its time"
    elif process.returncode == WRONG:
        wrong = [row for row in results.rows(name) if row.get("kind") == "wrong"]
        status, why = "wrong result", wrong[-1]["what"] if wrong else ""
    elif process.returncode:
        status, why = "failed", f"exit status {process.returncode}: {tail[-1] if tail else ''}"
    else:
        status, why = "done", ""
    results.end(name, status, why, time.monotonic() - began)
    print(f"{name}: {status}{': ' if why else ''}{why} ({time.monotonic() - began:.0f} s)", flush=True)
    if status == "failed":
        print("".join(f"    {line}\n" for line in tail), end="", flush=True)
    return status


def _environment(smoke: bool) -> dict[str, str]:
    # no hub is asked for anything; and for tiny work threads are only in its way
    changes = {"HF_HUB_OFFLINE": "1"} | ({"OMP_NUM_THREADS": "1"} if smoke else {})
    return {**os.environ, **changes}


def _read(name: str, lines: TextIO, results: Results, log: TextIO, tail: "deque[str]") -> None:
    """Rows to the results and, in short, to the terminal; everything else to the log."""
    for line in lines:
        if line.startswith(ROW):
            row: dict[str, Any] = json.loads(line[len(ROW) :])
            results.row(name, row)
            print(f"    {page.brief(row)}", flush=True)
        else:
            log.write(f"{name}: {line}")
            log.flush()
            if line.strip():
                tail.append(line.rstrip()[:400])
