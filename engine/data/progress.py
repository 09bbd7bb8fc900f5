"""How far a long read has come: a live bar on a terminal, a line now and then elsewhere; on stderr."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_SECONDS = 15.0


def print_line(line: str) -> None:
    """Says something on stderr."""
    print(line, file=sys.stderr, flush=True)


class RowProgress:
    """Counts rows; use as a context manager.

    Args:
        what: the phase, a word or two.
        total: rows to come, None when that is not known.
        shown: False to show nothing.
    """

    def __init__(self, what: str, total: int | None = None, shown: bool = True) -> None:
        self._what = what
        self._total = total
        self._shown = shown
        self._rows = 0
        self._started = self._last = 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> "RowProgress":
        self._started = self._last = time.monotonic()
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, figures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and kind is None and self._rows:
            print(f"{self._what}: {self._figures()}, done", file=sys.stderr, flush=True)

    def advance(self, rows: int) -> None:
        self._rows += rows
        if self._bar is not None:
            self._bar.update(self._task, advance=rows, figures=self._figures())
            return
        now = time.monotonic()
        if self._shown and now - self._last >= PLAIN_SECONDS:
            self._last = now
            print(f"{self._what}: {self._figures()}{self._remaining()}", file=sys.stderr, flush=True)

    def _rate(self) -> float:
        return self._rows / max(time.monotonic() - self._started, 1e-9)

    def _figures(self) -> str:
        total = f" of {self._total:,}" if self._total is not None else ""
        return f"{self._rows:,}{total} rows, {self._rate():,.0f} rows/s"

    def _remaining(self) -> str:
        if self._total is None or not self._rows:
            return ""
        seconds = int((self._total - self._rows) / self._rate())
        return f", {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} to go"
