"""`penstock bench`: the suites of benchmarks/, ours and the peers in turns in one process."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from penstock.engine.errors import ConfigError, RunError


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    suite: Annotated[str, typer.Argument(help="Which suite; all are listed if it is left out.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Run every suite.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Under two minutes: fewer shapes and rounds.")] = False,
    shape: Annotated[
        list[str] | None, typer.Option(help="Own sizes, e.g. 64,64,128,256 for the lstm's B,T,I,H; repeatable.")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; repeatable.")] = None,
    isa: Annotated[str | None, typer.Option(help="Instruction set of our kernels, as PENSTOCK_ISA.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch and of our kernels.")] = None,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Time the peers beside our own code.")] = True,
    rounds: Annotated[int | None, typer.Option(help="In each, every contestant works once.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new or empty folder; bench-SUITE-DATE in the current one by default.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="An earlier run's folder or results.jsonl: what became faster or slower?")
    ] = None,
) -> None:
    """Time penstock beside its peers on this machine: in turns, medians and spread, results as they come.

    OUT/results.jsonl has a line for each case as soon as it ends; report.html is written at the end. Exit code 13: a
    case failed. 14: --against found something slower.

    Example:  penstock bench lstm --quick
    """
    if importlib.util.find_spec("penstock.benchmarks.suite") is None:
        raise RunError("the benchmark suites are not installed here; run penstock bench from a checkout")
    from penstock.benchmarks.suite import SUITES, Options

    if not suite and not every:
        if shape or dtype or isa or threads or rounds or out or against or quick or not peers:
            raise ConfigError(f"which suite? Choose from {', '.join(SUITES)}, or --all")
        width = max(map(len, SUITES))
        for each in SUITES.values():
            typer.echo(f"{each.name:<{width}}  {each.line}{f'  (--shape {each.letters})' if each.letters else ''}")
        return
    if suite and every:
        raise ConfigError(f"give a suite or --all, not both: {suite} is one of all")
    if suite and suite not in SUITES:
        raise ConfigError(f"no benchmark suite {suite!r}: choose from {', '.join(SUITES)}")
    if every and against is not None:
        raise ConfigError("--against compares one suite: name it, and give its folder of the earlier run")
    needs_pytest = every or SUITES[suite].pytest
    if needs_pytest and importlib.util.find_spec("pytest_benchmark") is None:
        raise ConfigError("this suite needs pytest-benchmark: pip install 'penstock[bench]'")
    from penstock.benchmarks import run

    options = Options(
        quick=quick,
        shapes=tuple(run.parse_shape(text) for text in shape or ()),
        dtypes=tuple(dict.fromkeys(dtype or ())),
        peers=peers,
        rounds=rounds,
        isa=isa,
        threads=threads,
    )
    folder = out if out is not None else run.default_out(suite or "all")
    sys.exit(run.run_all(options, folder) if every else run.run(SUITES[suite], options, folder, against))
