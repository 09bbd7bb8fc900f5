"""`penstock inspect`: what labelled texts are like, before anything is trained on them."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.engine.cli.options import EncodingOption, SeparatorOption, TextOption, label_separator_option

if TYPE_CHECKING:
    import numpy as np

    from penstock.engine.data.inspect import Duplicates, Looked, SharedTexts
    from penstock.engine.data.sources import Reading, Source

SHOWN = 3  # groups or rows of each kind whose places are shown; --out has them all
SHOWN_PLACES = 4  # of one group
SHOWN_CLASSES = 20


def register(app: typer.Typer) -> None:
    app.command("inspect")(inspect)


def inspect(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Labelled texts, as prepare reads them.", show_default=False),
    ],
    against: Annotated[
        list[str] | None, typer.Option(metavar="TEST", help="A test set to compare with; may be given again.")
    ] = None,
    text: TextOption = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the labels.")] = None,
    separator: SeparatorOption = None,
    encoding: EncodingOption = None,
    label_separator: Annotated[
        str | None, label_separator_option("Each row has several labels, with this between them, such as '|'.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the places of all rows found to a .csv or .jsonl file.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Look at labelled texts: lengths, classes, duplicates, contradictions, and what a test set shares with them.

    Texts are the same after normalisation if they differ only in case, white space or Unicode's compatible forms.

    Example:  penstock inspect reviews.csv --against held-out.csv --out found.csv
    """
    from penstock.engine.data.inspect import duplicates, look, require_rows, shared_texts
    from penstock.engine.data.progress import RowProgress
    from penstock.engine.data.sources import Reading
    from penstock.engine.data.sources.labels import merged_notices, notices
    from penstock.engine.data.sources.open import check_once, check_splits
    from penstock.engine.errors import ConfigError
    from penstock.engine.output_file import check_output

    if out is not None and out.suffix.lower() not in (".csv", ".jsonl"):
        raise ConfigError(f"--out {out}: write a .csv or a .jsonl file")
    reading = Reading(separator, encoding, label_separator)
    train_sources = _open(sources, text, label, reading)
    test_sources = _open(against, text, label, reading, train_sources[0]) if against else []
    if out is not None:
        check_output(str(out), [source.path for source in [*train_sources, *test_sources] if source.path is not None])
    check_once(train_sources)
    check_once(test_sources)
    check_splits([*train_sources, *test_sources], label_separator)
    if test_sources:
        _check_kinds(train_sources[0], test_sources[0])
    with RowProgress("reading", shown=True) as bar:
        train = look(train_sources, bar.advance)
        require_rows(train)
        test = look(test_sources, bar.advance, train) if against else None
        if test is not None:
            require_rows(test)
    for line in notices(train_sources[0].label or "", train.label_spellings):
        print(line, file=sys.stderr)
    for line in [] if test is None else merged_notices(test_sources[0].label or "", test.label_spellings):
        print(line, file=sys.stderr)
    found = duplicates(train)
    shared = shared_texts(train, test) if test is not None else None
    if out is not None:
        _write(out, _found_rows(train, found, test, shared))
    if json:
        _print_json(train, found, test, shared)
    else:
        _print_tables(train, found, test, shared)
        if out is not None:
            print(f"{out}: the places of all of these rows")
        print(_summary(train, found, test, shared))


def _open(
    names: list[str], text: str | None, label: str | None, reading: "Reading", train: "Source | None" = None
) -> "list[Source]":
    """The sources, without labels where they have no column of a usual name and none was asked for.

    Args:
        train: whose columns those of a test set are.
    """
    from penstock.engine.data.sources import open_sources
    from penstock.engine.data.sources.alike import Columns, open_alike
    from penstock.engine.data.sources.base import NoColumn
    from penstock.engine.errors import SourceError

    for name in names:
        if (Path(name) / "manifest.json").is_file():
            raise SourceError(f"{name}: a store, which keeps no texts; inspect the sources it was prepared from")
    opened: Any = open_sources
    if train is not None:
        opened = partial(open_alike, like=Columns(train.text, train.label, train.is_pair, train.name))
    try:
        return opened(names, text=text, label=label, reading=reading)
    except NoColumn:
        if label is not None or reading.label_separator is not None:
            raise
        return opened(names, text=text, need_label=False, reading=reading)


def _check_kinds(train: "Source", test: "Source") -> None:
    """Raises SourceError: one has lists of labels, the other a label for each row, which cannot be compared."""
    from penstock.engine.errors import SourceError

    if None in (train.label, test.label) or train.multi_label == test.multi_label:
        return
    lists, single = (train, test) if train.multi_label else (test, train)
    raise SourceError(
        f"{lists.name} has lists of labels, {single.name} a single label for each row (column {single.label!r}): "
        "--label-separator says what stands between the labels of a text"
    )


def _kinds(found: "Duplicates", has_labels: bool = True) -> "list[tuple[str, str, Any]]":
    """(name, description, groups) of what can be found in one data set."""
    if not has_labels:
        return [
            ("exact", "same text", found.exact),
            ("normalised", "same text after normalisation only", found.normal),
        ]
    return [
        ("exact", "same text, same label", found.exact),
        ("contradiction", "same text, different labels", found.contradictions),
        ("normalised", "same text after normalisation only", found.normal),
        ("normalised-contradiction", "  of these, only now different labels", found.normal_contradictions),
    ]


def _found_rows(
    train: "Looked", found: "Duplicates", test: "Looked | None", shared: "SharedTexts | None"
) -> Iterator[dict[str, Any]]:
    """A record for each row of each group; what a test set shares is a group of the test row and a training row."""

    def record(kind: str, group: int, looked: "Looked", row: int, split: str) -> dict[str, Any]:
        source = looked.source_of(row)
        place = {"source": source.name, "unit": source.unit, "position": int(looked.positions[row])}
        return {"kind": kind, "group": group, "set": split, **place, "label": looked.label_of(row)}

    for kind, _, groups in _kinds(found, train.has_labels):
        for number, rows in enumerate(groups):
            for row in rows:
                yield record(kind, number, train, int(row), "train")
    if train.empty.size:
        for number, row in enumerate(train.empty):
            yield record("empty", number, train, int(row), "train")
    if test is not None and shared is not None:
        for kind, rows, twins in (
            ("overlap", shared.exact, shared.exact_twin),
            ("normalised-overlap", shared.normal, shared.normal_twin),
        ):
            for number, (row, twin) in enumerate(zip(rows, twins, strict=True)):
                yield record(kind, number, test, int(row), "test")
                yield record(kind, number, train, int(twin), "train")


def _write(path: Path, records: Iterator[dict[str, Any]]) -> None:
    import json

    from penstock.engine.csv_text import csv_text
    from penstock.engine.output_file import open_output

    columns = ["kind", "group", "set", "source", "unit", "position", "label"]
    with open_output(str(path)) as file:
        if path.suffix.lower() == ".jsonl":
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            return
        file.write(csv_text([columns]).encode())
        for record in records:
            file.write(csv_text([[record[column] for column in columns]]).encode())


def _classes(looked: "Looked") -> list[tuple[str, int]]:
    """(name, rows), the most frequent first; without the classes beyond those whose names are kept."""
    return sorted(
        zip(looked.label_names, looked.label_counts.tolist(), strict=False), key=lambda entry: (-entry[1], entry[0])
    )


def _document(looked: "Looked") -> dict[str, Any]:
    document: dict[str, Any] = {
        "sources": [source.name for source in looked.sources],
        "rows": looked.rows,
        "bad_rows": looked.bad,
        "empty_texts": len(looked.empty),
        "characters": looked.characters.summary(),
        "words": looked.words.summary(),
    }
    if looked.has_labels:
        classes = _classes(looked)
        document["classes"] = [
            {"label": name, "rows": rows, "share": rows / max(looked.rows, 1)} for name, rows in classes
        ]
        document["num_classes"] = len(looked.label_counts)
        document["majority"] = {"label": classes[0][0], "share": classes[0][1] / looked.rows} if classes else None
    return document


def _print_json(train: "Looked", found: "Duplicates", test: "Looked | None", shared: "SharedTexts | None") -> None:
    import json

    document = _document(train)
    document["duplicates"] = {
        "exact": {"groups": len(found.exact), "rows": len(found.exact.rows), "surplus": found.surplus},
        "contradictions": {"groups": len(found.contradictions), "rows": len(found.contradictions.rows)},
        "normalised": {"groups": len(found.normal), "rows": len(found.normal.rows), "more": found.more},
        "normalised_contradictions": {
            "groups": len(found.normal_contradictions),
            "rows": len(found.normal_contradictions.rows),
        },
    }
    document["first"] = {
        kind: [[train.place(int(row)) for row in rows[:SHOWN_PLACES]] for rows in _first(groups)]
        for kind, _, groups in _kinds(found, train.has_labels)
    }
    if test is not None and shared is not None:
        document["against"] = _document(test) | {
            "overlap": {
                "exact": len(shared.exact),
                "normalised": len(shared.normal),
                "share": (len(shared.exact) + len(shared.normal)) / max(test.rows, 1),
                "other_label": shared.other_label,
            }
        }
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _first(groups: Any) -> "Iterator[np.ndarray]":
    from itertools import islice

    return islice(iter(groups), SHOWN)


def _print_tables(train: "Looked", found: "Duplicates", test: "Looked | None", shared: "SharedTexts | None") -> None:
    from rich.console import Console

    console = Console()
    for looked in (train, test) if test is not None else (train,):
        names = ", ".join(source.name for source in looked.sources)
        console.print(f"{names}: {looked.rows:,} rows", style="bold", highlight=False, markup=False)
        _print_one(console, looked)
    kinds = [(title, groups) for _, title, groups in _kinds(found, train.has_labels)]
    table = _table("duplicates", "groups", "rows")
    for title, groups in kinds:
        table.add_row(title, f"{len(groups):,}", f"{len(groups.rows):,}")
    console.print(table)
    for title, groups in kinds:
        for rows in _first(groups):
            _print_places(console, title.strip(), _places(train, rows))
    if test is None or shared is None:
        return
    table = _table("overlap of test and train", "test rows", "share")
    overlaps = (
        ("same text", shared.exact, shared.exact_twin),
        ("same text after normalisation only", shared.normal, shared.normal_twin),
    )
    for title, rows, _ in overlaps:
        table.add_row(title, f"{len(rows):,}", f"{len(rows) / max(test.rows, 1):.1%}")
    console.print(table)
    for title, rows, twins in overlaps:
        for row, twin in zip(rows[:SHOWN], twins[:SHOWN], strict=True):
            _print_places(console, f"overlap, {title}", f"{test.place(int(row))} = {train.place(int(twin))}")


def _print_places(console: Any, title: str, places: str) -> None:
    """On one line, however long: so it can be searched and copied."""
    console.print(f"  {title}: {places}", style="dim", highlight=False, markup=False, soft_wrap=True)


def _print_one(console: Any, looked: "Looked") -> None:
    for place in looked.bad_rows:
        console.print(f"cannot be used: {place}", highlight=False, markup=False, soft_wrap=True)
    if looked.bad > len(looked.bad_rows):
        console.print(f"... and {looked.bad - len(looked.bad_rows):,} more", highlight=False)
    summaries = {"characters": looked.characters.summary(), "words": looked.words.summary()}
    if looked.rows:
        table = _table("length", *summaries["words"])
        for name, summary in summaries.items():
            table.add_row(name, *(f"{value:,.1f}" if key == "mean" else f"{value:,}" for key, value in summary.items()))
        console.print(table)
    if not looked.has_labels:
        console.print("no column of labels: nothing is said of classes (--label names one)", highlight=False)
        return
    from rich.markup import escape

    classes = _classes(looked)
    if looked.sources[0].multi_label:
        console.print("rows have lists of labels: each set of labels counts as a class here", highlight=False)
    table = _table("class", "rows", "share")
    for name, rows in classes[:SHOWN_CLASSES]:
        table.add_row(escape(name), f"{rows:,}", f"{rows / looked.rows:.2%}")
    if len(looked.label_counts) > SHOWN_CLASSES:
        table.add_row(f"... {len(looked.label_counts) - SHOWN_CLASSES:,} more", "", "")
    console.print(table)


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    return table


def _places(looked: "Looked", rows: "np.ndarray") -> str:
    shown = [int(row) for row in rows[:SHOWN_PLACES]]
    labels = [f" ({looked.label_of(row)})" if looked.has_labels else "" for row in shown]
    places = ", ".join(f"{looked.place(row)}{label}" for row, label in zip(shown, labels, strict=True))
    return places + (f" and {len(rows) - SHOWN_PLACES:,} more" if len(rows) > SHOWN_PLACES else "")


def _summary(train: "Looked", found: "Duplicates", test: "Looked | None", shared: "SharedTexts | None") -> str:
    def count(number: int, one: str, more: str = "") -> str:
        return f"{number:,} {one if number == 1 else more or one + 's'}"

    parts = [count(train.rows, "row")]
    if train.has_labels and len(train.label_counts):
        name, rows = _classes(train)[0]
        parts[0] += f" in {count(len(train.label_counts), 'class', 'classes')} ({name}: {rows / train.rows:.1%})"
    parts.append(count(found.surplus, "exact duplicate"))
    if train.has_labels:
        parts.append(count(len(found.contradictions), "contradiction"))
    parts.append(f"{found.more:,} more after normalising")
    parts.append(count(len(train.empty), "empty text"))
    if train.bad:
        parts.append(count(train.bad, "bad row"))
    if test is not None and shared is not None:
        both = len(shared.exact) + len(shared.normal)
        overlap = f"{both:,} of {count(test.rows, 'test row')} ({both / max(test.rows, 1):.1%}) also in train"
        if both:
            overlap += f", {len(shared.normal):,} of them after normalising, {shared.other_label:,} under another label"
        parts.append(overlap)
    return "; ".join(parts)
