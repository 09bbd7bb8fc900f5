"""Where a run's time goes: every second in one phase, on a CPU as on a GPU."""

import itertools
import json
import time
from dataclasses import asdict

import pytest
import torch
from stopping import stop_at
from subtested import as_subtests

from penstock.engine.training import loop as loop_module
from penstock.engine.training.loop import Counters
from penstock.engine.training.progress import describe_step
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.state import StateError
from penstock.engine.training.timers import PHASES, DeviceTimers, Timers
from penstock.engine.training.train import train
from penstock.engine.training.writer import HostCopy


class Clock:
    """Stands still until it is told how much passes."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def test_each_second_falls_to_one_phase():
    clock = Clock()
    timers = Timers(clock)
    for phase, seconds in zip(PHASES, itertools.count(1), strict=False):
        timers.to(phase)
        clock.passes(seconds)
    assert timers.read() == {phase: float(seconds) for phase, seconds in zip(PHASES, itertools.count(1), strict=False)}


def test_a_phase_in_another_one_and_after_an_error():
    clock = Clock()
    timers = Timers(clock)
    timers.to("forward")
    clock.passes(1)

    def fails():
        with timers.during("evaluation"):
            clock.passes(2)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    clock.passes(4)
    assert timers.to("other") == "forward"
    found = timers.read()
    assert (found["forward"], found["evaluation"], sum(found.values())) == (5.0, 2.0, 7.0)


def test_laps_add_up_and_a_phase_may_have_begun_before_now():
    clock = Clock()
    timers = Timers(clock)
    timers.go_on_from({"data": 50.0})
    timers.to("backward")
    clock.passes(3)
    timers.to("communication", at=clock.now - 1)
    clock.passes(1)
    first = timers.lap()
    assert (first["data"], first["backward"], first["communication"]) == (0.0, 2.0, 2.0)
    timers.to("optimizer", at=0.0)  # never before what has been counted
    clock.passes(5)
    second = timers.lap()
    assert (second["optimizer"], sum(second.values())) == (5.0, 5.0)
    assert timers.read() == {phase: first[phase] + second[phase] + 50.0 * (phase == "data") for phase in PHASES}


class Device:
    """A GPU's queue: what it is given takes its own time and begins when what is before it is done."""

    def __init__(self, clock):
        self.clock, self.free_at = clock, clock.now

    def runs(self, seconds):
        self.free_at = max(self.free_at, self.clock.now) + seconds

    def wait(self):
        self.clock.now = max(self.clock.now, self.free_at)

    def event(self):
        device = self

        class Event:
            def record(self):
                self.at = max(device.free_at, device.clock.now)

            def elapsed_time(self, end):
                assert end.at <= device.clock.now, "read before the device came to it: that would be a wait"
                return 1000 * (end.at - self.at)

        return Event()


def test_a_device_behind_the_host():
    """The host asks for everything in no time and then waits: the time is what the device did."""
    clock = Clock()
    device = Device(clock)
    timers = DeviceTimers(clock, device.event)
    for _ in range(10):
        timers.to("data")
        clock.passes(0.5)
        for phase, seconds in (("forward", 1.0), ("backward", 2.0)):
            timers.to(phase)
            clock.passes(0.001)
            device.runs(seconds)
        timers.to("optimizer")
        device.wait()
        timers.synced()
        clock.passes(0.001)
        device.runs(0.25)
        timers.to("other")
    device.wait()
    found = timers.read()
    assert sum(found.values()) == pytest.approx(clock.now - 100.0)
    assert found["data"] == pytest.approx(5.0)
    # the host's 3 seconds a step, as the device divided its own; the last optimizer step is not waited for
    assert found["backward"] / found["forward"] == pytest.approx(2.0, rel=0.01)
    assert found["optimizer"] / found["forward"] == pytest.approx(0.25 * 9 / 10, rel=0.02)


def run_of(store, settings, run, *overrides, **more):
    began = time.perf_counter()
    result = train(settings(*overrides), store, run, progress="none", **more)
    wall = time.perf_counter() - began
    return result, wall, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_accounts_for_its_time(store, test_store, settings, tmp_path, monkeypatch):
    """What is slowed down shows in its own phase; all phases together are the wall."""
    slow = {"data": 0.003, "optimizer": 0.004, "evaluation": 0.05, "checkpoint": 0.03}

    def slower(owner, name, phase):
        plain = getattr(owner, name)

        def wrapped(*args, **kwargs):
            time.sleep(slow[phase])
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    slower(loop_module.Loader, "_pop", "data")
    slower(torch.optim.AdamW, "step", "optimizer")
    slower(loop_module, "evaluate", "evaluation")
    slower(HostCopy, "of", "checkpoint")
    result, wall, lines = run_of(store, settings, tmp_path / "run", test_store=test_store)
    assert tuple(result.time) == PHASES
    assert sum(result.time.values()) == pytest.approx(wall, rel=0.03, abs=0.1)
    counts = {"data": result.steps, "optimizer": result.steps, "evaluation": 4, "checkpoint": 1}
    for phase, seconds in slow.items():
        assert result.time[phase] >= counts[phase] * seconds, phase
    assert result.time["checkpoint"] >= result.checkpoint_seconds - 0.01
    assert min(result.time["forward"], result.time["backward"]) > 0
    assert result.time["communication"] == 0
    steps = [line for line in lines if line["split"] == "train"]
    assert all(tuple(line["time"]) == PHASES and min(line["time"].values()) >= 0 for line in steps)
    for phase in PHASES:
        assert sum(line["time"][phase] for line in steps) <= result.time[phase] + 0.01, phase
    assert all(line["mfu"] > 0 for line in steps)
    words = describe_step(steps[0])
    assert "evaluation" not in words
    assert "other" in words  # the first line has the model's building


def test_an_interrupted_run_goes_on_counting(store, settings, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            train(settings(), store, tmp_path, progress="none")
    before = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-2])["time"]
    result, wall, _ = run_of(store, settings, tmp_path)
    assert sum(result.time.values()) > wall
    assert result.time["forward"] > before["forward"]


def test_timers_change_no_result(store, settings, tmp_path):
    from safetensors.torch import load_file

    weights = []
    for name, phases in (("with", True), ("without", False)):
        with pytest.MonkeyPatch.context() as patch:
            if not phases:
                patch.setattr(Timers, "to", lambda self, phase, at=None: "other")
            train(settings("training.max_steps=5"), store, tmp_path / name, progress="none")
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@as_subtests(
    "found", [{"sleep": 1.0}, {"data": -1.0}, {"data": float("nan")}, {"data": "1"}, {"data": float("inf")}, {1: 1.0}]
)
def test_times_that_a_checkpoint_cannot_have(found):
    state = asdict(Counters())
    with pytest.raises(StateError, match="its time in"):
        Counters.from_state({**state, "time": found})
    assert Counters.from_state({key: value for key, value in state.items() if key != "time"}).time == {}


def test_a_phase_costs_next_to_nothing():
    timers = Timers()
    fastest = min(_seconds_of(lambda: timers.to("forward")) for _ in range(20))
    assert fastest < 20e-6


def _seconds_of(call):
    began = time.perf_counter()
    for _ in range(100):
        call()
    return (time.perf_counter() - began) / 100
