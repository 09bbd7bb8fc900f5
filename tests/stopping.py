"""Training that is stopped by a signal at a certain step."""

import signal
from typing import Any

import pytest

from penstock.engine.training.step import Stepper


def stop_at(patch: pytest.MonkeyPatch, step: int, signum: int = signal.SIGTERM) -> None:
    """The signal comes as the step begins, which is still finished."""
    take_step, stop = Stepper.__call__, step

    def with_signal(self: Stepper, batches: Any, *, step: int, **rest: Any) -> Any:
        if step == stop:
            signal.raise_signal(signum)
        return take_step(self, batches, step=step, **rest)

    patch.setattr(Stepper, "__call__", with_signal)
