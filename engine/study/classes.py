"""Class by class: what the trials of a study found beyond accuracy, for each family at its largest size."""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.engine.page import Block, Heading, Paragraph, TableBlock
from penstock.engine.study.families import FAMILIES, learns
from penstock.engine.study.table import Table
from penstock.engine.study.trials import TrialResult

FIGURES = ("balanced_accuracy", "macro_f1", "mcc", "auroc", "expected_calibration_error")
FEW = 8  # classes whose table is not folded away
SHOWN = 30  # classes in the report; of more, those with the most test examples


@dataclass(frozen=True)
class ClassRow:
    """One class, by one family at one size, on average over the seeds; None where no seed has the figure.

    Attributes:
        never_predicted_by: seeds that never predict it, though the test data has it, of `seeds`.
    """

    family: str
    size: int
    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None
    never_predicted_by: int
    seeds: int

    @property
    def never_predicted(self) -> bool:
        """By no seed."""
        return self.never_predicted_by == self.seeds


def evaluated(table: Table, family: str) -> tuple[int, list[TrialResult]] | None:
    """The family's largest size with trials that kept their evaluation, and those trials."""
    for size in reversed(table.sizes):
        if found := [result for result in table.trials(family, size) if result.evaluation is not None]:
            return size, found
    return None


def class_rows(table: Table) -> list[ClassRow]:
    rows = []
    for family in table.families:
        largest = evaluated(table, family)
        if largest is None:
            continue
        size, results = largest
        of_trials = [result.evaluation["classes"] for result in results if result.evaluation is not None]
        for alike in zip(*of_trials, strict=True):
            means = {name: mean([one[name] for one in alike]) for name in ("precision", "recall", "f1", "auroc")}
            never = sum(one["support"] > 0 and one["predicted"] == 0 for one in alike)
            rows.append(
                ClassRow(
                    family,
                    size,
                    alike[0]["name"],
                    alike[0]["support"],
                    **means,
                    never_predicted_by=never,
                    seeds=len(alike),
                )
            )
    return rows


def class_blocks(table: Table) -> list[Block]:
    """A section of the report; nothing where no trial kept its evaluation, as those of an earlier penstock."""
    rows = class_rows(table)
    if not rows:
        return []
    lines = []
    for family in filter(learns, table.families):
        if (largest := evaluated(table, family)) is not None:
            size, results = largest
            figures = [mean([(result.evaluation or {})[name] for result in results]) for name in FIGURES]
            never = _never_predicted([row for row in rows if row.family == family])
            lines.append([f"{FAMILIES[family].title}, {size:,}", *map(_percent, figures), never])
    columns = ["", "balanced accuracy", "macro-F1", "MCC", "AUROC", "calibration error", "never predicted"]
    families = [family for family in table.families if learns(family) and any(row.family == family for row in rows)]
    by_class = {(row.name, row.family): row for row in rows}
    supports = {row.name: row.support for row in rows}
    shown = sorted(supports, key=lambda name: -supports[name])[:SHOWN] if len(supports) > SHOWN else list(supports)
    more = f" The {SHOWN} classes with the most test examples of {len(supports):,}." if len(supports) > SHOWN else ""
    return [
        Heading("Class by class"),
        Paragraph(
            "Each family at its largest size, in %, mean over seeds: figures that an unbalanced test set does not "
            "flatter, and how far the probabilities can be believed (expected calibration error)."
        ),
        TableBlock(columns, lines, "trials.csv"),
        Paragraph(f"F1 of each class in %.{more}"),
        TableBlock(
            columns=["", "test examples", *(FAMILIES[family].title for family in families)],
            rows=[
                [name, f"{supports[name]:,}", *(_percent(by_class[name, family].f1) for family in families)]
                for name in shown
            ],
            data="classes.csv",
            summary="" if len(shown) <= FEW else f"All {len(shown)} classes",
        ),
    ]


def _never_predicted(rows: Sequence[ClassRow]) -> str:
    """How many of a family's classes no seed predicts, and how many only some do not."""
    text = str(sum(row.never_predicted for row in rows))
    some = [row.never_predicted_by for row in rows if row.never_predicted_by and not row.never_predicted]
    if some:
        text += f"; {len(some)} by {'up to ' if len(set(some)) > 1 else ''}{max(some)} of {rows[0].seeds} seeds"
    return text


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:z.1f}"
