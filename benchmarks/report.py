"""What a run leaves for reading: plots, and one HTML page that has everything in it."""

from pathlib import Path
from typing import Any

from penstock.benchmarks.against import Comparison
from penstock.benchmarks.machine import busy_line
from penstock.benchmarks.table import cells, columns, peers_of
from penstock.engine.files import write_committed
from penstock.engine.page import Block, Bullets, Heading, Headline, Paragraph, Picture, TableBlock, to_html
from penstock.engine.plot_style import STYLE, png_of

COLOURS = ("#0b6e99", "#d9822b", "#6b8e23", "#8e44ad", "#8a949c", "#c0392b", "#16a085")


def write(
    out: Path, suite: str, machine: dict[str, Any], rows: list[dict[str, Any]], compared: list[Comparison]
) -> Path:
    """OUT/report.html, and its plots as OUT/ratio.png and OUT/share.png; returns the page's path."""
    blocks: list[Block] = [Paragraph(about(machine))]
    busy = [row["case"] for row in rows if row.get("busy_line")]
    if line := busy_line(machine.get("busy_before")):
        blocks.append(Headline([f"Before the run: {line}."]))
    if busy:
        blocks.append(Headline([f"Others kept the machine busy during {len(busy)} of {len(rows)} cases, marked !."]))
    peers = peers_of(rows)
    table = [
        ["! " + line[0] if row.get("busy_line") else line[0], *line[1:]] for row in rows for line in [cells(row, peers)]
    ]
    blocks += [Heading("Times"), TableBlock(columns(peers), table)]
    blocks.append(
        Paragraph(
            "Medians over the rounds, in each of which every contestant works once. Ratio: the fastest peer's time "
            "over ours within a round, with quartiles. Spread: ours between quartiles. Of peak: of what the machine's "
            "multipliers or its memory reached in the same rounds."
        )
    )
    missing = {f"{name}: {why}" for row in rows for name, why in row["missing"].items()}
    if missing:
        blocks.append(Bullets([f"left out: {each}" for each in sorted(missing)]))
    if any(row["ratio"] for row in rows):
        picture = ratio_plot(rows, [peer for peer in peers if any(peer in row["ratio"] for row in rows)])
        write_committed(out / "ratio.png", picture)
        blocks += [
            Heading("Beside the peers"),
            Picture(picture, "Peers' time over ours, quartiles; right of 1 we win."),
        ]
    if any("share" in row for row in rows):
        picture = share_plot([row for row in rows if "share" in row])
        write_committed(out / "share.png", picture)
        blocks += [Heading("Of the machine's peak"), Picture(picture, "Share of the peak probed in the same rounds.")]
    if compared:
        blocks += [Heading("Against the earlier run"), TableBlock(*against_table(compared))]
    page = out / "report.html"
    write_committed(page, to_html(f"penstock bench {suite}", blocks))
    return page


def about(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, threads: {machine['threads']}, {machine['isa']}; load "
        f"{machine['load'][0]:.2f}; python {machine['python']}, {versions}; commit {machine['commit']}."
    )


def against_table(compared: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [one.case, f"{one.ratio:.3f}", f"{one.low:.3f} to {one.high:.3f}", one.verdict, one.why] for one in compared
    ]
    return ["case", "new / old", "95%", "verdict", "how"], rows


def ratio_plot(rows: list[dict[str, Any]], peers: list[str]) -> bytes:
    shown = [row for row in rows if row["ratio"]]
    figure, axes = _axes(len(shown))
    for number, peer in enumerate(peers):
        places = [place for place, row in enumerate(shown) if peer in row["ratio"]]
        lows, middles, highs = zip(*(shown[place]["ratio"][peer] for place in places), strict=True)
        around = [
            [middle - low for low, middle in zip(lows, middles, strict=True)],
            [high - middle for middle, high in zip(middles, highs, strict=True)],
        ]
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(middles, places, xerr=around, fmt="o", color=colour, label=peer, capsize=3)
    axes.axvline(1, color="#1f2933", linewidth=1)
    if max(quartiles[1] for row in shown for quartiles in row["ratio"].values()) > 8:
        axes.set_xscale("log")
    _name(axes, shown, "time of the peer / ours")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return png_of(figure)


def share_plot(rows: list[dict[str, Any]]) -> bytes:
    figure, axes = _axes(len(rows))
    axes.barh(range(len(rows)), [100 * row["share"] for row in rows], color=COLOURS[0], height=0.6)
    _name(axes, rows, "% of the peak")
    return png_of(figure)


def _axes(count: int) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.4 + 0.28 * count), layout="constrained")
        return figure, figure.add_subplot()


def _name(axes: Any, rows: list[dict[str, Any]], label: str) -> None:
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(label)
