"""`penstock distil`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.engine.cli.options import (
    ConfigOption,
    EncodingOption,
    OverridesArgument,
    ResumeOption,
    SeparatorOption,
    TextOption,
    check_resume,
    parse_share,
)
from penstock.engine.cli.train import train_to_end


def register(app: typer.Typer) -> None:
    app.command()(distil)


def distil(
    teacher: Annotated[
        list[Path] | None,
        typer.Option(
            "--teacher",
            metavar="RUN",
            help="A run to learn from; the logits of several are averaged.",
            show_default=False,
        ),
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(
            metavar="STORE|SOURCE",
            help="Texts that the teachers read: prepared (--unlabelled), or raw, which are then prepared in "
            "RUN.unlabelled. Labels that they may have are not looked at.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="The student's directory, new or to resume.", show_default=False),
    ] = None,
    overrides: OverridesArgument = None,
    train: Annotated[
        Path | None,
        typer.Option("--train", metavar="STORE", help="Rows with true labels, which the student learns from too."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="lstm|encoder|bag", help="The student's kind (model.kind).")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", metavar="NAME|PATH", help="A pretrained encoder as the student (model.encoder)."),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="An earlier run whose weights the student starts from."),
    ] = None,
    eval_: Annotated[
        Path | None,
        typer.Option("--eval", metavar="STORE", help="A test set, read once, at the end; its texts are not learned."),
    ] = None,
    drop_overlap: Annotated[
        bool,
        typer.Option("--drop-overlap", help="Leave out unlabelled texts that are test texts, instead of ending there."),
    ] = False,
    logits: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where the teachers' logits of the texts are kept.  [default: beside the store]"
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="i/n", help="i from 0: only let the teachers read this share of the texts; any machine may."
        ),
    ] = None,
    text: TextOption = None,
    separator: SeparatorOption = None,
    encoding: EncodingOption = None,
    config: ConfigOption = None,
    resume: ResumeOption = None,
) -> None:
    """Train a student on what teachers say of any number of texts, and on true labels where there are some.

    The teachers read each text once, as fast as penstock predict; their logits are kept, so that an interrupted reading
    goes on where it was, and the next student finds them. The same command resumes, and so does --out RUN alone.

    Example:  penstock distil --teacher run --unlabelled raw.store --train reviews.store --model lstm --out student
    """
    from penstock.engine.data.sources import Reading
    from penstock.engine.errors import ConfigError
    from penstock.engine.training.distil_command import Options, read_distil_command
    from penstock.engine.training.raw_texts import RawTexts

    check_resume(resume)
    if shard is not None and resume is not None:
        raise ConfigError("--resume has no effect: --shard makes logits alone and trains nothing; leave it out")
    share = None if shard is None else parse_share(shard)
    models: dict[str, str | None] = {"model.kind": model, "model.encoder": encoder, "model.start_from": from_}
    if drop_overlap:
        models["distillation.drop_overlap"] = "true"
    options = Options(
        out,
        teacher or [],
        unlabelled,
        train,
        eval_,
        logits,
        share,
        RawTexts(text, Reading(separator, encoding)),
        config,
    )
    command = read_distil_command(options, models, overrides or [])

    from penstock.engine.training.distil import distil as run_distil
    from penstock.engine.training.distil import go_on, label_share
    from penstock.engine.training.memory import keep_freed_memory

    keep_freed_memory()
    stores: dict[str, Any] = {"train_store": command.train, "test_store": command.test, "logits": command.logits}
    if share is not None:
        for folder, missing in label_share(command.settings, command.teachers, command.unlabelled, share, **stores):
            typer.echo(f"{folder}: {f'{missing:,} parts are missing' if missing else 'complete'}")
        return
    assert out is not None
    start = go_on if command.goes_on else run_distil
    run = partial(start, command.settings, command.teachers, command.unlabelled, out, **stores)
    train_to_end(out, run, resume, "validation (against true labels, or else the teachers')")
