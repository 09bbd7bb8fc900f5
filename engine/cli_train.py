"""`penstock train`, `evaluate` and `predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from penstock.engine.data.sources import Source
    from penstock.engine.training.metrics import Metrics
    from penstock.engine.training.trained import TrainedRun

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.", show_default=False)]
TextOption = Annotated[str | None, typer.Option("--text", metavar="COLUMN", help="Of a raw source: the texts' column.")]
LabelOption = Annotated[
    str | None, typer.Option("--label", metavar="COLUMN", help="Of a raw source: the labels' column.")
]


def register(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(evaluate)
    app.command()(predict)


def _list_settings(wanted: bool) -> None:
    if wanted:
        from penstock.engine.training.settings import describe_settings

        typer.echo(describe_settings())
        raise typer.Exit


def train(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="RUN", help="The run's directory, new or to go on with.", show_default=False),
    ],
    train: Annotated[
        Path | None,
        typer.Option("--train", metavar="STORE", help="Prepared training data. Of a run there is: as it had it."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.key=value]...", help="Settings, above those of --config.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="lstm|encoder", help="The kind of model (model.kind).")
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
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE.yaml", help="Settings as YAML.")] = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="List every setting and exit.", is_eager=True, callback=_list_settings)
    ] = False,
) -> None:
    """Train a classifier, or go on with a run that was stopped.

    The best model by a validation split of the training rows ends up in RUN, which loads like any model of the
    transformers library. SIGTERM and Ctrl-C checkpoint first; the same command then goes on, and so does --out RUN
    alone. A finished run goes on if training.epochs, training.max_steps or training.patience is raised.

    Example:  penstock train --train reviews.store --eval held-out.store --out run training.epochs=5
    """
    from penstock.engine.training.command import read_command

    options = {"model.kind": model, "model.encoder": encoder, "model.start_from": from_}
    command = read_command(out, train, eval_, config, options, overrides or [])

    import torch.distributed as dist

    from penstock.engine.training.memory import keep_freed_memory
    from penstock.engine.training.train import train as run_training

    keep_freed_memory()
    try:
        result = run_training(command.settings, command.train, out, test_store=command.test)
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
        typer.echo(f"validation, best at step {result.best_step}: {_describe(result.validation)}")
    if result.test:
        typer.echo(f"test: {_describe(result.test)}")


def evaluate(
    run: RunArgument,
    data: Annotated[
        str, typer.Option("--data", metavar="STORE|SOURCE", help="Prepared or raw data.", show_default=False)
    ],
    text: TextOption = None,
    label: LabelOption = None,
) -> None:
    """Evaluate a run's best model on a store, or on a raw source, with the run's own tokenizer and labels.

    Example:  penstock evaluate run --data held-out.csv
    """
    from penstock.engine.training.trained import TrainedRun, is_store

    trained = TrainedRun.open(run)
    if is_store(data):
        metrics = trained.evaluate_store(data)
    else:
        metrics = trained.evaluate_source(_open_source(trained, data, text, label))
    typer.echo(_describe(metrics))


def predict(
    run: RunArgument,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Raw texts; labels are not needed.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="A .csv, .jsonl or .parquet file.", show_default=False)
    ],
    text: TextOption = None,
) -> None:
    """Classify texts: each row's number, label, and every label's probability.

    Example:  penstock predict run new-reviews.jsonl --out predictions.csv
    """
    from penstock.engine.training.predictions import check_format, write_table
    from penstock.engine.training.trained import TrainedRun

    check_format(out)
    trained = TrainedRun.open(run)
    table = trained.predict(_open_source(trained, source, text, None, need_label=False))
    write_table(table, out)
    typer.echo(f"{out}: {table.num_rows:,} predictions")


def _open_source(
    trained: "TrainedRun", name: str, text: str | None, label: str | None, *, need_label: bool = True
) -> "Source":
    """The source, with the training data's column names where none are given and they are there."""
    from penstock.engine.data.sources import open_source
    from penstock.engine.errors import SourceError

    if text is None and label is None:
        try:
            return open_source(name, text=trained.text, label=trained.label, need_label=need_label)
        except SourceError:
            pass  # other columns than in training: the usual names, or a message that lists what is there
    return open_source(name, text=text, label=label, need_label=need_label)


def _describe(metrics: "Metrics") -> str:
    return (
        f"accuracy {metrics.accuracy:.4f}, macro-F1 {metrics.macro_f1:.4f}, loss {metrics.loss:.4f} "
        f"on {metrics.num_examples:,} examples"
    )
