"""The report's plots: accuracy, gap and cost against the number of training examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import itertools

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from penstock.engine.files import write_committed
from penstock.engine.plot_style import STYLE, png_of
from penstock.engine.study.break_even import THRESHOLD
from penstock.engine.study.curves import Curve
from penstock.engine.study.families import FAMILIES, REFERENCE
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.table import Table

# distinguishable to the colour-blind and in grey
COLOURS = {
    "majority": "#8a949c",
    "linear": "#000000",
    "bag": "#cc79a7",
    "lstm": "#0072b2",
    "lstm-embeddings": "#009e73",
    "frozen": "#e69f00",
    "encoder": "#d55e00",
}
LABELS = dict.fromkeys(COLOURS, (14, -14)) | {"lstm-embeddings": (-12, 8)}  # offsets in printer's points
_RUNS: dict[str, Any] = {"s": 26, "alpha": 0.4, "linewidths": 0}  # single runs
MARKERS = {
    "majority": "_",
    "linear": "^",
    "bag": "v",
    "lstm": "o",
    "lstm-embeddings": "s",
    "frozen": "P",
    "encoder": "D",
}
_SPREAD = 0.009  # of the width: families at the same size are drawn a little apart


def plot_accuracy(
    table: Table, curves: dict[str, Curve | str], path: Path, levels: Mapping[str, float] | None = None
) -> None:
    """Every trial as a point, means with their intervals, and the fitted curves where there are any.

    Args:
        levels: {name: accuracy} of predictions from elsewhere, which no training size belongs to.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
        for family in table.families:
            shift = _shift(family, table)
            points = table.points(family)
            style: dict[str, Any] = {"color": COLOURS[family], "marker": MARKERS[family]}
            for point in points:
                values = 100 * np.array(list(point.accuracies.values()))
                axes.scatter([point.size * shift] * len(values), values, **_RUNS, **style)
            curve = curves.get(family)
            fitted = isinstance(curve, Curve)
            _series(axes, points, [p.accuracy for p in points], family, shift, joined=not fitted)
            if isinstance(curve, Curve):
                grid = np.geomspace(points[0].size, points[-1].size, 100)
                axes.plot(grid * shift, 100 * (1 - curve.fit.error(grid)), color=COLOURS[family], linewidth=1.6)
        for place, (name, accuracy) in enumerate((levels or {}).items()):
            dashes = (0, (4, 2 + 2 * place))
            axes.axhline(100 * accuracy, color="#3c4750", linewidth=1.2, linestyle=dashes, label=name)
        axes.set_ylabel("test accuracy, %")
        _finish(axes, table.sizes)
        axes.legend(loc="lower right")
        write_committed(path, png_of(figure))
        plt.close(figure)


def plot_gap(table: Table, path: Path) -> None:
    """The encoder's accuracy minus each other family's, over the same subsets."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.0), layout="constrained")
        axes.axhline(0, color="#8a949c", linewidth=1)
        axes.axhline(100 * THRESHOLD, color="#8a949c", linewidth=1, linestyle="--")
        axes.annotate(
            f"{100 * THRESHOLD:g} point", (1, 100 * THRESHOLD), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", fontsize=9, color="#5b6770",
        )  # fmt: skip
        for family in table.families:
            points = [point for point in table.points(family) if point.gap is not None]
            if family == REFERENCE or not points:
                continue
            shift = _shift(family, table)
            for point in points:
                gaps = 100 * np.array(list(point.gaps.values()))
                axes.scatter(
                    [point.size * shift] * len(gaps), gaps, **_RUNS,
                    color=COLOURS[family], marker=MARKERS[family],
                )  # fmt: skip
            _series(axes, points, [point.gap for point in points], family, shift, joined=True)
        axes.set_ylabel("encoder's lead, points of accuracy")
        _finish(axes, table.sizes)
        axes.legend(loc="upper right")
        write_committed(path, png_of(figure))
        plt.close(figure)


def plot_cost(table: Table, path: Path) -> None:
    """Accuracy against the time that training took: one point for each trial, joined through the means of each size."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
        for family in table.families:
            means = []
            for point in table.points(family):
                trials = [trial for trial in table.trials(family, point.size) if trial.status == "done"]
                seconds = [max(trial.train_seconds, 1e-3) for trial in trials]
                accuracies = [100 * (trial.accuracy or 0.0) for trial in trials]
                style: dict[str, Any] = {"color": COLOURS[family], "marker": MARKERS[family]}
                axes.scatter(seconds, accuracies, **_RUNS, **style)
                means.append((float(np.exp(np.mean(np.log(seconds)))), float(np.mean(accuracies)), point.size))
            if not means:
                continue
            x, y, sizes = zip(*means, strict=True)
            axes.plot(x, y, label=FAMILIES[family].title, color=COLOURS[family], marker=MARKERS[family], linewidth=1.6)
            for place in {0, len(means) - 1}:
                axes.annotate(
                    _count(sizes[place]), (x[place], y[place]), xytext=LABELS[family], textcoords="offset points",
                    ha="center", fontsize=9, color=COLOURS[family],
                )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("training time, seconds (log scale); labels: training examples")
        axes.set_ylabel("test accuracy, %")
        axes.legend(loc="lower right")
        write_committed(path, png_of(figure))
        plt.close(figure)


def _series(axes: Any, points: Sequence, estimates: Sequence, family: str, shift: float, *, joined: bool) -> None:
    """Means with error bars, where they have intervals."""
    if not points:
        return
    known: list[Estimate] = list(estimates)
    below = [0.0 if estimate.low is None else 100 * (estimate.mean - estimate.low) for estimate in known]
    above = [0.0 if estimate.high is None else 100 * (estimate.high - estimate.mean) for estimate in known]
    axes.errorbar(
        [point.size * shift for point in points],
        [100 * estimate.mean for estimate in known],
        yerr=[below, above],
        color=COLOURS[family],
        marker=MARKERS[family],
        markersize=6,
        linestyle="-" if joined else "none",
        linewidth=1.6,
        elinewidth=1.2,
        capsize=3,
        label=FAMILIES[family].title,
    )


def _shift(family: str, table: Table) -> float:
    place = table.families.index(family) - (len(table.families) - 1) / 2
    return max(table.sizes[-1] / table.sizes[0], 2.0) ** (_SPREAD * place)


def _finish(axes: Any, sizes: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("training examples (log scale)")
    axes.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
    # every size has its tick unless they are too close together to be read
    apart = len(sizes) <= 1 or min(b / a for a, b in itertools.pairwise(sizes)) > (sizes[-1] / sizes[0]) ** 0.05
    if apart:
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
