"""`penstock evaluate` and `predict`. What can be wrong in paths and options shows before torch is imported."""

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.engine.cli.options import EncodingOption, SeparatorOption, TextOption, label_separator_option

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.", show_default=False)]
LabelOption = Annotated[
    str | None, typer.Option("--label", metavar="COLUMN", help="The labels' column of a raw source.")
]


Int8Option = Annotated[
    bool,
    typer.Option(
        "--int8",
        help="An LSTM or an encoder in int8, unless more than 0.2 points of accuracy are lost on the run's "
        "validation rows, on which that is measured first.",
    ),
]


def register(app: typer.Typer) -> None:
    app.command()(evaluate)
    app.command()(predict)


def evaluate(
    run: RunArgument,
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="STORE|SOURCE", help="Prepared or raw data: files, folders, patterns.", show_default=False
        ),
    ],
    text: TextOption = None,
    label: LabelOption = None,
    separator: SeparatorOption = None,
    encoding: EncodingOption = None,
    label_separator: Annotated[
        str | None,
        label_separator_option("What separates the labels of a row in a raw source.  [default: as in training]"),
    ] = None,
    bad_rows: Annotated[
        str,
        typer.Option(
            metavar="fail|skip|quarantine",
            help="Rows of a raw source that cannot be used: end there, count them, or also set them aside in "
            "NAME.bad-rows.jsonl in the current folder.",
        ),
    ] = "fail",
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Every figure as JSON; - writes it to stdout alone.")
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="One HTML page with tables and pictures.")
    ] = None,
    int8: Int8Option = False,
) -> None:
    """Evaluate a run's best model on a store, or on a raw source, with the run's own tokenizer and labels.

    Precision, recall, F1 and support of each class, what is taken for what, and how far the probabilities can be
    believed.

    Example:  penstock evaluate run --data held-out.csv --html evaluation.html
    """
    from penstock.engine.data.progress import RowProgress
    from penstock.engine.data.sources import Reading
    from penstock.engine.data.sources.open import check_splits
    from penstock.engine.data.store import Store
    from penstock.engine.errors import ConfigError
    from penstock.engine.output_file import check_distinct, check_output, open_output
    from penstock.engine.training.bad_rows import BadRowReport
    from penstock.engine.training.run_record import (
        check_fits,
        check_labels,
        files_of,
        is_store,
        open_like_training,
        read_trained_record,
    )

    _check_choice("--bad-rows", bad_rows, ("fail", "skip", "quarantine"))
    outputs = [out for out in (json_file, html) if out is not None]
    check_distinct(outputs)
    reading = Reading(separator, encoding, label_separator)
    record = read_trained_record(run)
    store, sources = None, []
    if is_store(data):
        if text or label or label_separator or separator or encoding or bad_rows != "fail":
            raise ConfigError(
                f"{data} is a store: --text, --label, --label-separator, --separator, --encoding and --bad-rows are "
                "for raw data"
            )
        store = Store.open(data)
        check_fits(store, record["data"])
        if record["identity"].get("training data") == store.fingerprint:
            _say(f"warning: {data} is what {run} was trained on: accuracy there says nothing of other texts")
    else:
        sources = open_like_training(data, record["data"], text=text, label=label, reading=reading)
        check_splits(sources, label_separator)
        for source in sources:
            check_labels(source, record["data"])
    for out in outputs:
        check_output(out, files_of(sources), [run, *([Path(data)] if store else [])])
    if html == "-":
        raise ConfigError("--html needs the name of a file")

    with ExitStack() as stack:
        files = [stack.enter_context(open_output(out)) for out in outputs]
        quarantine = None
        if bad_rows == "quarantine":
            name = re.sub(r"[^\w.-]+", "_", Path(data).name) + ".bad-rows.jsonl"
            check_output(name, files_of(sources))
            check_distinct([*outputs, name])
            quarantine = (name, stack.enter_context(open_output(name)))
        report = BadRowReport(bad_rows, quarantine)

        from penstock.engine.training import evaluation_page, multi_label_page
        from penstock.engine.training.trained import TrainedRun

        shown: Any = multi_label_page if record["data"].get("multi_label") else evaluation_page
        trained = TrainedRun.open(run)
        if int8:
            _say(trained.answer_in_int8().summary())
        with RowProgress("evaluate", store.num_examples if store else None, shown=sys.stderr.isatty()) as progress:
            if store is not None:
                evaluation = trained.evaluate_store(store, progress.advance)
            else:
                evaluation = trained.evaluate_source(sources, report, progress.advance)
        for out, file in zip(outputs, files, strict=True):
            if out == json_file:
                content = json.dumps({"run": str(run), "data": data, **evaluation.to_json()}, indent=2)
                file.write(content.encode() + b"\n")
            else:
                file.write(shown.evaluation_page(evaluation, str(run), data).encode())
    if json_file == "-":
        typer.echo(evaluation.summary(), err=True)
    else:
        shown.print_evaluation(evaluation)
    report.print_examples()
    for out in outputs:
        if out != "-":
            typer.echo(f"written: {out}", err=json_file == "-")


def predict(
    run: RunArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE|-",
            help="Raw texts: a file, or all those of a folder or pattern; or - for stdin. Labels are not needed.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="FILE|-",
            help="A .csv, .tsv, .jsonl (also .gz and .zst) or .parquet file, replaced if it exists; or - for stdout.",
            show_default=False,
        ),
    ],
    text: TextOption = None,
    separator: SeparatorOption = None,
    encoding: EncodingOption = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="COLUMN,...", help="The source's columns to carry along; all by default, '' for none."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            help="The N most probable labels: label, label_2, ...; of a run for lists of labels, whatever the "
            "thresholds.  [default: 1; of such a run, those that reach their threshold]",
            metavar="N",
        ),
    ] = None,
    label_separator: Annotated[
        str | None,
        label_separator_option("Between the labels of a row in csv and tsv, if a row has several.  [default: |]"),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also every label's probability, as probability_NAME.")
    ] = False,
    bad_rows: Annotated[
        str,
        typer.Option(
            metavar="keep|fail|quarantine",
            help="Rows without a usable text: come out in their place without a label, end there, or come out and are "
            "also set aside in OUT.bad-rows.jsonl.",
        ),
    ] = "keep",
    format: Annotated[
        str | None,
        typer.Option(
            metavar="csv|tsv|jsonl|parquet|txt",
            help="Format of stdin and stdout. Default for stdout: as the source, or jsonl.",
        ),
    ] = None,
    out_format: Annotated[
        str | None,
        typer.Option("--out-format", metavar="csv|tsv|jsonl|parquet", help="Format of the output, if it differs."),
    ] = None,
    int8: Int8Option = False,
) -> None:
    """Classify texts: the source's rows and columns, in their order, with `label` and its `probability` added.

    A column of the source that is itself called label or probability comes out as source_label, source_probability.
    In probability_NAME, characters of NAME other than letters, digits and underscores become underscores.

    Example:  penstock predict run new-reviews.jsonl --out predictions.csv --keep id
    """
    from penstock.engine.data.sources import Reading
    from penstock.engine.errors import ConfigError
    from penstock.engine.output_file import check_distinct, check_output, open_output
    from penstock.engine.training.bad_rows import BadRowReport
    from penstock.engine.training.inputs import opened_for_predicting
    from penstock.engine.training.outputs import check_separator, open_writer
    from penstock.engine.training.predictions import Columns, ListColumns, common_schema
    from penstock.engine.training.run_record import files_of, read_trained_record, saved_thresholds

    _check_choice("--bad-rows", bad_rows, ("keep", "fail", "quarantine"))
    if (top_k or 1) > 1 and probabilities:
        raise ConfigError("--top-k and --probabilities: choose one")
    if bad_rows == "quarantine" and out == "-":
        raise ConfigError("--bad-rows quarantine sets rows aside beside a file: give --out one")
    reading = Reading(separator, encoding)
    chosen = _output_format(source, out, format, out_format)
    record = read_trained_record(run)
    kept = None if keep is None else [name.strip() for name in keep.split(",") if name.strip()]
    several = record["data"].get("multi_label", False)
    if label_separator is not None and not several:
        raise ConfigError(f"--label-separator has no effect: the run {run} gives each text one label")
    if label_separator is not None and chosen in ("jsonl", "parquet"):
        raise ConfigError(f"--label-separator has no effect: {chosen} has lists of labels: leave it out, or write csv")
    between = Reading(label_separator=label_separator or record["data"].get("label_separator")).label_separator
    if several:
        check_separator(chosen, record["data"]["label_names"], between)
    with ExitStack() as stack:
        check_output(out, [Path(os.path.expanduser("/dev/stdin" if source == "-" else source))], [run])
        opened = stack.enter_context(opened_for_predicting(source, format, record["data"], text, reading))
        check_output(out, files_of(opened), [run])
        for each in opened:
            each.carry(kept)
        schema = common_schema(opened)
        names = record["data"]["label_names"]
        columns: Columns
        if several:
            thresholds = saved_thresholds(run, len(names))
            columns = ListColumns(schema.names, names, thresholds, top_k=top_k, probabilities=probabilities)
        else:
            columns = Columns(schema.names, names, top_k=top_k or 1, probabilities=probabilities)
        for old, new in columns.moved.items():
            _say(f"the source's column {old!r} comes out as {new!r}")
        file = stack.enter_context(open_output(out))
        quarantine = None
        if bad_rows == "quarantine":
            beside = f"{out}.bad-rows.jsonl"
            check_output(beside, files_of(opened), [run])
            check_distinct([out, beside])
            quarantine = (beside, stack.enter_context(open_output(beside)))
        report = BadRowReport(bad_rows, quarantine)

        from penstock.engine.data.progress import RowProgress
        from penstock.engine.training.trained import TrainedRun

        trained = TrainedRun.open(run)
        if int8:
            _say(trained.answer_in_int8().summary())
        writer = open_writer(file, chosen, columns, schema, between)
        rows = 0
        with RowProgress("predict") as progress:
            for part in trained.predict_parts(opened):
                if part.bad:
                    report(part.source, part.bad)
                writer.write(part)
                rows += len(part)
                progress.advance(len(part))
        writer.close()
    report.print_examples()
    bad = f", {report.count:,} of them without a label: no usable text" if report.count else ""
    typer.echo(f"{'stdout' if out == '-' else out}: {rows:,} rows{bad}", err=out == "-")


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    from penstock.engine.errors import ConfigError

    if value not in choices:
        raise ConfigError(f"{option} must be one of {', '.join(choices)}, got {value!r}")


def _say(line: str) -> None:
    typer.echo(f"penstock: {line}", err=True)


def _output_format(source: str, out: str, format: str | None, out_format: str | None) -> str:
    """The format that predictions are written in, where nothing that was asked for is passed over."""
    from penstock.engine.errors import ConfigError
    from penstock.engine.training.inputs import is_pipe
    from penstock.engine.training.outputs import FORMATS, format_of_ending, output_format

    ending, piped = format_of_ending(out), is_pipe(source)
    if out_format is not None and ending not in (None, out_format):
        raise ConfigError(f"--out-format {out_format}: {out} says by its ending that it is {ending}; leave out one")
    if format is not None and ending is not None and not piped:
        raise ConfigError(f"--format has no effect: {source} and {out} are files; leave it out")
    asked = out_format or (format if format in FORMATS or not piped else None)
    if asked is None and out == "-":
        asked = next((form for form in ("csv", "tsv") if f".{form}" in Path(source).suffixes[-2:]), "jsonl")
    return output_format(out, asked, " (or --out-format does)")
