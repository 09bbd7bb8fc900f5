"""`penstock train`."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(train)


def _list_settings(wanted: bool) -> None:
    if wanted:
        from penstock.engine.training.settings import describe_settings

        typer.echo(describe_settings())
        raise typer.Exit


def train(
    train: Annotated[
        Path, typer.Option("--train", metavar="STORE", help="Prepared training data.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="RUN", help="The run's directory, new or to be resumed.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.key=value]...", help="Settings, above those of --config.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="lstm|encoder", help="The kind of model (model.kind).")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", metavar="NAME|PATH", help="A pretrained encoder (model.encoder).")
    ] = None,
    eval_: Annotated[
        Path | None,
        typer.Option("--eval", metavar="STORE", help="A test set, read once, at the end, by the best model."),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE.yaml", help="Settings as YAML.")] = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="List every setting and exit.", is_eager=True, callback=_list_settings)
    ] = False,
) -> None:
    """Train a classifier, or go on with a run that was stopped.

    The best model by a validation split of the training rows ends up in RUN, which loads like any model of the
    transformers library. SIGTERM and Ctrl-C checkpoint first; the same command then goes on.

    Example:  penstock train --model lstm --train reviews.store --eval held-out.store --out run training.epochs=5
    """
    from penstock.engine.training.settings import load_settings

    above_file = [f"model.kind={model}"] if model else []
    above_file += [f"model.encoder={encoder}"] if encoder else []
    chosen = load_settings(config, [*above_file, *(overrides or [])])

    import torch.distributed as dist

    from penstock.engine.data.store import Store
    from penstock.engine.training.memory import keep_freed_memory
    from penstock.engine.training.train import train as run_training

    keep_freed_memory()
    try:
        result = run_training(chosen, Store.open(train), out, test_store=Store.open(eval_) if eval_ else None)
        if dist.is_initialized() and dist.get_rank() > 0:
            return
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    typer.echo(
        f"{out}: {result.steps:,} steps, {result.epochs:.3g} epochs, {result.seconds:,.1f} s of training at "
        f"{result.tokens_per_second:,.0f} tokens/s and {result.examples_per_second:,.0f} examples/s; "
        f"stopped by {result.stopped_by}"
    )
    if result.validation:
        typer.echo(f"validation, best at step {result.best_step}: {result.validation.summary()}")
    if result.test:
        typer.echo(f"test: {result.test.summary()}")
