"""SIGTERM, SIGINT and SIGHUP: finish the step and checkpoint; a second one ends the process at once.

A signal is never lost: a step is finished first, an evaluation is left at once (it begins again when the run goes on),
and one that comes when all is done still ends the command, which then resumes to its result.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

from penstock.engine.errors import NonFiniteError, PenstockError
from penstock.engine.training.distributed import Stopped, World

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ONE_REQUEST = 0.5  # seconds in which several are one: of a terminal that closes, of torchrun that passes one on


class Interrupted(PenstockError):
    """A signal stopped the run after a checkpoint; the same command resumes from there."""

    def __init__(self, signum: int | None, run: Path, step: int) -> None:
        self._made_of = signum, run, step
        # torchrun may tell another process than this one
        signum = signum or signal.SIGTERM
        where = f" after step {step}" if step else ""
        super().__init__(
            f"stopped by {signal.Signals(signum).name}{where}; the same command resumes from {run / 'last'}"
        )
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple:
        return type(self), self._made_of


class StopSignal:
    """While open, remembers the first signal in `received`; in threads other than the main one it hears nothing.

    Signals that this process was told to ignore (nohup) stay ignored, those that C code handles stay with it. When it
    is left with a signal that nothing was done about, it raises Interrupted, unless an error that the user has to read
    is on its way.

    Args:
        run: the run's directory, for messages.

    Attributes:
        step: steps that are done, for messages; whoever trains keeps it.
    """

    def __init__(self, run: Path = Path()) -> None:
        self.received: int | None = None
        self.step = 0
        self._run = run
        self._since = 0.0
        self._at_once = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                # None: set by a program that Python is embedded in, which alone could put it back
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        # from here on a signal does what it did before; what came until here is not forgotten
        named = isinstance(error, PenstockError) and not isinstance(error, NonFiniteError)
        if self.received is not None and not named:
            raise self.interrupted() from error

    def interrupted(self) -> Interrupted:
        return Interrupted(self.received, self._run, self.step)

    def watch(self, items: Iterable[T], world: World) -> Iterator[T]:
        """Passes on what an evaluation goes through, and stops it when a signal has come: with one process at once, in
        the middle of a batch, with several before the next one, in all of them.

        Raises:
            Stopped: a signal has come.
        """
        if world.size > 1:
            for item in items:
                if world.any(self.received is not None):
                    raise Stopped
                yield item
            return
        with self._leaving_at_once():
            yield from items

    @contextlib.contextmanager
    def _leaving_at_once(self) -> Iterator[None]:
        self._at_once = True
        try:
            if self.received is not None:
                raise Stopped
            yield
        finally:
            self._at_once = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._since > _ONE_REQUEST:
                os._exit(128 + signum)
            return
        self.received, self._since = signum, time.monotonic()
        if self._at_once:
            raise Stopped
