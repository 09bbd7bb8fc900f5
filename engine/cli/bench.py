"""`penstock bench`: the suites of benchmarks/, ours and the peers interleaved in one run."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from penstock.engine.errors import ConfigError, RunError

SUITES = {
    "kernels": ("lstm", "attention"),
    "loader": ("data",),
    "training": ("training",),
}


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    suite: Annotated[str, typer.Argument(help=f"One of {', '.join(SUITES)}; all of them if left out.")] = "",
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Time the peers beside our own code.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write pytest-benchmark's JSON to this file.")] = None,
) -> None:
    """Time penstock beside its peers on this machine: interleaved in one process, medians and spread.

    Example:  penstock bench kernels --out lstm.json
    """
    if suite and suite not in SUITES:
        raise ConfigError(f"no benchmark suite {suite!r}: choose from {', '.join(SUITES)}")
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise ConfigError("penstock bench needs pytest-benchmark: pip install 'penstock[bench]'")
    root = benchmarks_folder()
    names = SUITES[suite] if suite else [name for group in SUITES.values() for name in group]
    folders = [str(root / name) for name in names if (root / name).is_dir()]
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-o", "python_files=bench_*.py"]
    command += ["--override-ini=addopts=", "--benchmark-only", "-k", "" if peers else "not peer", *folders]
    if out is not None:
        command.append(f"--benchmark-json={out.resolve()}")
    sys.exit(subprocess.call(command))


def benchmarks_folder() -> Path:
    """The folder of the suites: in an installed package beside engine/, in a checkout at its root."""
    import penstock.engine

    folder = Path(next(iter(penstock.engine.__path__))).resolve().parent / "benchmarks"
    if not folder.is_dir():
        raise RunError(f"{folder}: the benchmark suites are not installed here; run penstock bench from a checkout")
    return folder
