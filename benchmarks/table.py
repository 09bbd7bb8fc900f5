"""The table of a run: live in a terminal, a line for each case elsewhere; the same cells go to the page."""

import sys
from typing import Any

from penstock.benchmarks.suite import OURS


def seconds_text(seconds: float) -> str:
    """Three digits with their unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds / size < 999.5 else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def peers_of(rows: list[dict[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys([*row["seconds"], *row.get("missing", {})])
    return [name for name in names if name != OURS]


def columns(peers: list[str]) -> list[str]:
    return ["case", "shape", "dtype", OURS, "ratio", "spread", "of peak", *peers]


def cells(row: dict[str, Any], peers: list[str]) -> list[str]:
    """Medians, and 99th percentiles if there are any; `ratio` is of the fastest peer over ours with its quartiles,
    `spread` ours between quartiles.
    """
    low, ours, high = row["quartiles"][OURS]
    theirs = [_waited(row, peer) if peer in row["seconds"] else "-" if peer in row["missing"] else "" for peer in peers]
    ratio = ""
    others = [quartiles for name, quartiles in row["ratio"].items() if not name.startswith(OURS)]
    if others:
        lower, middle, upper = min(others, key=lambda quartiles: quartiles[1])
        ratio = f"{middle:.2f} ({lower:.2f}-{upper:.2f})"
    shape = " ".join(f"{letter}{size}" for letter, size in row["shape"].items())
    share = f"{100 * row['share']:.0f}%" if "share" in row else ""
    return [row["what"], shape, row["dtype"], _waited(row, OURS), ratio, f"{(high - low) / ours:.0%}", share, *theirs]


def _waited(row: dict[str, Any], name: str) -> str:
    tail = f" (p99 {seconds_text(row['p99'][name])})" if "p99" in row else ""
    return seconds_text(row["quartiles"][name][1]) + tail


def line(row: dict[str, Any]) -> str:
    """A case in one line, for where nothing live can be shown."""
    peers = [name for name in row["seconds"] if name != OURS]
    parts = [
        f"{heading} {cell}" for heading, cell in zip(columns(peers)[3:], cells(row, peers)[3:], strict=True) if cell
    ]
    text = f"{row['case']}: {', '.join(parts)}"
    if row["missing"]:
        text += "; left out: " + ", ".join(f"{name} ({why})" for name, why in row["missing"].items())
    return text + (f"; busy, others use {row['busy']:.1f} cores" if row.get("busy_line") else "")


class Shown:
    """Shows each row as it comes. A context manager."""

    def __init__(self, title: str) -> None:
        self._title, self._rows, self._live = title, [], None  # type: tuple[str, list[dict[str, Any]], Any]
        self._now = ""

    def __enter__(self) -> "Shown":
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(self._table(), auto_refresh=False, vertical_overflow="visible")
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._now = ""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.__exit__(None, None, None)

    def now(self, name: str) -> None:
        self._now = name
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if self._live is None:
            print(line(row), flush=True)
        else:
            self.now("")

    def _table(self) -> Any:
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        peers = peers_of(self._rows)
        caption = f"timing {escape(self._now)}" if self._now else None
        table = Table(title=self._title, title_justify="left", box=box.SIMPLE_HEAD, caption=caption)
        for number, heading in enumerate(columns(peers)):
            table.add_column(escape(heading), justify="left" if number < 3 else "right", overflow="fold")
        for row in self._rows:
            marked = ["! " + row["what"] if row.get("busy_line") else row["what"], *cells(row, peers)[1:]]
            table.add_row(*map(escape, marked))
        return table
