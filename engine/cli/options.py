"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

_EACH_TIME = "Not kept with a store or a run: files may differ."

TextOption = Annotated[
    str | None,
    typer.Option(
        "--text",
        metavar="COLUMN[,SECOND]",
        help="Column of the texts. title,body: pairs, encoded as the tokenizer makes pairs; title+body: one text, the "
        "columns joined by a newline; ticket.body: a field inside of objects.",
        show_default=False,
    ),
]
SeparatorOption = Annotated[
    str | None,
    typer.Option(
        "--separator",
        metavar="CHARACTER|tab|pipe",
        help=f"Between a csv file's fields. {_EACH_TIME}  [default: detected]",
        show_default=False,
    ),
]
EncodingOption = Annotated[
    str | None,
    typer.Option(
        "--encoding",
        metavar="NAME",
        help=f"Encoding of csv, jsonl and txt files without a byte order mark. {_EACH_TIME}  [default: utf-8]",
        show_default=False,
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value]...", help="Settings, above those of --config.", show_default=False),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE.yaml", help="Settings as YAML.")]
ResumeOption = Annotated[
    str | None,
    typer.Option(
        metavar="last|previous",
        help="previous: where the last checkpoint is damaged, go on from the one before it.  [default: last]",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Try the heaviest batches, say what memory and time it takes; write nothing."),
]


def stated_options(context: typer.Context) -> list[str]:
    """The options and arguments that were given on the command line, as they are written there."""
    found = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            found.append(parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.name).upper())
    return found


def _list_settings(wanted: bool) -> None:
    if wanted:
        from penstock.engine.training.sections import describe_settings

        typer.echo(describe_settings())
        raise typer.Exit


SettingsOption = Annotated[
    bool, typer.Option("--settings", help="List every setting and exit.", is_eager=True, callback=_list_settings)
]


def check_resume(resume: str | None, dry_run: bool = False) -> None:
    """Raises ConfigError for a --resume that says nothing, or that --dry-run has no use for."""
    from penstock.engine.errors import ConfigError

    if resume not in (None, "last", "previous"):
        raise ConfigError(f"--resume must be last or previous, got {resume!r}")
    if resume is not None and dry_run:
        raise ConfigError("--dry-run begins with new weights whatever is there: leave --resume out")


def parse_share(text: str) -> tuple[int, int]:
    """(i, n) of `i/n`.

    Raises:
        ConfigError: it is something else.
    """
    from penstock.engine.errors import ConfigError

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise ConfigError(f"shard {text}: expected i/n, as in 0/4")
    return int(index), int(count)


def label_separator_option(help: str) -> typer.models.OptionInfo:
    """--label-separator, whose meaning depends on what a command does with it."""
    return typer.Option("--label-separator", metavar="TEXT", help=help)
