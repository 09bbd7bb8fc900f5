"""The report's tables of accuracies, gaps, labels-equivalents and learning curves."""

import math
from collections.abc import Sequence

from penstock.engine.page import Block, Bullets, Heading, Paragraph, TableBlock
from penstock.engine.study.break_even import rounded
from penstock.engine.study.families import learns
from penstock.engine.study.findings import Findings
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.names import title_of
from penstock.engine.study.table import Point, Table

_MANY = 6  # rows of a table that few will read
_LOPSIDED = 0.002  # from which difference between the two sides of an interval its ends are shown


def accuracy_table(table: Table) -> TableBlock:
    rows = []
    for family in table.families:
        entries = []
        for size in table.sizes:
            point = table.get(family, size)
            entries.append("–" if point is None else _accuracy_entry(point))
        rows.append([title_of(family), *entries])
    return TableBlock(["", *(f"{size:,}" for size in table.sizes)], rows, "accuracy.csv")


def _accuracy_entry(point: Point) -> str:
    if point.accuracy is None:
        return f"none of {point.unfinished} done"
    text = points(point.accuracy)
    if point.gap is not None:
        text += f"\n({100 * point.gap.mean:+z.1f})"
    return text + (f" [{point.unfinished} not done]" if point.unfinished else "")


def gap_blocks(table: Table) -> list[Block]:
    """The gaps with what tells them from nothing; where there are predictions to tell it."""
    compared = [family for family in table.families if learns(family)]
    found = [point for family in compared for point in table.points(family) if point.test is not None]
    if not found:
        return []
    rows = []
    for point in found:
        assert point.gap is not None
        assert point.test is not None
        test, gap = point.test, point.gap
        rows.append(
            [
                f"{title_of(point.family)}, {point.size:,}",
                f"{100 * gap.mean:+z.1f}",
                "–" if gap.low is None or gap.high is None else f"{100 * gap.low:+z.1f} to {100 * gap.high:+z.1f}",
                p_value(test.adjusted, test.at_least),
                str(gap.count),
                f"{test.pairs.first:,} / {test.pairs.second:,}",
                p_value(test.mcnemar_adjusted),
            ]
        )
    gaps = [point.gap for point in found]
    others = "other test rows" if of_one_seed(gaps) else "other seeds and test rows"
    columns = ["", "gap", "95% interval", "p (Holm)", "seeds", "only one right: encoder / this", "McNemar's p (Holm)"]
    return [
        Paragraph(
            f"The gap in points, over {over(table, gaps)}. The first p-value is of the families: that they differ no "
            f"more than {others} would make them. McNemar's exact one, a row's seeds taken together, is of the models "
            "as they were trained, on the rows that exactly one of the two has right. Both are adjusted by Holm over a "
            "family's sizes."
        ),
        TableBlock(columns, rows, "gap.csv", f"All {len(rows)} gaps, with their tests" if len(rows) > _MANY else ""),
    ]


def over(table: Table, estimates: Sequence[Estimate | None]) -> str:
    """What the intervals of these figures are over."""
    if not any(estimate is not None and estimate.rows for estimate in estimates):
        return "seeds"
    return over_rows(estimates) + (f", whole groups by {table.paired.column!r}" if table.paired.column else "")


def over_rows(estimates: Sequence[Estimate | None]) -> str:
    """The same of intervals that are over test rows."""
    if of_one_seed(estimates):
        return "test rows alone (one seed)"
    single = [estimate for estimate in estimates if estimate is not None and estimate.rows and estimate.count == 1]
    if not single:
        return "seeds and test rows"
    what = "how seeds differ is taken from others" if any(own.borrowed for own in single) else "over test rows alone"
    return f"seeds and test rows (where there is one seed, {what})"


def of_one_seed(estimates: Sequence[Estimate | None]) -> bool:
    """Whether one seed is behind each of those that are over test rows, and nothing tells how others differ."""
    return not any(estimate.over_seeds for estimate in estimates if estimate is not None and estimate.rows)


def equivalent_blocks(findings: Findings) -> list[Block]:
    sizes = sorted({size for own in findings.equivalents.values() for size in own})
    if not sizes:
        return []
    rows = []
    for family, own in findings.equivalents.items():
        measured = findings.table.points(family)
        smallest, largest = measured[0].size, measured[-1].size
        rows.append([title_of(family), *(needed_labels(own[size], smallest, largest, "\n") for size in sizes)])
    return [
        Paragraph(
            "Examples that each family needs to be as accurate as the encoder is with the number at the head of the "
            "column (between measured sizes, linear in the logarithm; brackets: 95% interval)."
        ),
        TableBlock(["", *(f"{size:,}" for size in sizes)], rows, "equivalents.csv"),
    ]


def needed_labels(
    needed: tuple[float, float | None, float | None], smallest: int, largest: int, separator: str = " "
) -> str:
    """A labels-equivalent and its interval, of a family that was trained on sizes from `smallest` to `largest`."""

    def show(value: float) -> str:
        if math.isinf(value):
            return f"> {largest:,}"
        return f"< {smallest:,}" if value == 0 else rounded(value)

    size, low, high = needed
    text = show(size)
    if low is None or high is None or show(low) == show(high) == text:
        return text
    return f"{text}{separator}[{show(low)}; {show(high)}]"


def curve_blocks(findings: Findings) -> list[Block]:
    """A section on the fitted curves; nothing where none was fitted."""
    rows, notes = [], []
    for family, curve in findings.curves.items():
        if isinstance(curve, str):
            notes.append(f"{title_of(family)}: {curve}.")
            continue
        held_out = "–"
        if curve.held_out is not None:
            size, predicted, measured = curve.held_out
            held_out = f"{100 * (1 - predicted):.1f} for {100 * (1 - measured):.1f} at {size:,}"
        values = curve.fit.values
        exponent = "{:.2f} [{:.2f}; {:.2f}]".format(values["exponent"], *curve.interval("exponent"))
        if "then" in values:
            exponent += f", from {rounded(values['break'])} examples {values['then']:.2f}"
        floor = "–"
        if "floor" in values:
            floor = "{:.1%} [{:.1%}; {:.1%}]".format(values["floor"], *curve.interval("floor"))
        rows.append([title_of(family), curve.fit.form.name, exponent, floor, held_out])
        if not curve.identified:
            notes.append(f"{title_of(family)}: not to be extrapolated: {curve.reason}.")
    if not rows:
        return []
    return [
        Heading("Learning curves"),
        Paragraph(
            "Each family's curve has the form that best predicts the larger sizes from the smaller ones: a power law, "
            "error(n) = scale · n^−exponent + floor, or one with a break, or M4, which also levels off where a model "
            "has learned nothing. Weighted by the variance over seeds; brackets: 95% intervals by bootstrap over seeds "
            "and sizes. The last column predicts the largest size from the others."
        ),
        TableBlock(
            ["", "form", "exponent", "floor (error)", "held out: predicted for measured, %"], rows, "curves.csv"
        ),
        *([Bullets(notes)] if notes else []),
    ]


def points(estimate: Estimate | None) -> str:
    """The mean ± half of its interval, or with the ends of one that is visibly longer on one side."""
    assert estimate is not None
    mean = f"{100 * estimate.mean:.1f}"
    if estimate.low is None or estimate.high is None:
        return mean
    below, above = estimate.mean - estimate.low, estimate.high - estimate.mean
    if abs(above - below) < _LOPSIDED:
        return f"{mean} ± {50 * (below + above):.1f}"
    return f"{mean} [{100 * estimate.low:.1f}; {100 * estimate.high:.1f}]"


def p_value(value: float, at_least: bool = False) -> str:
    """
    Args:
        at_least: it is the least that draws can tell, which stands for all that are smaller.
    """
    if value < 0.001:
        return "< 0.001"
    return f"≤ {math.ceil(1000 * value) / 1000:.3f}" if at_least else f"{value:.3f}"
