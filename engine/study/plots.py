"""The report's plots: accuracy and gap against the number of training examples, accuracy against costs.

Each is drawn twice, for a page and for a phone. A family has one colour and one marker in all of them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from penstock.engine.plot_style import STYLE, png_of
from penstock.engine.study.break_even import THRESHOLD
from penstock.engine.study.curves import Curve
from penstock.engine.study.families import REFERENCE, learns
from penstock.engine.study.findings import Findings
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.names import title_of
from penstock.engine.study.table import Table, training_time

# distinguishable to the colour-blind and in grey (Okabe & Ito)
_STYLES = {
    "majority": ("#7a848c", "x"),
    "linear": ("#cc79a7", "^"),
    "bag": ("#e69f00", "v"),
    "lstm": ("#0072b2", "o"),
    "lstm-embeddings": ("#009e73", "s"),
    "lstm-pretrained": ("#117733", "d"),
    "lstm-distilled": ("#332288", "p"),
    "lstm-pretrained-distilled": ("#882255", ">"),
    "frozen": ("#56b4e9", "P"),
    "encoder": ("#d55e00", "D"),
}
_OTHERS = (
    ("#000000", "*"),
    ("#7b3294", "X"),
    ("#8c6d31", "h"),
    ("#1b4f3a", "<"),
)  # of families that are not named here
_RUNS: dict[str, Any] = {"s": 22, "alpha": 0.35, "linewidths": 0}  # single runs
_SPREAD = 0.009  # of the width: families at the same size are drawn a little apart
_SOFT = "#8a949c"
_WIDE, _NARROW = (8.6, 4.6), (4.3, 4.9)  # inches
_LEAST_ROOM = 5.0  # points of accuracy that an axis may grow by for the sake of intervals


def draw_accuracy(findings: Findings, narrow: bool) -> bytes:
    """Every trial as a point, means with their intervals, and the fitted curves where there are any."""
    table = findings.table
    figure, axes = _begin(narrow)
    values: list[float] = []
    ends: list[float] = []
    for family in table.families:
        points = table.points(family)
        if not points or not learns(family):
            continue
        colour, marker = _style(family, table)
        known = [point.accuracy for point in points if point.accuracy is not None]
        shift = _shift(family, table)
        for point in points:
            runs = 100 * np.array(list(point.accuracies.values()))
            axes.scatter([point.size * shift] * len(runs), runs, color=colour, marker=marker, **_RUNS)
            values += runs.tolist()
        curve = findings.curves.get(family)
        _series(axes, table, family, [point.size for point in points], known, joined=not isinstance(curve, Curve))
        ends += _ends(known)
        if isinstance(curve, Curve):
            grid = np.geomspace(points[0].size, points[-1].size, 100)
            axes.plot(grid * shift, 100 * (1 - curve.fit.error(grid)), color=colour, linewidth=1.6)
    levels = _levels(table)
    for place, each in enumerate(findings.externals):  # no training size belongs to them
        levels.append(Level(each.name, 100 * each.accuracy.mean, "#3c4750", (0, (4, 2 + 2 * place)), 1.2))
    accuracy_axis(axes, values, ends, levels)
    _size_axis(axes, table.sizes, narrow)
    return _finish(figure, axes, narrow)


def draw_gap(findings: Findings, narrow: bool) -> bytes | None:
    """The encoder's accuracy minus each other family's, over the same subsets; None where there is no gap."""
    table = findings.table
    series = {
        family: [point for point in table.points(family) if point.gap is not None]
        for family in table.families
        if family != REFERENCE and learns(family)
    }
    if not any(series.values()):
        return None
    figure, axes = _begin(narrow)
    axes.axhline(0, color=_SOFT, linewidth=1)
    axes.axhline(100 * THRESHOLD, color=_SOFT, linewidth=1, linestyle="--")
    axes.annotate(
        f"{100 * THRESHOLD:g} point", (1, 100 * THRESHOLD), xycoords=("axes fraction", "data"), xytext=(3, 0),
        textcoords="offset points", ha="left", va="center", fontsize=9, color="#5b6770",
    )  # fmt: skip
    values, ends = [0.0, 100 * THRESHOLD], []
    for family, points in series.items():
        if not points:
            continue
        colour, marker = _style(family, table)
        for point in points:
            gaps = 100 * np.array(list(point.gaps.values()))
            places = [point.size * _shift(family, table)] * len(gaps)
            axes.scatter(places, gaps, color=colour, marker=marker, **_RUNS)
            values += gaps.tolist()
        known = [point.gap for point in points if point.gap is not None]
        _series(axes, table, family, [point.size for point in points], known, joined=True)
        ends += _ends(known)
    axes.set_ylabel("encoder's lead, points of accuracy")
    axes.set_ylim(*limits(values, ends, -100, 100))
    _size_axis(axes, sorted({point.size for points in series.values() for point in points}), narrow)
    return _finish(figure, axes, narrow)


def draw_training_cost(findings: Findings, narrow: bool) -> bytes | None:
    """Accuracy against what training took: a point for each family and size, and the frontier of the best."""
    table, series = findings.table, {}
    measure, seconds = training_time(table)
    for family in table.families:
        if not learns(family):
            continue
        places = []
        for point in table.points(family):
            assert point.accuracy is not None
            done = [trial for trial in table.trials(family, point.size) if trial.status == "done"]
            mean = float(np.exp(np.mean([np.log(max(seconds(trial), 1e-3)) for trial in done])))
            places.append((mean, 100 * point.accuracy.mean, point.size))
        if places:
            series[family] = places
    if not series:
        return None
    return _against_cost(
        findings, series, f"{measure}, seconds (log scale); labels: examples", narrow, cheap_is_left=True
    )


def draw_speed(findings: Findings, narrow: bool) -> bytes | None:
    """Accuracy against texts a second; None where speeds were not measured."""
    table, series = findings.table, {}
    for family in table.families:
        cost, points = findings.costs.get(family), table.points(family)
        if cost is None or not cost.texts_per_second or not points or not learns(family):
            continue
        speed = cost.texts_per_second
        series[family] = [(speed, 100 * p.accuracy.mean, p.size) for p in points if p.accuracy is not None]
    if not series:
        return None
    label = "texts a second, raw text to label (log scale); labels: examples"
    return _against_cost(findings, series, label, narrow, cheap_is_left=False)


PLOTS: dict[str, Callable[[Findings, bool], bytes | None]] = {
    "accuracy.png": draw_accuracy,
    "gap.png": draw_gap,
    "cost.png": draw_training_cost,
    "speed.png": draw_speed,
}


def frontier(points: Sequence[tuple[float, float]], *, cheap_is_left: bool) -> list[tuple[float, float]]:
    """The points, (cost or speed, accuracy), than which no other is both cheaper, or faster, and as accurate; by x."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0] if cheap_is_left else -point[0], -point[1])):
        if not found or y > found[-1][1]:
            found.append((x, y))
    return sorted(found)


def limits(values: Sequence[float], ends: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    """An axis holds all values, and the intervals' ends as far as they do not squeeze the values together, but nothing
    outside of what is possible."""
    low, high = min(values), max(values)
    room = max(high - low, _LEAST_ROOM)
    low = max(min([low, *ends]), low - room)
    high = min(max([high, *ends]), high + room)
    margin = 0.06 * max(high - low, 1.0)
    return max(low - margin, lowest), min(high + margin, highest)


@dataclass(frozen=True)
class Level:
    """An accuracy, in %, that no number of training examples belongs to."""

    name: str
    accuracy: float
    colour: str
    style: Any
    width: float


def _levels(table: Table) -> list[Level]:
    """The families that learn nothing from more examples, at the largest size."""
    known = [(family, table.points(family)) for family in table.families if not learns(family)]
    return [
        Level(title_of(family), 100 * points[-1].accuracy.mean, _style(family, table)[0], ":", 1.6)
        for family, points in known
        if points and points[-1].accuracy is not None
    ]


def accuracy_axis(axes: Any, values: Sequence[float], ends: Sequence[float], levels: Sequence[Level]) -> None:
    """Levels that would squeeze the values together are only named, with their accuracy."""
    values = values or [level.accuracy for level in levels]
    room = max(max(values) - min(values), _LEAST_ROOM)
    near = [each for each in levels if min(values) - room <= each.accuracy <= max(values) + room]
    for each in levels:
        line = {"color": each.colour, "linestyle": each.style, "linewidth": each.width}
        if each in near:
            axes.axhline(each.accuracy, label=each.name, **line)
        else:
            axes.plot([], [], label=f"{each.name}: {each.accuracy:.1f}%", **line)
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(*limits([*values, *(each.accuracy for each in near)], ends, 0, 100))


def _against_cost(
    findings: Findings,
    series: dict[str, list[tuple[float, float, int]]],
    label: str,
    narrow: bool,
    *,
    cheap_is_left: bool,
) -> bytes:
    """series: {family: [(cost, accuracy in %, size)]}."""
    table = findings.table
    figure, axes = _begin(narrow)
    everything = [(x, y) for places in series.values() for x, y, _ in places]
    best = frontier(everything, cheap_is_left=cheap_is_left)
    if len(best) > 1:
        axes.plot(*zip(*best, strict=True), color=_SOFT, linestyle="--", linewidth=1.2, zorder=1)
    for family, places in series.items():
        colour, marker = _style(family, table)
        x, y, sizes = zip(*places, strict=True)
        axes.plot(x, y, label=title_of(family), color=colour, marker=marker, linewidth=1.4, markersize=6)
        for place in sorted({0, len(places) - 1}):
            axes.annotate(
                _count(sizes[place]), (x[place], y[place]), xytext=(6, -11), textcoords="offset points",
                fontsize=8, color=colour,
            )  # fmt: skip
    axes.set_xscale("log")
    costs = [x for x, _ in everything]
    axes.set_xlim(min(costs) / 1.6, max(costs) * 2.2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label.replace("; ", ";\n") if narrow else label)
    accuracy_axis(axes, [y for _, y in everything], [], _levels(table))
    return _finish(figure, axes, narrow)


def _style(family: str, table: Table) -> tuple[str, str]:
    """(colour, marker)"""
    if family in _STYLES:
        return _STYLES[family]
    unnamed = [own for own in table.families if own not in _STYLES]
    return _OTHERS[unnamed.index(family) % len(_OTHERS)]


def _series(
    axes: Any, table: Table, family: str, sizes: Sequence[int], known: Sequence[Estimate], *, joined: bool
) -> None:
    """Means with error bars, where they have intervals."""
    below = [0.0 if estimate.low is None else 100 * (estimate.mean - estimate.low) for estimate in known]
    above = [0.0 if estimate.high is None else 100 * (estimate.high - estimate.mean) for estimate in known]
    colour, marker = _style(family, table)
    shift = _shift(family, table)
    axes.errorbar(
        [size * shift for size in sizes],
        [100 * estimate.mean for estimate in known],
        yerr=[below, above],
        color=colour,
        marker=marker,
        markersize=6,
        linestyle="-" if joined else "none",
        linewidth=1.6,
        elinewidth=1.2,
        capsize=3,
        label=title_of(family),
    )


def _ends(known: Sequence[Estimate]) -> list[float]:
    return [100 * end for estimate in known for end in (estimate.low, estimate.high) if end is not None]


def _shift(family: str, table: Table) -> float:
    place = table.families.index(family) - (len(table.families) - 1) / 2
    return max(table.sizes[-1] / table.sizes[0], 2.0) ** (_SPREAD * place)


def _begin(narrow: bool) -> tuple[Any, Any]:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=_NARROW if narrow else _WIDE, layout="constrained")
        return figure, axes


def _finish(figure: Any, axes: Any, narrow: bool) -> bytes:
    """The legend stands outside of the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    place = "outside lower center" if narrow else "outside right upper"
    figure.legend(handles, labels, loc=place, fontsize=9.5, frameon=False)
    content = png_of(figure)
    plt.close(figure)
    return content


def _size_axis(axes: Any, sizes: Sequence[int], narrow: bool) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("training examples (log scale)")
    axes.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
    # every size has its tick unless they are too close together to be read
    least = (sizes[-1] / sizes[0]) ** (0.12 if narrow else 0.06)
    if len(sizes) <= 1 or min(b / a for a, b in itertools.pairwise(sizes)) > least:
        axes.set_xticks(sizes)
    else:
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _count(value: float) -> str:
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"
