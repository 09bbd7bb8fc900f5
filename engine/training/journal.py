"""Where a run's records go: metrics.jsonl, the trackers, and the display on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.engine.training.progress import Mode, open_display
from penstock.engine.training.run_directory import METRICS_NAME, MetricsLog
from penstock.engine.training.settings import Settings
from penstock.engine.training.trackers import open_trackers


class Journal:
    """Passes the records of a run on. Of several processes, the main one writes; the others' go nowhere.

    Args:
        run: the run's directory.
        progress: what the terminal shows.
        step: the one that the run goes on from.
        offset: bytes of metrics.jsonl that stay.

    Attributes:
        log: metrics.jsonl; None but in the main process.

    Raises:
        ConfigError, DiskError: see `open_trackers` and `MetricsLog`.
    """

    def __init__(self, settings: Settings, run: Path, progress: Mode, *, step: int, offset: int, is_main: bool) -> None:
        self.log = MetricsLog(run / METRICS_NAME, offset) if is_main else None
        self._display = open_display(progress if is_main else "none")
        self._trackers = open_trackers(settings, run, step) if is_main else []

    def write(self, record: Mapping[str, Any]) -> None:
        """A record of any kind, which is not displayed."""
        if self.log:
            self.log.write(record)
        for track, _ in self._trackers:
            track(record)

    def step(self, record: Mapping[str, Any], done: float) -> None:
        """A record of training; `done` is the finished share of the run, 0 to 1."""
        self.write(record)
        self._display.step(record, done)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        self.write(record)
        self._display.evaluation(record)

    def close(self) -> None:
        self._display.close()
        if self.log:
            self.log.close()
        for _, close in self._trackers:
            close()
