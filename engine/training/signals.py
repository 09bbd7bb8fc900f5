"""SIGTERM and SIGINT: finish the step and checkpoint; a second one ends the process at once."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType

from penstock.engine.errors import PenstockError


class Interrupted(PenstockError):
    """A signal stopped the run after a checkpoint; the same command resumes from there."""

    def __init__(self, signum: int | None, run: Path, step: int) -> None:
        # torchrun may tell another process than this one
        signum = signum or signal.SIGTERM
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; the same command resumes from {run / 'last'}"
        )
        self.exit_code = 128 + signum


class StopSignal:
    """While open, remembers the first signal in `received`; in threads other than the main one it hears nothing."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + signum)
        self.received = signum
