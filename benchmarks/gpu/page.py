"""results.json as one page: the targets, each part's tables, plots, and what did not run and why."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from penstock.benchmarks.gpu.context import reason
from penstock.benchmarks.gpu.rows import Row, brief, label, number
from penstock.benchmarks.gpu.targets import fastest, outcomes, verdict, void
from penstock.engine.page import Block, Bullets, Figure, Heading, Headline, Paragraph, TableBlock, to_html

SMOKE = "Smoke run, no GPU: every line of the benchmark was executed at tiny sizes; no figure here says anything."
DATA = "results.json"
_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a949c", "#000000"]


def write(data: dict[str, Any], folder: Path) -> None:
    """Writes report.html into the folder."""
    with tempfile.TemporaryDirectory() as plots:
        blocks = list(contents(data, Path(plots)))
        html = to_html("penstock on a GPU", blocks, Path(plots))
    (folder / "report.html").write_text(html)


def contents(data: dict[str, Any], plots: Path) -> list[Block]:
    """The page's blocks; pictures go into the folder `plots`."""
    headlines = [SMOKE] if data["smoke"] else []
    headlines += [f"No figure of {kernel} counts: {why}" for kernel, why in void(data["parts"]).items()]
    blocks: list[Block] = [Headline(headlines)] if headlines else []
    machine = {key: value for key, value in data["machine"].items() if value is not None}
    blocks += [Paragraph(f"{data['started']}. " + ", ".join(f"{key} {value}" for key, value in machine.items()))]
    blocks += [Heading("What was to be reached"), _targets(data["parts"])]
    for name, part in data["parts"].items():
        blocks.append(Heading(name))
        note = f"{part['status']}, {part['seconds']:.0f} s" + (f": {part['why']}" if part["why"] else "")
        blocks.append(Paragraph(note))
        try:
            blocks += _SECTIONS.get(name, _others)(part["rows"], plots)
        except Exception as failure:  # one part's rows must not cost the others' their page
            blocks.append(Paragraph(f"Not shown: {reason(failure)}; {DATA} has its rows."))
        missing = sorted({f"{label(row)}: {row['why']}" for row in part["rows"] if row.get("why")})
        blocks += [Bullets(missing)] if missing else []
    return blocks


def _targets(parts: dict[str, Any]) -> TableBlock:
    rows = [[outcome.what, *map(number, verdict(outcome).values())] for outcome in outcomes(parts)]
    return TableBlock(["", "target", "measured", ""], rows)


def _table(rows: list[Row], columns: dict[str, Callable[[Row], Any]]) -> list[Block]:
    if not rows:
        return []
    return [TableBlock(list(columns), [[number(value(row)) for value in columns.values()] for row in rows])]


def _fields(*names: str) -> dict[str, Callable[[Row], Any]]:
    return {name: (lambda row, name=name: row.get(name)) for name in names}


def _of(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row.get("kind") == kind]


def _flat(rows: list[Row]) -> list[Row]:
    """One row for each contestant that has a time."""
    return [
        {**{key: value for key, value in row.items() if key != "contestants"}, "contestant": name, **figures}
        for row in rows
        for name, figures in row.get("contestants", {}).items()
        if "ms" in figures
    ]


def _unfit(rows: list[Row]) -> list[Block]:
    """Why contestants have no time."""
    lines = {
        f"{name}: {figures['why']}"
        for row in rows
        for name, figures in row.get("contestants", {}).items()
        if "why" in figures
    }
    return [Bullets(sorted(lines))] if lines else []


def _kernels(rows: list[Row]) -> list[Block]:
    blocks: list[Block] = []
    for row in rows:
        if "kernels" in row:
            blocks.append(Paragraph(f"Longest kernels: {label(row)}"))
            blocks += _table(row["kernels"], _fields("kernel", "count", "us"))
    return blocks


def _tests(rows: list[Row], plots: Path) -> list[Block]:
    outcomes_ = _fields("passed", "skipped", "failed", "hung", "aborted")
    blocks = [*_table(_of(rows, "tests"), outcomes_), *_table(_of(rows, "kernel"), _fields("kernel") | outcomes_)]
    bad = [row for row in _of(rows, "test") if row["outcome"] not in ("passed", "skipped")]
    return blocks + ([Bullets([f"{row['test']} {row['outcome']}: {row['message']}" for row in bad])] if bad else [])


def _machine(rows: list[Row], plots: Path) -> list[Block]:
    return _table(
        [row for row in rows if "rate" in row],
        {
            "what": lambda row: "copy, bytes read and written" if row["kind"] == "copy" else f"matmul {row['dtype']}",
            "at most": lambda row: f"{row['rate'] / 1e12:.2f} {'TB/s' if row['kind'] == 'copy' else 'TFLOP/s'}",
        },
    )


def _lstm(rows: list[Row], plots: Path) -> list[Block]:
    cells = [row for row in _of(rows, "lstm") if "contestants" in row]
    columns = _fields("contestant", "hidden", "batch", "phase", "ms", "low_ms", "high_ms", "us_per_step", "of_floor")
    blocks = _table(_flat(cells), columns | _fields("host_ms", "peak_mib")) + _unfit(cells)
    training = [row for row in cells if row["phase"] == "training"]
    if training:
        labels = [f"H={row['hidden']}\nB={row['batch']}" for row in training]
        series = {
            form: [_ratio(row["contestants"], f"cudnn {form}", "penstock") for row in training]
            for form in ("packed", "padded")
        }
        name = f"lstm-{training[0]['hidden']}-{training[0]['batch']}.png"
        _bars(plots / name, labels, series, "times faster, forward and backward", one=True)
        caption = "The fastest of ours over the better of cuDNN's types, packed and padded, in training."
        blocks.append(Figure(name, caption, DATA))
    graphs = _of(rows, "lstm graph")
    if graphs:
        blocks.append(Paragraph("Inference replayed from a CUDA graph, without the host's time:"))
        blocks += _table(_flat(graphs), _fields("contestant", "hidden", "batch", "ms", "us_per_step")) + _unfit(graphs)
    return blocks + _kernels(_of(rows, "lstm kernels"))


def _attention(rows: list[Row], plots: Path) -> list[Block]:
    columns = _fields(
        "contestant", "mean", "dropout", "phase", "ms", "low_ms", "high_ms", "tflops", "of_floor", "peak_mib"
    )
    blocks = _table(_flat(rows), columns) + _unfit(rows)
    training = [row for row in rows if row.get("phase") == "training"]
    if training:
        labels = [f"mean {row['mean']}\ndropout {row['dropout']}" for row in training]
        who = list(dict.fromkeys(name for row in training for name in row["contestants"]))
        series = {name: [row["contestants"].get(name, {}).get("ms") for row in training] for name in who}
        name = f"{training[0]['kind'].replace(' ', '-')}.png"
        _bars(plots / name, labels, series, "ms, forward and backward")
        blocks.append(Figure(name, "One training step of attention alone; shorter is better.", DATA))
    return blocks


def _rowwise(rows: list[Row], plots: Path) -> list[Block]:
    columns = _fields("operation", "contestant", "phase", "ms", "low_ms", "high_ms", "of_floor", "peak_mib")
    return _table(_flat(rows), columns) + _unfit(rows)


def _training(rows: list[Row], plots: Path) -> list[Block]:
    done = [row for row in rows if "tokens_per_second" in row]
    columns = _fields(
        "contestant", "model", "tokens_per_second", "examples_per_second", "of_floor", "data_wait", "steps"
    )
    blocks = _table(done, columns | _fields("seconds", "peak_mib", "first_loss"))
    if done:
        name = f"{done[0]['model']}.png"
        series = {"tokens/s": [row["tokens_per_second"] for row in done]}
        _bars(plots / name, [row["contestant"].replace(" ", "\n", 1) for row in done], series, "real tokens a second")
        blocks.append(Figure(name, f"{done[0]['model']}: whole training steps; longer is better.", DATA))
    return blocks


def _probes(rows: list[Row], plots: Path) -> list[Block]:
    cudnn = [row for row in _of(rows, "cudnn") if "contestants" in row]
    blocks: list[Block] = []
    if cudnn:
        columns = _fields("form", "directions", "hidden", "batch")
        for name in cudnn[0]["contestants"]:
            columns[name] = lambda row, name=name: row["contestants"][name].get("us_per_step")
        blocks += [Paragraph("cuDNN, microseconds a step:"), *_table(cudnn, columns), *_unfit(cudnn)]
    blocks += _kernels(_of(rows, "cudnn kernels"))
    for kind in ("occupancy", "cluster_exchange", "grid_exchange", "matmul_rate"):
        found = [row for row in _of(rows, kind) if "why" not in row]
        if found:
            names = [key for key in found[0] if key not in ("kind", "errors")]
            blocks += [Paragraph(f"{kind}:"), *_table(found, _fields(*names))]
    return blocks + _attention(_of(rows, "attention rate"), plots)


def _peers(rows: list[Row], plots: Path) -> list[Block]:
    return _table(_flat(rows), _fields("contestant", "hidden", "batch", "phase", "ms", "us_per_step")) + _unfit(rows)


def _others(rows: list[Row], plots: Path) -> list[Block]:
    return [Bullets([brief(row) for row in rows])] if rows else []


_SECTIONS = {
    "quick": _tests,
    "tests": _tests,
    "machine": _machine,
    "probes": _probes,
    "lstm": _lstm,
    "lstm-more": _lstm,
    "attention": _attention,
    "rowwise": _rowwise,
    "train-lstm": _training,
    "train-encoder": _training,
    "flashrnn": _peers,
    "haste": _peers,
}


def _ratio(contestants: dict[str, Row], peer: str, ours: str) -> float | None:
    theirs, mine = fastest(contestants, peer), fastest(contestants, ours)
    return None if theirs is None or mine is None else theirs / mine


def _bars(path: Path, labels: list[str], series: dict[str, list[Any]], axis: str, *, one: bool = False) -> None:
    figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
    width = 0.8 / max(1, len(series))
    for place, (name, values) in enumerate(series.items()):
        at = [row + width * (place - (len(series) - 1) / 2) for row in range(len(values))]
        colour = _COLOURS[place % len(_COLOURS)]
        axes.bar(at, [value or 0.0 for value in values], width=width, label=name, color=colour)
    if one:
        axes.axhline(1, color="#3c4750", linewidth=0.8)
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylabel(axis)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
