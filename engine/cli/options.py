"""Options that several commands share."""

from typing import Annotated

import typer

_EACH_TIME = "Not kept with a store or a run: files may differ."

TextOption = Annotated[
    str | None,
    typer.Option(
        "--text",
        metavar="COLUMN[,SECOND]",
        help="Column of the texts. title,body: pairs, encoded as the tokenizer makes pairs; title+body: one text, the "
        "columns joined by a newline.",
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
