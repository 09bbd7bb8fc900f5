"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it was writing is taken away, and one line says so."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

_ONE_REQUEST = 0.5  # seconds in which several are one: a terminal that closes, or a scheduler, may send both


class Stopped(SystemExit):
    """A signal came. Not a KeyboardInterrupt, for which typer has an exit code of its own."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raises `Stopped` in the block when such a signal comes; a second one ends the process at once.

    Signals that this process was told to ignore (nohup) stay ignored, those that C code handles stay with it; a
    command that has a way of its own to stop, as training has, takes them for as long as it needs. Forked processes end
    at once, for what is being written is not theirs.
    """
    if current_thread() is not main_thread():
        yield
        return
    process, since = os.getpid(), 0.0

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal since
        now = time.monotonic()
        if os.getpid() != process or (since and now - since > _ONE_REQUEST):
            os._exit(128 + signum)
        if not since:
            since = now
            raise Stopped(signum)

    previous: dict[signal.Signals, Any] = {}
    try:
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is signal.SIG_DFL:
                previous[signum] = signal.signal(signum, handle)
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
