"""Runs the parts one after the other, each in a process of its own and within its share of the time.

A part whose process dies or hangs begins again behind what it has finished, without the contestant that it was calling.
"""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from penstock.benchmarks.gpu import machine, parts, rehearsal
from penstock.benchmarks.gpu.context import AT, DONE, FAILED, ROW, WRONG, Context, reason
from penstock.benchmarks.gpu.results import Results
from penstock.benchmarks.gpu.rows import brief
from penstock.benchmarks.gpu.targets import outcomes, proven, verdict, void

_GRACE = 12.0  # seconds that a part may take beyond its share before it is ended
_TRIES = 5  # of a part, each without another contestant
_LEAST = 4.0  # seconds without which it does not begin again


def run(
    names: list[str],
    out: Path,
    seconds: float,
    *,
    without: list[str],
    checkouts: dict[str, str],
    smoke: bool,
    faults: tuple[rehearsal.Fault, ...] = (),
) -> int:
    """Returns the exit code: 0, FAILED if some part did not come to its end, or WRONG if some result was wrong."""
    began = time.monotonic()
    results = Results(out, machine.describe(smoke), smoke)
    off: dict[str, str] = {}
    failed = wrong = False
    with tempfile.TemporaryDirectory() as scratch, open(out / "log.txt", "a") as log:
        for place, name in enumerate(names):
            left = seconds - (time.monotonic() - began)
            if left < 1:
                results.begin(name)
                results.end(name, "not run", "the time was up", 0.0)
                failed = True
                continue
            context = Context(
                smoke=smoke,
                deadline=time.monotonic() + parts.limit(name, names[place:], left),
                scratch=scratch,
                rates=machine.rates(results.rows("machine")),
                tested=proven(results.rows("quick") + results.rows("tests")),
                without=without,
                checkouts=checkouts,
                operations=parts.operations(names),
                off=off,
            )
            status = _run_part(name, context, results, log, faults)
            failed = failed or status != "done"
            wrong = wrong or any(row.get("kind") == "wrong" or "off" in row for row in results.rows(name))
            _write_page(results, out)
    for outcome in outcomes(results.data["parts"]):
        if outcome.value is not None and not smoke:
            print(brief({"target": outcome.what, **verdict(outcome)}))
    for what, why in {**off, **void(results.data["parts"])}.items():
        print(f"switched off: {what}: {why}")
    return WRONG if wrong else FAILED if failed else 0


def _write_page(results: Results, out: Path) -> None:
    """A mistake in the page must not end a run whose figures are in results.json."""
    try:
        from penstock.benchmarks.gpu import page

        page.write(results.data, out)
    except Exception as error:
        print(f"report.html could not be written: {reason(error)}", flush=True)


@dataclass
class _Try:
    """What one process of a part has said.

    Attributes:
        at, until: what it is calling, and when that must have ended, by time.monotonic().
    """

    at: str = ""
    until: float = float("inf")
    done: list[str] = field(default_factory=list)
    wrong: str = ""
    tail: "deque[str]" = field(default_factory=lambda: deque(maxlen=12))


def _run_part(name: str, context: Context, results: Results, log: TextIO, faults: tuple[rehearsal.Fault, ...]) -> str:
    results.begin(name)
    print(f"{name}: up to {context.left():.0f} s", flush=True)
    began = time.monotonic()
    for attempt in range(_TRIES):
        said = _Try()
        status, why = _process(name, context, results, log, faults, said)
        context.done += said.done
        if status == "done" or not said.at or attempt == _TRIES - 1 or context.left() < _LEAST:
            break
        context.off[said.at] = f"{'hung' if status == 'hung' else 'ended its process'} in {name}: {why}"
        results.row(name, {"kind": "switched off", "off": said.at, "what": context.off[said.at]})
        results.begin_again(name)
        print(f"    {said.at}: {why}: {name} goes on without it", flush=True)
    status = "cut off" if status == "hung" else status
    results.end(name, status, why, time.monotonic() - began)
    print(f"{name}: {status}{': ' if why else ''}{why} ({time.monotonic() - began:.0f} s)", flush=True)
    if status == "failed":
        print("".join(f"    {line}\n" for line in said.tail), end="", flush=True)
    return status


def _process(
    name: str,
    context: Context,
    results: Results,
    log: TextIO,
    faults: tuple[rehearsal.Fault, ...],
    said: _Try,
) -> tuple[str, str]:
    """One process of a part, from its beginning to its end: how that was, and why."""
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.benchmarks.gpu.part", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
        env=_environment(name, context.smoke, faults),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # its exit status says why
        process.stdin.write(context.to_json())
        process.stdin.close()
    arguments = name, process.stdout, context, results, log, said
    reader = threading.Thread(target=_read, args=arguments, daemon=True)
    reader.start()
    status: int | None = None
    last = time.monotonic() + context.left() + _GRACE
    try:
        while status is None and time.monotonic() < min(last, said.until):
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(0.2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it has started: workers, compilers
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)  # one that a driver holds fast is left behind
    reader.join(10)
    if status is None:
        return ("hung", "no end within its time") if time.monotonic() < last else ("cut off", "its time was up")
    if status == WRONG:
        return "wrong result", said.wrong
    if status:
        return "failed", f"exit status {status}: {said.tail[-1] if said.tail else ''}"
    return "done", ""


def _environment(name: str, smoke: bool, faults: tuple[rehearsal.Fault, ...]) -> dict[str, str]:
    # no hub is asked for anything; and for tiny work threads are only in its way
    changes = {"HF_HUB_OFFLINE": "1"}
    if smoke:
        changes |= {"OMP_NUM_THREADS": "1", **rehearsal.environment(name, faults)}
    return {**os.environ, **changes}


def _read(name: str, lines: TextIO, context: Context, results: Results, log: TextIO, said: _Try) -> None:
    """Rows to the results and, in short, to the terminal or the log; everything else to the log."""
    for line in lines:
        prefix = next((each for each in (ROW, AT, DONE) if each in line), "")
        text, _, content = line.partition(prefix) if prefix else (line, "", "")  # what was printed without a line's end
        if prefix == ROW:
            _take(name, json.loads(content), context, results, log, said)
        elif prefix == AT:
            now = json.loads(content)
            said.at, said.until = now["what"], time.monotonic() + now["seconds"] if now["what"] else float("inf")
        elif prefix == DONE:
            said.done.append(json.loads(content))
        if text.strip():
            log.write(f"{name}: {text.rstrip()}\n")
            log.flush()
            said.tail.append(text.rstrip()[:400])


def _take(name: str, row: dict[str, Any], context: Context, results: Results, log: TextIO, said: _Try) -> None:
    results.row(name, row)
    if "off" in row:
        context.off[row["off"]] = row["what"]
    if row.get("kind") == "wrong":
        said.wrong = row["what"]
    if row.get("kind") == "test" and row["outcome"] in ("passed", "skipped"):  # hundreds of them
        log.write(f"{name}: {brief(row)}\n")
        log.flush()
    else:
        print(f"    {brief(row)}", flush=True)
