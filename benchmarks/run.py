"""One run of a suite: checks what was asked for, times each case, writes, shows, and compares with an earlier run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from penstock.benchmarks import against, machine, results
from penstock.benchmarks.rounds import measure
from penstock.benchmarks.suite import DTYPES, SUITES, Options, Suite
from penstock.benchmarks.table import Shown
from penstock.engine.errors import ConfigError, PenstockError
from penstock.engine.machine import flops_probe

FAILED = 13  # a case failed; the others are in the results
SLOWER = 14  # --against found something slower
QUICK_SECONDS = 105.0  # that a suite of pytest may take with --quick

Row = dict[str, Any]


class Stopped(BaseException):
    """SIGTERM: like Ctrl-C, but the exit code says which it was."""


def check(suite: Suite, options: Options) -> None:
    """Raises:
    ConfigError: an option that the suite does not take, or a type, instruction set or number that cannot be had.
    """
    given = {
        "shape": bool(options.shapes),
        "dtype": bool(options.dtypes),
        "isa": options.isa is not None,
        "threads": options.threads is not None,
        "rounds": options.rounds is not None,
        "peers": not options.peers,
    }
    for name, is_given in given.items():
        if is_given and name not in suite.honours:
            option = "no-peers" if name == "peers" else name
            raise ConfigError(f"suite {suite.name} takes no --{option}: its own is fixed; leave the option out")
    letters = suite.letters.split(",")
    for shape in options.shapes:
        if len(shape) != len(letters):
            numbers, count = ",".join(map(str, shape)), f"{len(letters)} number{'s' if len(letters) > 1 else ''}"
            raise ConfigError(f"--shape {numbers}: suite {suite.name} takes {count}, {suite.letters}, not {len(shape)}")
    if suite.pytest and len(options.shapes) > 1:
        raise ConfigError(f"--shape: suite {suite.name} makes one store, so it takes one number of rows at a time")
    for dtype in options.dtypes:
        if dtype not in DTYPES:
            raise ConfigError(f"--dtype {dtype}: there is {', '.join(DTYPES)}")
    for name, value in (("threads", options.threads), ("rounds", options.rounds)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: give at least 1")
    cores = os.cpu_count() or 1
    if options.threads is not None and options.threads > cores:
        raise ConfigError(f"--threads {options.threads}: this machine has {cores} cores")


def parse_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--shape {text}: give whole numbers with commas between, e.g. --shape 64,64,128,256"
        ) from None
    if min(shape) < 1:
        raise ConfigError(f"--shape {text}: each number is at least 1")
    return shape


def set_up(options: Options) -> tuple[int, str]:
    """Gives torch its threads and the compiled core its instruction set; returns both.

    Raises:
        ConfigError: the instruction set is not here.
    """
    import torch

    from penstock.kernels import compiled

    if options.isa is not None:
        os.environ["PENSTOCK_ISA"] = options.isa
    try:
        isa = compiled.isa()
    except ValueError as error:
        raise ConfigError(str(error).replace("PENSTOCK_ISA:", "--isa:" if options.isa else "PENSTOCK_ISA:")) from None
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return torch.get_num_threads(), isa


def run(suite: Suite, options: Options, out: Path, old: Path | None = None) -> int:
    """Runs the suite into the folder `out` and returns the exit code.

    Raises:
        ConfigError: see `check`; `old` is of another suite or machine. DiskError: `out` holds something.
    """
    check(suite, options)
    if not suite.module and not suite.pytest:
        return _gpu(options, out, old)
    before = results.read(old) if old is not None else None
    threads, isa = set_up(options)
    about = {"suite": suite.name, "quick": options.quick, **machine.describe(threads, isa)}
    if before is not None:
        against.check_same(before[0], about)
        _check_common(suite, options, before[1], threads, isa)
    results.empty_folder(out)
    busy = machine.before_the_run()
    written = results.Results(out, suite.name, about | {"busy_before": busy})
    print(f"penstock bench {suite.name}: {about['processor']}, threads: {threads}, {isa}; results in {written.path}")
    if line := machine.busy_line(busy):
        print(line, file=sys.stderr)
    sys.stdout.flush()
    with _stops_said(written):
        failures = _timed(suite, options, written, out, {"threads": threads, "isa": isa})
        return _finish(suite, written, about | {"busy_before": busy}, out, before, failures)


def _timed(suite: Suite, options: Options, written: results.Results, out: Path, also: dict[str, Any]) -> int:
    """Times all cases; returns how many failed."""
    failures = 0
    with ExitStack() as stack:
        shown = stack.enter_context(Shown(f"penstock bench {suite.name}"))
        rows = _of_pytest(suite, options, out) if suite.pytest else _of_module(suite, options, shown)
        stack.enter_context(closing(rows))  # ends the process that makes them
        others = machine.Others()
        for row in rows:
            for outcome in ("failed", "skipped"):
                if outcome in row:
                    print(f"{row[outcome]} {outcome}: {row['why']}", file=sys.stderr)
            if "case" not in row:
                failures += "failed" in row
                written.add(row)
                continue
            cores = others.cores()
            row |= {**also, "busy": cores, "busy_line": machine.busy_line(cores)}
            written.add(row)
            shown.add(row)
    return failures


def _finish(
    suite: Suite, written: results.Results, about: dict[str, Any], out: Path, before: Any, failures: int
) -> int:
    from penstock.benchmarks import report

    written.close()
    rows = [row for row in written.rows if "case" in row]
    compared = against.compare(before[1], rows) if before is not None else []
    for one in compared:
        print(f"{one.case}: {one.verdict}, new/old {one.ratio:.3f} ({one.low:.3f} to {one.high:.3f}), {one.why}")
    if before is not None and len(compared) < len(rows):
        print(f"{len(rows) - len(compared)} of {len(rows)} cases are not in the earlier run: nothing said of them")
    if before is not None and before[0].get("versions", {}).get("torch") != about["versions"].get("torch"):
        print("the earlier run had another torch: a verdict over a peer of torch's tells of both")
    if not rows:
        print(f"penstock: no case was timed; why is in {written.path}", file=sys.stderr)
        return FAILED
    print(f"page: {report.write(out, suite.name, about, rows, compared)}")
    if any(one.verdict == against.SLOWER for one in compared):
        return SLOWER
    return FAILED if failures else 0


def _check_common(suite: Suite, options: Options, rows: list[Row], threads: int, isa: str) -> None:
    """Before anything is timed; suites of pytest know their cases only once they ran."""
    if suite.module:
        mine = {(case.name, threads, isa) for case in suite.cases(options)}
        if not mine & {against.key_of(row) for row in rows}:
            raise ConfigError(
                f"--against: no case in common: the earlier run has none of these shapes, types, {threads} threads "
                f"and {isa}; give it the same --shape, --dtype, --threads and --isa"
            )


def _of_module(suite: Suite, options: Options, shown: Shown) -> Generator[Row, None, None]:
    probes: dict[str, Any] = {}
    for case in suite.cases(options):
        # what a cache holds comes from it, in the probe as in the case
        key = case.dtype if case.unit == "FLOP" else int(case.work or 0)
        if key not in probes:
            probes[key] = flops_probe(case.dtype) if case.unit == "FLOP" else machine.bytes_probe(case.work)
        shown.now(case.name)
        try:
            yield measure(case, options, probes[key])
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            yield {"failed": case.name, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _of_pytest(suite: Suite, options: Options, out: Path) -> Generator[Row, None, None]:
    """Rows of pytest-benchmark's tests, run in a process of their own, as they come; its output goes to OUT/log.txt."""
    receive, send = os.pipe()
    command = _pytest_command(suite, options, send)
    # what starts us may be pytest itself, with options of its own: they are not ours
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    if options.threads is not None:
        environment |= {"OMP_NUM_THREADS": str(options.threads)}
    with (out / "log.txt").open("wb") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=log, pass_fds=(send,), env=environment, start_new_session=True
        )
        os.close(send)
        deadline = time.monotonic() + QUICK_SECONDS if options.quick else None
        try:
            yield from _lines(receive, deadline)
            if deadline is not None and time.monotonic() >= deadline:
                print(
                    f"stopped after {QUICK_SECONDS:.0f} s: --quick is no longer; the rest was not timed",
                    file=sys.stderr,
                )
            elif child.wait() not in (0, 1, 5):
                yield {"failed": "pytest", "why": f"exit code {child.returncode}, see {out / 'log.txt'}"}
        finally:
            os.close(receive)
            _end(child)


def _pytest_command(suite: Suite, options: Options, send: int) -> list[str]:
    root = Path(__file__).parent
    files = [str(root / word) for word in suite.pytest if word.endswith(".py")]
    keep = [word for word in suite.pytest if not word.endswith(".py")]
    words = [*keep, *(suite.quick if options.quick else ())]
    chosen = " and ".join([f"not {'alone' if options.peers else 'peers'}", *(words[i + 1] for i in _names_at(words))])
    others = [word for i, word in enumerate(words) if not {i, i - 1} & set(_names_at(words))]
    others += [f"--rows={rows}" for (rows,) in options.shapes]  # the last one holds
    count = options.rounds or (2 if options.quick else None)
    return [
        *(sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-o", "python_files=bench_*.py"),
        *(
            "--override-ini=addopts=",
            "--benchmark-only",
            "-p",
            "penstock.benchmarks.pytest_rows",
            "-p",
            "no:cacheprovider",
        ),
        *(f"--penstock-rows={send}", *([f"--penstock-rounds={count}"] if count else []), "-k", chosen, *others, *files),
    ]


def _names_at(words: list[str]) -> list[int]:
    return [i for i, word in enumerate(words) if word == "-k"]


def _lines(descriptor: int, deadline: float | None) -> Iterator[Row]:
    import select

    pending = b""
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([descriptor], [], [], left)[0]:
            return
        read = os.read(descriptor, 1 << 16)
        if not read:
            return
        *whole, pending = (pending + read).split(b"\n")
        yield from map(json.loads, whole)


def _end(child: subprocess.Popen[bytes]) -> None:
    """And what it started: they are one session."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@contextmanager
def _stops_said(written: results.Results) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run with a line that says where its results are."""

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except (KeyboardInterrupt, Stopped) as stopped:
        count = sum("case" in row for row in written.rows)
        print(f"penstock: stopped; {count} cases are in {written.path}", file=sys.stderr)
        sys.exit(143 if isinstance(stopped, Stopped) else 130)
    finally:
        signal.signal(signal.SIGTERM, before)
        written.close()


def _gpu(options: Options, out: Path, old: Path | None) -> int:
    if old is not None:
        raise ConfigError("suite gpu takes no --against: compare its results.json by hand")
    results.empty_folder(out)
    print(f"penstock bench gpu: results in {out}", flush=True)
    seconds = ["--seconds", "100"] if options.quick else []
    return subprocess.call([sys.executable, "-m", "penstock.benchmarks.gpu", "--out", str(out), *seconds])


def run_all(options: Options, out: Path) -> int:
    """Every suite into a folder of its own under `out`; the first exit code that is not 0."""
    if options.shapes or options.dtypes or options.threads is not None:
        raise ConfigError("--all takes no --shape, --dtype or --threads: not every suite has them; name a suite")
    set_up(options)
    results.empty_folder(out)
    worst = 0
    for suite in SUITES.values():
        if suite.name == "gpu":
            if not _has_gpu():
                print("gpu: left out, no NVIDIA GPU here")
                continue
            options = Options(quick=options.quick)
        try:
            code = run(suite, options, out / suite.name)
        except PenstockError as error:
            print(f"{suite.name}: {' '.join(str(error).split())}", file=sys.stderr)
            code = error.exit_code
        worst = worst or code
    return worst


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def default_out(name: str) -> Path:
    """A new folder in the current one, named for the suite and the time."""
    stem = f"bench-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    out, count = Path(stem), 1
    while out.exists():
        count += 1
        out = Path(f"{stem}-{count}")
    return out
