"""The report of a study: `report.md`, `report.html`, `report.json`, a plot and a CSV file for each question."""

from pathlib import Path
from typing import TYPE_CHECKING

from penstock.engine.files import disk_errors, write_committed, write_json
from penstock.engine.page import Block, Bullets, Figure, Files, Heading, Headline, Paragraph, to_html, to_markdown
from penstock.engine.study.break_even import THRESHOLD
from penstock.engine.study.classes import class_blocks
from penstock.engine.study.csv_files import csv_files
from penstock.engine.study.families import learns
from penstock.engine.study.findings import Findings
from penstock.engine.study.method import method_blocks
from penstock.engine.study.money import Prices
from penstock.engine.study.names import title_of
from penstock.engine.study.report_costs import cost_blocks, money_blocks, need_blocks
from penstock.engine.study.report_external import external_blocks
from penstock.engine.study.report_json import report_json
from penstock.engine.study.report_tables import (
    accuracy_table,
    curve_blocks,
    equivalent_blocks,
    gap_blocks,
    over,
    points,
)
from penstock.engine.study.table import training_time

if TYPE_CHECKING:
    from rich.table import Table as RichTable

TITLE = "How many labelled examples until pretraining no longer pays?"
REPORT_JSON = "report.json"


def write_report(folder: Path | str, prices: Prices | None = None) -> Findings:
    """Writes the report into the study's directory, over an older one.

    Args:
        prices: kept in study.json, so that the next report has them too; None for those that are kept there.

    Raises:
        RunError: there is no study, or nothing to report yet.
        DiskError: it cannot be written.
    """
    folder = Path(folder)
    if prices is not None:
        prices.keep(folder)
    findings = Findings.of(folder)
    from penstock.engine.study import plots

    with disk_errors(folder):
        (folder / "cells.csv").unlink(missing_ok=True)  # trials.csv, by an earlier penstock
        files = csv_files(findings)
        for name, content in files.items():
            write_committed(folder / name, content)
        write_json(folder / REPORT_JSON, report_json(findings, TITLE))
        narrow = {}
        for name, draw in plots.PLOTS.items():
            wide, own = draw(findings, False), draw(findings, True)
            if wide is None or own is None:
                (folder / name).unlink(missing_ok=True)  # of an earlier report, which had something to show
                continue
            write_committed(folder / name, wide)
            narrow[name] = own
        worth = [name for name, content in files.items() if content.count("\n") > 1]
        blocks = _blocks(findings, narrow, [*worth, REPORT_JSON])
        write_committed(folder / "report.md", to_markdown(TITLE, blocks))
        write_committed(folder / "report.html", to_html(TITLE, blocks, folder))
    return findings


def rich_table(findings: Findings) -> "RichTable":
    """The gap table for a terminal."""
    from rich.table import Table as RichTable

    block = accuracy_table(findings.table)
    table = RichTable(title="Test accuracy in % (gap to the fine-tuned encoder in points)", title_justify="left")
    for place, column in enumerate(block.columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in block.rows:
        table.add_row(*(cell.replace("\n", " ") for cell in row))
    return table


def headline(findings: Findings) -> list[str]:
    """The answer, in a few sentences."""
    return list(findings.answer.sentences)


def break_even_lines(findings: Findings) -> list[str]:
    """One sentence for each family other than the encoder."""
    lines = []
    for family, found in findings.break_evens.items():
        if not found.largest:
            continue
        lines.append(f"{title_of(family)}: {found}.")
        both = [point for point in findings.table.points(family) if point.gap is not None]
        if both:
            lines[-1] += f" At {both[-1].size:,} examples the gap is {points(both[-1].gap)} points."
    return lines


def _blocks(findings: Findings, narrow: dict[str, bytes], files: list[str]) -> list[Block]:
    table = findings.table
    learned = list(filter(learns, table.families)) or table.families
    accuracies = [point.accuracy for family in learned for point in table.points(family)]

    def figure(name: str, caption: str, data: str) -> list[Block]:
        return [Figure(name, caption, data, narrow[name])] if name in narrow else []

    blocks: list[Block] = [Headline(headline(findings))]
    blocks += figure("accuracy.png", "Test accuracy; bars: 95% intervals; faint points: single runs.", "trials.csv")
    if findings.missing:
        verb = "trial is" if findings.missing == 1 else "trials are"
        blocks.append(Paragraph(f"This study is not complete: {findings.missing} {verb} still to run."))
    blocks += [
        Heading("Accuracy by number of training examples"),
        Paragraph(
            f"Accuracy in %, ± half of the 95% interval over {over(table, accuracies)}, or its ends in square "
            "brackets; in round brackets the gap: the encoder's accuracy minus this one's in points, over the same "
            "subsets."
        ),
        accuracy_table(table),
    ]
    if findings.break_evens:
        gap = [
            *figure("gap.png", "How far the encoder is ahead, over the same subsets; bars: 95% intervals.", "gap.csv"),
            *gap_blocks(table),
        ]
        if lines := break_even_lines(findings):
            gap += [
                Paragraph(f"The break-even: from where the gap to the encoder stays below {100 * THRESHOLD:g} point."),
                Bullets(lines),
            ]
        gap += equivalent_blocks(findings)
        blocks += [Heading("The gap"), *gap] if gap else []
    blocks += external_blocks(findings.externals)
    blocks += need_blocks(findings)
    blocks += money_blocks(findings)
    blocks += cost_blocks(findings)
    blocks += figure(
        "cost.png",
        f"Accuracy against the {training_time(table)[0]}; dashed: nothing else is cheaper and as accurate.",
        "trials.csv",
    )
    blocks += figure(
        "speed.png",
        "Accuracy against texts a second, from raw text to label; dashed: nothing else is faster and as accurate.",
        "costs.csv",
    )
    blocks += class_blocks(table)
    blocks += curve_blocks(findings)
    if findings.checks:
        blocks += [Heading("To mind"), Bullets([f"{check}." for check in findings.checks])]
    blocks += method_blocks(findings)
    blocks += [Heading("Data"), Files(files)]
    return blocks
