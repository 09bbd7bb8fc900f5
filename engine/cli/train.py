"""`penstock train`."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.engine.cli.options import (
    ConfigOption,
    DryRunOption,
    OverridesArgument,
    ResumeOption,
    SettingsOption,
    check_resume,
)

if TYPE_CHECKING:
    from penstock.engine.data.store import Store
    from penstock.engine.training.result import TrainResult
    from penstock.engine.training.settings import Settings


def register(app: typer.Typer) -> None:
    app.command()(train)


def _ask(question: str) -> bool:
    return typer.confirm(question, err=True)


def try_out(settings: "Settings", store: "Store", test: "Store | None", out: Path) -> None:
    from penstock.engine.errors import ConfigError
    from penstock.engine.training.dry_run import dry_run

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "--dry-run tries one process: start it without torchrun; each of several needs as much memory, with "
            "training.shard=true less"
        )
    _, lines = dry_run(settings, store, out, test_store=test, say=lambda line: typer.echo(line, err=True))
    for line in lines:
        typer.echo(line)


def train(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="RUN", help="The run's directory, new or to resume.", show_default=False),
    ],
    train: Annotated[
        Path | None,
        typer.Option("--train", metavar="STORE", help="Prepared training data. Of a run there is: as it had it."),
    ] = None,
    overrides: OverridesArgument = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="lstm|encoder|bag", help="The kind of model (model.kind).")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", metavar="NAME|PATH", help="A pretrained encoder to fine-tune (model.encoder)."),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="An earlier run to take the weights of (model.start_from)."),
    ] = None,
    eval_: Annotated[
        Path | None,
        typer.Option("--eval", metavar="STORE", help="A test set, read once, at the end, by the best model."),
    ] = None,
    config: ConfigOption = None,
    resume: ResumeOption = None,
    dry_run: DryRunOption = False,
    settings: SettingsOption = False,
) -> None:
    """Train a classifier, or resume a run that was stopped.

    The best model by a validation split of the training rows ends up in RUN, which loads like any model of the
    transformers library. SIGTERM and Ctrl-C checkpoint first; the same command then resumes, and so does --out RUN
    alone. A finished run is extended if training.epochs, training.max_steps or training.patience is raised.

    Example:  penstock train --train reviews.store --eval held-out.store --out run training.epochs=5
    """
    from penstock.engine.training.command import read_command

    check_resume(resume, dry_run)
    options = {"model.kind": model, "model.encoder": encoder, "model.start_from": from_}
    command = read_command(out, train, eval_, config, options, overrides or [])

    from penstock.engine.training.memory import keep_freed_memory
    from penstock.engine.training.train import train as run_training

    keep_freed_memory()
    if dry_run:
        try_out(command.settings, command.train, command.test, out)
        return
    run = partial(run_training, command.settings, command.train, out, test_store=command.test)
    train_to_end(out, run, resume)


def train_to_end(
    out: Path, run: "Callable[..., TrainResult]", resume: str | None, validation: str = "validation"
) -> None:
    """Runs a training, in one process or as one of several, and prints what came of it.

    Args:
        run: takes `resume` and `confirm` as `penstock.engine.train` does. validation: what the validation rows are
            called.
    """
    import torch.distributed as dist

    try:
        result = run(
            resume="previous" if resume == "previous" else "last",
            confirm=_ask if sys.stdin.isatty() and sys.stderr.isatty() else None,
        )
        if dist.is_initialized() and dist.get_rank() > 0:
            return
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    _print_result(out, result, validation)


def _print_result(out: Path, result: "TrainResult", validation: str) -> None:
    typer.echo(
        f"{out}: {result.steps:,} steps, {result.epochs:.3g} epochs, {result.seconds:,.1f} s of training at "
        f"{result.tokens_per_second:,.0f} tokens/s and {result.examples_per_second:,.0f} examples/s; "
        f"stopped by {result.stopped_by}"
    )
    if result.validation:
        typer.echo(f"{validation}, best at step {result.best_step}: {result.validation.summary()}")
    if result.test:
        typer.echo(f"test: {result.test.summary()}")
