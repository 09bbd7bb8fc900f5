"""An evaluation to look at: a table for the terminal and a page with pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from penstock.engine.page import Block, Bullets, Heading, Headline, Paragraph, Picture, TableBlock, to_html
from penstock.engine.plot_style import STYLE, png_of
from penstock.engine.training.evaluation import ClassFigures, Evaluation, ReliabilityBin

MAX_CLASSES = 30  # shown one by one; of more, the worst and the best
MAX_CELLS = 12  # classes of a confusion matrix with a number in each cell
SHOWN_CONFUSIONS = 10

Figures = TypeVar("Figures", bound=ClassFigures)

COLUMNS = ("class", "precision", "recall", "F1", "AUROC", "support", "predicted")


def print_evaluation(evaluation: Evaluation) -> None:
    """The summary and a table by class, on stdout."""
    shown, note = worst_and_best(evaluation.classes, "classes")
    lines = [*([note] if note else []), *_confusions(evaluation)[:3]]
    print_table(evaluation.summary(), _averages(evaluation), COLUMNS, _class_rows(shown), lines)


def print_table(
    summary: str,
    averages: Sequence[tuple[str, str]],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    lines: Sequence[str],
) -> None:
    """On stdout: a summary, figures by name, a table whose first column is text, and lines below it."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(summary)
    console.print(", ".join(f"{name} {value}" for name, value in averages))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(escape(row[0]), *row[1:])
    console.print(table, soft_wrap=False)
    for line in lines:
        console.print(line)


def evaluation_page(evaluation: Evaluation, run: str, data: str) -> str:
    """One self-contained HTML page."""
    metrics = evaluation.metrics
    shown, note = worst_and_best(evaluation.classes, "classes")
    headline = [f"{metrics.accuracy:.2%} of {metrics.num_examples:,} examples are classified correctly."]
    headline += [f"{caveat[0].upper()}{caveat[1:]}." for caveat in metrics.caveats()]
    blocks: list[Block] = [
        Headline(headline),
        Heading("In figures"),
        TableBlock(
            ["figure", "value"],
            [list(pair) for pair in [("accuracy", f"{metrics.accuracy:.4f}"), *_averages(evaluation)]],
        ),
        Heading("Class by class"),
        Paragraph(
            "Precision: the share of a class's predictions that are right. Recall: the share of its examples that are "
            "found. Support: its examples. AUROC: how well its probability ranks its examples above the others."
        ),
        TableBlock(COLUMNS, _class_rows(shown)),
        *([Paragraph(note)] if note else []),
        Heading("What is taken for what"),
        Picture(
            _confusion_picture(evaluation), "Share of each class's examples (rows) by the class predicted (columns)."
        ),
    ]
    if confusions := _confusions(evaluation):
        blocks.append(Bullets(confusions))
    blocks += [
        Heading("How far the probabilities can be believed"),
        Picture(
            reliability_picture(evaluation.reliability, "probability of the predicted label", "examples"),
            "How often the predicted label is right, by its probability. Expected calibration error: "
            f"{evaluation.ece:.4f}. Below the diagonal the model is surer than it should be; the bars show "
            "where the examples are.",
        ),
        Heading("How this was measured"),
        Bullets(_method(evaluation, run, data)),
    ]
    return to_html(f"Evaluation of {Path(run).name or run} on {Path(data).name or data}", blocks)


def _averages(evaluation: Evaluation) -> list[tuple[str, str]]:
    metrics = evaluation.metrics
    figures: list[tuple[str, float | None]] = [
        ("balanced accuracy", metrics.balanced_accuracy),
        ("macro-F1", metrics.macro_f1),
        ("micro-F1", metrics.accuracy),
        ("weighted F1", metrics.weighted_f1),
        ("MCC", metrics.mcc),
        ("AUROC", evaluation.auroc),
        ("calibration error", evaluation.ece),
        ("loss", metrics.loss),
    ]
    return [(name, figure_text(value)) for name, value in figures]


def figure_text(value: float | None) -> str:
    """Four decimals; a dash for no value."""
    return "–" if value is None else f"{value:z.4f}"


def _class_rows(classes: Sequence[ClassFigures]) -> list[list[str]]:
    return [
        [
            each.name,
            *(figure_text(value) for value in (each.precision, each.recall, each.f1, each.auroc)),
            f"{each.support:,}",
            f"{each.predicted:,}",
        ]
        for each in classes
    ]


def worst_and_best(figures: Sequence[Figures], what: str) -> tuple[Sequence[Figures], str]:
    """All classes (or labels: `what`), or of many the worst and the best by F1; and what is not shown."""
    if len(figures) <= MAX_CLASSES:
        return figures, ""
    present = sorted((each for each in figures if each.support), key=lambda each: (each.f1 or 0.0, each.name))
    half = MAX_CLASSES // 2
    shown = present if len(present) <= MAX_CLASSES else [*present[:half], *present[-half:]]
    return shown, f"The worst and the best of {len(figures):,} {what}, by F1; --json has them all."


def _confusions(evaluation: Evaluation) -> list[str]:
    """The most frequent mistakes, a sentence each."""
    wrong = evaluation.confusion.copy()
    np.fill_diagonal(wrong, 0)
    names = evaluation.label_names
    found = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_CONFUSIONS]:
        label, prediction = divmod(int(place), len(names))
        count, support = int(wrong[label, prediction]), evaluation.classes[label].support
        if count:
            found.append(f"{count:,} of {support:,} {names[label]!r} are taken for {names[prediction]!r}.")
    return found


def _method(evaluation: Evaluation, run: str, data: str) -> list[str]:
    metrics = evaluation.metrics
    items = [f"The best model of {run} on {data}: {metrics.num_examples:,} examples, {metrics.num_classes:,} classes."]
    if evaluation.bad_rows:
        items.append(f"{evaluation.bad_rows:,} rows could not be used and are in none of the figures.")
    items.append(
        "Macro averages count each class alike, weighted ones by its examples; macro-F1 is over the classes that occur "
        "or are predicted. AUROC is one class against the rest, the mean over the classes"
        + (
            "."
            if evaluation.auroc_examples == metrics.num_examples
            else f", from {evaluation.auroc_examples:,} of the examples at even distances."
        )
    )
    items.append(
        f"The calibration error is the mean difference between probability and accuracy over "
        f"{len(evaluation.reliability)} bins of equal width, weighted by their examples."
    )
    return items


def _confusion_picture(evaluation: Evaluation) -> bytes:
    """Rows normalised to their support; of many classes those with the most examples."""
    order = np.sort(np.argsort(-evaluation.confusion.sum(1), kind="stable")[:MAX_CLASSES])
    counts = evaluation.confusion[np.ix_(order, order)]
    support = evaluation.confusion.sum(1)[order]
    shares = counts / np.maximum(support, 1)[:, None]
    names = [_short(evaluation.label_names[number]) for number in order]
    size = min(9.0, 4.0 + 0.4 * len(names))
    figure, axes = _new_figure(size + 1.5, size)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if len(names) <= MAX_CELLS:
        for row in range(len(names)):
            for column in range(len(names)):
                axes.text(
                    column, row, f"{shares[row, column]:.0%}\n{counts[row, column]:,}", ha="center", va="center",
                    fontsize=9, color="white" if shares[row, column] > 0.55 else "#1f2933",
                )  # fmt: skip
    return png_of(figure)


def reliability_picture(bins: Sequence[ReliabilityBin], by: str, what: str) -> bytes:
    """A PNG: how often what is counted (`what`) is right, by its probability (`by`)."""
    used = [part for part in bins if part.count]
    total = sum(part.count for part in bins)
    figure, axes = _new_figure(8, 5)
    axes.plot([0, 1], [0, 1], color="#8a949c", linewidth=1, linestyle="--", label="as sure as right")
    axes.bar(
        [part.low for part in bins], [part.count / total for part in bins], width=1 / len(bins), align="edge",
        color="#d5e3ea", edgecolor="white", label=f"share of the {what}",
    )  # fmt: skip
    axes.plot(
        [part.confidence for part in used], [part.accuracy for part in used], color="#0b6e99", marker="o",
        linewidth=1.6, label="share that is right",
    )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(by)
    axes.set_ylabel("share")
    axes.legend(loc="upper left", frameon=False)
    return png_of(figure)


def _new_figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def _short(name: str, length: int = 22) -> str:
    # a dollar sign begins a formula
    return (name if len(name) <= length else f"{name[: length - 1]}…").replace("$", r"\$")
