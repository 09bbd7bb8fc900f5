"""Where a run's time goes, and on a GPU where the device's goes, without ever waiting for it."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch

from penstock.engine.training.state import StateError

# "communication" is waiting for other processes: what backward does not hide of the gradients' sum, and a step's
# totals. "checkpoint" is training that stands still for one. "other" is all the rest, the model's building among it.
PHASES = ("data", "forward", "backward", "optimizer", "communication", "checkpoint", "evaluation", "other")
_ON_THE_DEVICE = ("forward", "backward", "optimizer", "communication")


class Timers:
    """A stopwatch that is in one phase at any time, so that the phases add up to all the time that passes.

    Example:
        >>> from penstock.engine.training.timers import Timers
        >>> timers = Timers()
        >>> with timers.during("evaluation"):
        ...     pass
        >>> timers.read()["evaluation"] > 0
        True

    Args:
        clock: seconds from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._lap = dict.fromkeys(PHASES, 0.0)  # as of the last `lap`
        self._phase, self._since = "other", clock()

    def to(self, phase: str, at: float | None = None) -> str:
        """Begins a phase and returns the one that it ends.

        Args:
            at: when it began, by the clock, if it was before now.
        """
        now = self.clock() if at is None else max(at, self._since)
        self._add(self._phase, now - self._since)
        before, self._phase, self._since = self._phase, phase, now
        return before

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A phase inside of another one, which then goes on."""
        before = self.to(phase)
        try:
            yield
        finally:
            self.to(before)

    def synced(self) -> None:
        """The host has just waited for the device: all that was asked of it is done."""

    def read(self) -> dict[str, float]:
        """Seconds of each phase so far."""
        self.to(self._phase)
        return dict(self._seconds)

    def lap(self) -> dict[str, float]:
        """Seconds of each phase since the last time that this was asked, or since the beginning."""
        now, before = self.read(), self._lap
        self._lap = now
        return {phase: now[phase] - before[phase] for phase in PHASES}

    def go_on_from(self, seconds: Mapping[str, float]) -> None:
        """Adds what an earlier process, whose run goes on here, has spent."""
        for phase, spent in seconds.items():
            self._seconds[phase] += spent
            self._lap[phase] += spent

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] += seconds


class _Event(Protocol):
    def record(self) -> None: ...

    def elapsed_time(self, end: Any) -> float: ...


def _cuda_event() -> _Event:
    return torch.cuda.Event(enable_timing=True)


class DeviceTimers(Timers):
    """Those of a GPU, which works behind the host: the host's time in a step is divided as the device's was.

    Events in the device's queue mark the phases. They are read only when the host has waited for the device anyway.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, event: Callable[[], _Event] = _cuda_event
    ) -> None:
        self._event = event
        self._marks: list[tuple[str, _Event]] = []
        self._pending: dict[str, float] = {}  # the host's, not divided yet
        super().__init__(clock)

    def to(self, phase: str, at: float | None = None) -> str:
        self._mark(phase)
        return super().to(phase)

    def synced(self) -> None:
        # the mark of the present phase is behind the device, and begins the next part
        super().to(self._phase)
        spent: dict[str, float] = {}
        for (phase, begins), (_, ends) in zip(self._marks, self._marks[1:], strict=False):
            if phase in _ON_THE_DEVICE:
                spent[phase] = spent.get(phase, 0.0) + begins.elapsed_time(ends)
        host, device = sum(self._pending.values()), sum(spent.values())
        if device > 0:
            self._pending = {phase: host * share / device for phase, share in spent.items()}
        self._settle()
        self._marks = self._marks[-1:]

    def read(self) -> dict[str, float]:
        super().to(self._phase)
        self._settle()
        return dict(self._seconds)

    def _mark(self, phase: str) -> None:
        event = self._event()
        event.record()
        self._marks.append((phase, event))

    def _add(self, phase: str, seconds: float) -> None:
        to = self._pending if phase in _ON_THE_DEVICE else self._seconds
        to[phase] = to.get(phase, 0.0) + seconds

    def _settle(self) -> None:
        for phase, seconds in self._pending.items():
            self._seconds[phase] += seconds
        self._pending = {}


def timers_for(device: torch.device) -> Timers:
    return DeviceTimers() if device.type == "cuda" else Timers()


def read_times(found: Any) -> dict[str, float]:
    """Seconds by phase as a checkpoint has them; those of an earlier penstock's has none.

    Raises:
        StateError: they are none.
    """
    if found is None:
        return {}
    for phase, seconds in found.items():
        if phase not in PHASES or type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise StateError(f"its time in {phase!r:.60} is {seconds!r:.60}")
    return dict(found)
