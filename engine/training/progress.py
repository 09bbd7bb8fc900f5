"""What a run shows while it runs, on stderr: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

Mode = Literal["auto", "live", "plain", "none"]


class Display(Protocol):
    """Receives the records that also go to metrics.jsonl."""

    def step(self, record: Mapping[str, Any], done: float) -> None:
        """A training record; `done` is the finished share of the run, 0 to 1."""

    def evaluation(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_display(mode: Mode) -> Display:
    if mode == "auto":
        mode = "live" if sys.stderr.isatty() else "plain"
    return {"live": LiveDisplay, "plain": PlainDisplay, "none": NoDisplay}[mode]()


class NoDisplay:
    def step(self, record: Mapping[str, Any], done: float) -> None: ...

    def evaluation(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class PlainDisplay:
    """A line at most every `interval` seconds, and one per evaluation."""

    def __init__(self, interval: float = 10.0) -> None:
        self._interval = interval
        self._remaining = _Remaining()
        self._shown = time.monotonic()

    def step(self, record: Mapping[str, Any], done: float) -> None:
        remaining = self._remaining(done)
        if time.monotonic() - self._shown >= self._interval:
            self._shown = time.monotonic()
            print(f"{done:4.0%}  {describe_step(record)}  {remaining} left", file=sys.stderr, flush=True)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        print(describe_evaluation(record), file=sys.stderr, flush=True)

    def close(self) -> None: ...


class LiveDisplay:
    """One bar that redraws itself, and a lasting line per evaluation."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._remaining = _Remaining()
        self._progress = Progress(
            BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
        )
        self._task = self._progress.add_task("", total=1.0)
        self._progress.start()

    def step(self, record: Mapping[str, Any], done: float) -> None:
        text = f"{describe_step(record)}  {self._remaining(done)} left"
        self._progress.update(self._task, completed=done, description=text)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        self._progress.console.print(describe_evaluation(record), highlight=False)

    def close(self) -> None:
        self._progress.stop()


class _Remaining:
    """The time left, from the share done since this process began."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._first: float | None = None

    def __call__(self, done: float) -> str:
        if self._first is None:
            self._start, self._first = time.monotonic(), done
        gained = done - self._first
        if gained <= 0:
            return "-:--"
        seconds = round((time.monotonic() - self._start) * (1.0 - done) / gained)
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


def describe_step(record: Mapping[str, Any]) -> str:
    parts = [
        f"step {record['step']}",
        f"epoch {record['epoch']}",
        f"loss {record['loss']:z.4f}",
        f"lr {record['learning_rate']:.2e}",
        f"{record['tokens_per_second']:,.0f} tokens/s",
        f"{record['examples_per_second']:,.0f} examples/s",
        f"data wait {record['data_wait']:.1%}",
    ]
    if record.get("mfu") is not None:
        parts.append(f"MFU {record['mfu']:.1%}")
    return "  ".join(parts + list(_shares(record.get("time", {}))))


def _shares(seconds: Mapping[str, float]) -> Iterator[str]:
    """The phases that took a hundredth or more of the time since the last line; data has a word of its own already."""
    total = sum(seconds.values())
    for phase, spent in seconds.items():
        if phase != "data" and spent >= 0.01 * total > 0:
            yield f"{phase} {spent / total:.0%}"


def describe_evaluation(record: Mapping[str, Any]) -> str:
    best = "  best" if record.get("best") else ""
    caveats = "".join(f"  {part}" for part in _caveats(record))
    if "num_told" in record:
        return (
            f"{record['split']} at step {record['step']}: loss {record['loss']:z.4f}  "
            f"accuracy {record['accuracy']:.4f}  ({record['num_told']:,} tokens told){best}"
        )
    if "hamming_loss" in record:
        return (
            f"{record['split']} at step {record['step']}: micro-F1 {record['micro_f1']:.4f}  "
            f"macro-F1 {record['macro_f1']:.4f}  all right {record['accuracy']:.4f}  loss {record['loss']:z.4f}  "
            f"({record['num_examples']:,} examples){caveats}{best}"
        )
    return (
        f"{record['split']} at step {record['step']}: accuracy {record['accuracy']:.4f}  "
        f"macro-F1 {record['macro_f1']:.4f}  loss {record['loss']:z.4f}  ({record['num_examples']:,} examples)"
        f"{caveats}{best}"
    )


def _caveats(record: Mapping[str, Any]) -> Iterator[str]:
    if record.get("majority_share") is not None:
        yield f"majority {record['majority_share']:.4f}"
    if record.get("num_never_predicted"):
        yield f"{record['num_never_predicted']:,} of {record['num_classes']:,} classes never predicted"
