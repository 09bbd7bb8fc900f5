"""`penstock compare`: is one classifier better than another, or no worse, on these test rows?"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.engine.cli.options import EncodingOption, SeparatorOption, TextOption

if TYPE_CHECKING:
    from penstock.engine.study.compare import Comparison

SHOWN = 20  # flips on the screen
_WIDTH = 100  # characters of a text there
_GIVEN = "A run's folder; a csv, tsv, jsonl or parquet file with a column label; or a study's trials/NAME.parquet."


def register(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=_GIVEN, show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="Likewise: what A is compared with.", show_default=False)],
    data: Annotated[
        str,
        typer.Option("--data", metavar="STORE|SOURCE", help="The test data, prepared or raw.", show_default=False),
    ],
    text: TextOption = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="Of a raw source: the true labels' column.")
    ] = None,
    separator: SeparatorOption = None,
    encoding: EncodingOption = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="COLUMN",
            help="Says which row of a raw source a file's prediction is of.  [default: id, where both have one, else "
            "the file's row, a number from 0, else the order of the rows]",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the test data that says which rows belong together."),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="How much worse still counts as no worse, as a share.")
    ] = 0.01,
    flips: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write every flip: .csv, .tsv, .jsonl or .parquet."),
    ] = None,
) -> None:
    """Compare two classifiers on the same test rows: accuracies, their paired difference, and what it means in words.

    Exit code 0: A is better than B, or no worse by the margin; 20: A is worse; 21: these rows cannot tell.

    Example:  penstock compare runs/new runs/old --data held-out.csv --cluster film --margin 0.005
    """
    from penstock.engine.data.sources import Reading
    from penstock.engine.output_file import check_output
    from penstock.engine.study.compare import compare as compared
    from penstock.engine.study.compare import flip_records
    from penstock.engine.study.compare_inputs import Options, read_inputs
    from penstock.engine.training.outputs import output_format

    form = None
    if flips is not None:
        form = output_format(flips, None)
        paths = [Path(os.path.expanduser(name)) for name in (first, second, data)]
        check_output(flips, [path for path in paths if path.is_file()], [path for path in paths if path.is_dir()])
    options = Options(text, label, cluster, id_column, Reading(separator, encoding))
    truth, judged_first, judged_second, notes = read_inputs(first, second, data, options)
    found = compared(truth, judged_first, judged_second, margin)
    for note in (*notes, *found.notes):
        typer.echo(f"penstock: {note}", err=True)
    _print(found, first, second, cluster)
    records = flip_records(truth, found, None if flips is not None else SHOWN)
    _print_flips(records[:SHOWN], len(found.flips))
    if flips is not None and form is not None:
        _write(flips, form, records)
        typer.echo(f"written: {flips}")
    raise typer.Exit(found.exit_code)


def _print(found: "Comparison", first: str, second: str, cluster: str | None) -> None:
    width = max(len(first), len(second))
    rows = f"{len(found.rows):,} test rows"
    if cluster is not None:
        rows += f" in {found.difference.clusters:,} groups by {cluster!r}, resampled whole"
    typer.echo(f"{rows}; the 95% intervals cover the choice of rows, not what training A and B again would change")
    for letter, name, accuracy in (("A", first, found.first), ("B", second, found.second)):
        low, high = accuracy.interval
        typer.echo(
            f"{letter}  {name:<{width}}  accuracy {100 * accuracy.mean:.2f}% ({100 * low:.2f} to {100 * high:.2f})"
        )
    low, high = found.difference.interval
    difference = f"{100 * found.difference.mean:+z.2f} points (95% interval {100 * low:+z.2f} to {100 * high:+z.2f})"
    typer.echo(f"A - B: {difference}")
    pairs = found.pairs
    test = "the exact test of signs by groups" if cluster else "McNemar's exact test"
    typer.echo(f"only A right: {pairs.first:,} rows, only B right: {pairs.second:,}; {test}: p = {pairs.p_value:.2g}")
    typer.echo(f"verdict: {found.verdict.text}")


def _print_flips(records: list[dict[str, Any]], count: int) -> None:
    if not records:
        typer.echo("flips: none, the two predict the same everywhere")
        return
    more = f", the first {len(records)}" if count > len(records) else ""
    typer.echo(f"flips: {count:,} rows that the two predict differently{more}:")
    for one in records:
        text = " ".join(one["text"].split())
        text = text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
        right = {"A": "A right", "B": "B right", "neither": "both wrong"}[one["right"]]
        typer.echo(f"  row {one['row']}: {right}; truth {one['truth']}, A {one['a']}, B {one['b']}: {text}")


def _write(out: str, form: str, records: list[dict[str, Any]]) -> None:
    from penstock.engine.csv_text import csv_text
    from penstock.engine.output_file import open_output
    from penstock.engine.training.plain_values import to_json

    columns = ["row", "text", "truth", "a", "b", "right"]
    with open_output(out) as file:
        if form == "parquet":
            import pyarrow as pa
            from pyarrow.parquet import write_table

            kinds = [pa.int64(), *[pa.string()] * 5]
            arrays = [pa.array([one[name] for one in records], kind) for name, kind in zip(columns, kinds, strict=True)]
            write_table(pa.table(arrays, names=columns), pa.PythonFile(file, "w"))
        elif form == "jsonl":
            file.write("".join(to_json(one) + "\n" for one in records).encode())
        else:
            rows = [columns, *([one[name] for name in columns] for one in records)]
            file.write(csv_text(rows, "," if form == "csv" else "\t").encode())
