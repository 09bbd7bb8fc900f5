"""A signal at any moment of a run: it is obeyed, said, and the same command then comes to the same result."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from subtested import as_subtests

from penstock.engine.errors import DiskError, NonFiniteError, PenstockError
from penstock.engine.models.lstm import LSTMClassifier
from penstock.engine.study.run_trial import TrialTask, run_trial
from penstock.engine.study.trials import Trial
from penstock.engine.training import conclude, saver
from penstock.engine.training.distributed import World
from penstock.engine.training.loop import Loop
from penstock.engine.training.run_directory import RunDirectory
from penstock.engine.training.signals import SIGNALS, Interrupted, StopSignal
from penstock.engine.training.train import TrainResult, train

pytestmark = pytest.mark.usefixtures("heard_signals")

ALONE = World(0, 1, "cpu")  # type: ignore[arg-type]


def signal_in(patch: pytest.MonkeyPatch, owner: object, name: str, call: int, signum: int) -> None:
    """The signal comes in the `call`-th call of a function, before it does anything."""
    original, calls = getattr(owner, name), [0]

    def with_signal(*args, **options):
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(signum)
        return original(*args, **options)

    patch.setattr(owner, name, with_signal)


def in_evaluation(patch: pytest.MonkeyPatch, signum: int, batch: int) -> None:
    """The signal comes in the middle of a batch of the first evaluation."""
    forward, seen = LSTMClassifier.forward, [0]

    def with_signal(self, *args, **options):
        if not self.training:
            seen[0] += 1
            if seen[0] == batch:
                signal.raise_signal(signum)
        return forward(self, *args, **options)

    patch.setattr(LSTMClassifier, "forward", with_signal)


# What the signal comes in, and what is counted as a validation or as a test.
MOMENTS: dict[str, Callable[[pytest.MonkeyPatch, int], None]] = {
    "first batch of a validation": lambda patch, signum: in_evaluation(patch, signum, 1),
    "second batch of a validation": lambda patch, signum: in_evaluation(patch, signum, 2),
    "last validation": lambda patch, signum: signal_in(patch, Loop, "_evaluate", 4, signum),
    "last checkpoint": lambda patch, signum: signal_in(patch, saver, "write_checkpoint", 5, signum),
    "calibration": lambda patch, signum: signal_in(patch, conclude, "_calibrate", 1, signum),
    "export": lambda patch, signum: signal_in(patch, conclude, "export_best", 1, signum),
    "test": lambda patch, signum: signal_in(patch, conclude, "evaluate", 1, signum),
    "the record": lambda patch, signum: signal_in(patch, RunDirectory, "update", 1, signum),
}


def timeless(run: Path) -> list[str]:
    import json

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "tokens_per_second", "examples_per_second", "data_wait", "mfu", "time")
    lines = [line for line in lines if line["split"] != "checkpoint"]  # one more where a signal came
    return [str({key: value for key, value in line.items() if key not in times}) for line in lines]


@pytest.fixture(scope="module")
def overrides() -> tuple[str, ...]:
    return ("training.log_every_steps=3", "training.calibrate=true", "data.validation_fraction=0.3")


@pytest.fixture(scope="module")
def whole(store, test_store, settings, overrides, tmp_path_factory) -> tuple[Path, TrainResult]:
    """The run that no signal comes to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(settings(*overrides), store, folder, test_store=test_store, progress="none")


# which signal it is decides nothing but the exit code and the word for it: each moment has one of them
@pytest.mark.parametrize(("moment", "signum"), list(zip(MOMENTS, itertools.cycle(SIGNALS), strict=False)))
def test_a_signal_at_any_moment(store, test_store, settings, tmp_path, overrides, whole, moment, signum):
    chosen, run = settings(*overrides), tmp_path / "run"
    whole, expected = whole
    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.MonkeyPatch.context() as patch:
        MOMENTS[moment](patch, signum)
        with pytest.raises(Interrupted, match=f"stopped by {signum.name}") as caught:
            train(chosen, store, run, test_store=test_store, progress="none")
    assert caught.value.exit_code == 128 + signum
    again = train(chosen, store, run, test_store=test_store, progress="none")
    assert (again.validation, again.test, again.calibration) == (
        expected.validation,
        expected.test,
        expected.calibration,
    )
    for name in ("best/model.safetensors", "last/model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert timeless(run) == timeless(whole)
    assert before == [signal.getsignal(one) for one in SIGNALS]


@pytest.mark.parametrize("moment", ["calibration", "export", "the record"])
def test_a_trial_does_not_swallow_a_signal(store, test_store, settings, tmp_path, overrides, moment):
    task = TrialTask(Trial(60, 0, "lstm"), settings(*overrides), store.path, test_store.path, 0, None, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        MOMENTS[moment](patch, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run_trial(task)
    assert run_trial(task).status == "done"


@as_subtests(
    "error, expected",
    [
        (NonFiniteError("x"), Interrupted),  # a study would write that down and go on
        (RuntimeError("x"), Interrupted),
        (DiskError("x"), DiskError),  # to be read and mended
        (None, Interrupted),
    ],
)
def test_a_signal_beside_an_error(error, expected):
    def work() -> None:
        with StopSignal(Path("run")):
            signal.raise_signal(signal.SIGTERM)
            if error is not None:
                raise error

    with pytest.raises(expected):
        work()


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_program_around_python_handles_stays_with_it(monkeypatch):
    """Python has no handler to give back for a signal that C code had taken before Python began."""
    known = signal.getsignal
    before = [known(signum) for signum in SIGNALS]
    monkeypatch.setattr(signal, "getsignal", lambda signum: None if signum == signal.SIGTERM else known(signum))
    with StopSignal():
        within = [known(signum) for signum in SIGNALS]
    assert within[SIGNALS.index(signal.SIGTERM)] is before[SIGNALS.index(signal.SIGTERM)]
    assert sum(one is not other for one, other in zip(within, before, strict=True)) == len(SIGNALS) - 1
    assert [known(signum) for signum in SIGNALS] == before


def test_signals_that_come_together_are_one_request():
    """A terminal that closes sends SIGHUP to all; torchrun sends SIGTERM after the terminal's SIGINT."""

    def work() -> None:
        with StopSignal():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGHUP"):
        work()


TWICE = """
import signal, time
from penstock.engine.training.signals import StopSignal
with StopSignal():
    signal.raise_signal(signal.SIGTERM)
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        pass
    signal.raise_signal(signal.SIGINT)
    print("went on")
"""


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")


def test_an_evaluation_is_left_in_the_middle_of_a_batch():
    """Within a second, however long a batch takes."""

    def work() -> None:
        with StopSignal() as stop:
            for _ in stop.watch([1, 2, 3], ALONE):
                end = time.monotonic() + 10
                while time.monotonic() < end:
                    pass

    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            work()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 1


def test_interrupted_is_an_error_of_one_line():
    error = Interrupted(None, Path("run"), 0)
    assert isinstance(error, PenstockError)
    assert str(error) == "stopped by SIGTERM; the same command resumes from run/last"
    assert str(pickle.loads(pickle.dumps(error))) == str(error), "other processes of a run get it"
