"""`penstock pretrain`."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from penstock.engine.cli.options import (
    ConfigOption,
    DryRunOption,
    EncodingOption,
    OverridesArgument,
    ResumeOption,
    SeparatorOption,
    SettingsOption,
    TextOption,
    check_resume,
)
from penstock.engine.cli.train import train_to_end, try_out


def register(app: typer.Typer) -> None:
    app.command()(pretrain)


def pretrain(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="RUN", help="The run's directory, new or to resume.", show_default=False),
    ],
    texts: Annotated[
        str | None,
        typer.Option(
            "--texts",
            metavar="STORE|SOURCE",
            help="Texts: prepared, or raw, which are then prepared in RUN.texts. Labels that they may have are not "
            "looked at. Of a run there is: as it had them.",
        ),
    ] = None,
    overrides: OverridesArgument = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="lstm|encoder", help="The kind of model (model.kind).")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", metavar="NAME|PATH", help="The encoder that goes on learning (model.encoder)."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Of raw texts: hub name, path, train:bpe:N or train:wordpiece:N.  [default: the encoder's, or "
            "train:bpe:30000]"
        ),
    ] = None,
    text: TextOption = None,
    separator: SeparatorOption = None,
    encoding: EncodingOption = None,
    config: ConfigOption = None,
    resume: ResumeOption = None,
    dry_run: DryRunOption = False,
    settings: SettingsOption = False,
) -> None:
    """Let a model learn from texts without labels, or resume a run that was stopped.

    An lstm begins from scratch, an encoder from its checkpoint. penstock train --from RUN then fine-tunes it with
    labels. The run is stopped, resumed and extended as those of penstock train; pretraining.tokens ends it too.

    Example:  penstock pretrain --model lstm --texts reviews.store --out pretrained pretraining.tokens=3000000
    """
    from penstock.engine.data.sources import Reading
    from penstock.engine.training.memory import keep_freed_memory
    from penstock.engine.training.pretrain_command import read_pretrain_command
    from penstock.engine.training.raw_texts import RawTexts

    check_resume(resume, dry_run)
    options = {"model.kind": model, "model.encoder": encoder}
    raw = RawTexts(text, Reading(separator, encoding), tokenizer)
    read = partial(read_pretrain_command, out, texts, raw, config, options, overrides or [])
    if dry_run:  # leaves nothing behind, raw texts neither
        with TemporaryDirectory(prefix="penstock-") as temporary:
            command = read(Path(temporary))
            keep_freed_memory()
            try_out(command.settings, command.train, None, out)
        return
    command = read()

    from penstock.engine.training.train import train as run_training

    keep_freed_memory()
    train_to_end(out, partial(run_training, command.settings, command.train, out), resume)
