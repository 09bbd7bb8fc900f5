"""How cost grows with rows: preparing a store, planning an epoch, and training each family for one epoch.

    python benchmarks/training/growth.py --out growth --rows 16000,160000,1600000
    python benchmarks/training/growth.py --out growth --rows 16000000 --do prepare,plan,bag

The texts are `synthetic:titles`, of ten words; everything else is as `penstock prepare` and `penstock train` have it. A
measurement is a process of its own, seen from outside: seconds, CPU seconds, and the most memory that it and its
children had for themselves at once (files that they map are not counted). OUT/growth.csv has them as they come, and
what it has is not measured again. The table that follows gives each what a further row costs, from one number of rows
to the next: the same everywhere is a straight line, whatever a process takes to start.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from penstock.benchmarks.memory import own_bytes

CLASSES = 20
MODELS = ("bag", "lstm", "encoder")
DONE = ("prepare", "plan", "linear", *MODELS)
COLUMNS = ("what", "rows", "seconds", "cpu_seconds", "memory_bytes", "disk_bytes")
EVERY = 0.5  # seconds: how often memory is looked at
PENSTOCK = (sys.executable, "-m", "penstock.engine.cli")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder, for stores and runs too")
    parser.add_argument("--rows", default="16000,160000,1600000")
    parser.add_argument("--do", default=",".join(DONE), help=f"some of {', '.join(DONE)}")
    parser.add_argument("--most", nargs="*", default=["encoder=16000"], help="WHAT=ROWS: of more it is not measured")
    parser.add_argument("settings", nargs="*", help="of the trainings")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        {"plan": _plan, "linear": _fit_linear}[options.here[0]](Path(options.here[1]))
        return
    most = {what: int(rows) for what, _, rows in (limit.partition("=") for limit in options.most)}
    results = Results(options.out / "growth.csv")
    for rows in map(int, options.rows.split(",")):
        for what in options.do.split(","):
            if rows <= most.get(what, rows) and not results.has(what, rows):
                results.add(measure(what, rows, options.out, options.settings))
                print(results.lines()[-1], flush=True)
    print("\n".join(table(results)))


def measure(what: str, rows: int, folder: Path, settings: Sequence[str]) -> dict[str, float]:
    """One measurement. Exits if what is measured fails."""
    from penstock.engine.study.settings import packaged_encoder

    store, run = folder / f"store-{rows}", folder / f"run-{what}"
    if what != "prepare" and not store.exists():
        raise SystemExit(f"{store} is not there: --do prepare,{what}")
    fixed = ["training.epochs=1", "training.patience=0", "training.tensorboard=false", *settings]
    command: list[str]
    if what == "prepare":
        titles = f"synthetic:titles?n={rows}&seed=0&classes={CLASSES}"
        command = [*PENSTOCK, "prepare", titles, "--out", str(store), "--tokenizer", packaged_encoder()]
    elif what in MODELS:
        encoder = [f"model.encoder={packaged_encoder()}"] if what == "encoder" else []
        command = [*PENSTOCK, "train", "--train", str(store), "--out", str(run), "--model", what, *encoder, *fixed]
    else:
        command = [sys.executable, __file__, "--out", str(folder), "--here", what, str(store)]
    made = {"prepare": store, **dict.fromkeys(MODELS, run)}.get(what)
    if made is not None:
        shutil.rmtree(made, ignore_errors=True)
    began, memory = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        memory = max(memory, own_bytes(process.pid))
        time.sleep(EVERY)
    seconds, (_, status, usage) = time.perf_counter() - began, ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    kept = None if made is None else run / "last" if made == run else store
    disk = 0 if kept is None else sum(file.stat().st_size for file in kept.resolve().rglob("*") if file.is_file())
    if made == run:
        shutil.rmtree(run)
    found = (what, rows, round(seconds, 2), round(usage.ru_utime + usage.ru_stime, 2), memory, disk)
    return dict(zip(COLUMNS, found, strict=True))  # type: ignore[arg-type]


class Results:
    """The file of what was measured."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(",".join(COLUMNS) + "\n")

    def lines(self) -> list[str]:
        return self.file.read_text().splitlines()

    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(self.lines()))

    def has(self, what: str, rows: int) -> bool:
        return any((found["what"], int(found["rows"])) == (what, rows) for found in self.rows())

    def add(self, found: dict[str, float]) -> None:
        with self.file.open("a") as out:
            out.write(",".join(str(found[name]) for name in COLUMNS) + "\n")


def table(results: Results) -> list[str]:
    """As lines of Markdown."""
    lines = ["| what | rows | seconds | CPU seconds | us a further row | own memory, MB | on disk, MB |"]
    lines.append("|" + "---|" * 7)
    before: dict[str, tuple[int, float]] = {}
    for found in sorted(results.rows(), key=lambda found: (DONE.index(found["what"]), int(found["rows"]))):
        what, rows, cpu = found["what"], int(found["rows"]), float(found["cpu_seconds"])
        earlier, its = before.get(what, (0, 0.0))
        further = f"{(cpu - its) / (rows - earlier) * 1e6:,.1f}" if earlier else ""
        before[what] = rows, cpu
        memory, disk = (f"{int(found[name]) / 1e6:,.1f}" for name in ("memory_bytes", "disk_bytes"))
        lines.append(
            f"| {what} | {rows:,} | {float(found['seconds']):,.1f} | {cpu:,.1f} | {further} | {memory} | {disk} |"
        )
    return lines


# -- in a process of their own -----------------------------------------------------------------------------------------


def _plan(path: Path) -> None:
    from penstock.engine.data.loader import Loader
    from penstock.engine.data.plan import PlanParameters
    from penstock.engine.data.store import Store

    Loader(Store.open(path), seed=0, parameters=PlanParameters(tokens_per_batch=16_384)).plan()


def _fit_linear(path: Path) -> None:
    import numpy as np
    import torch

    from penstock.engine.data.store import Store
    from penstock.engine.study.baselines import baseline
    from penstock.engine.study.baselines.fitting import FitTask
    from penstock.engine.study.baselines.settings import BaselineSettings, options_from

    store = Store.open(path)
    rows = store.num_examples
    settings = BaselineSettings("linear", options_from("linear", {}), rows, 0, 0.1, 5000)
    baseline("linear").fit(FitTask(settings, store, np.arange(rows), torch.get_num_threads(), None))


if __name__ == "__main__":
    main()
