"""Rounds in which each contestant works once, in turn: a machine that changes its speed changes it for all."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from penstock.benchmarks.suite import OURS, Case, Contestant, Options

FEWEST, USUAL, MOST = 5, 15, 25
SAMPLE = 0.005  # seconds; a shorter call is repeated until a sample is about so long
MOST_CALLS = 200

Probe = Callable[[], float]  # what the machine does at most at this moment: operations or bytes per second


def measure(case: Case, options: Options, probe: Probe | None) -> dict[str, Any]:
    """A case's row: seconds of a unit per round and contestant, and their `summary`."""
    row: dict[str, Any] = {"case": case.name, "what": case.what, "shape": case.shape, "dtype": case.dtype}
    if case.measured is not None:
        row |= {"work": None, "unit": case.unit, "seconds": case.measured(), "probe": [], "missing": {}}
        return row | summary(row)
    assert case.make is not None
    made = case.make(options.peers)
    missing = {name: why for name, why in made.items() if isinstance(why, str)}
    calls: dict[str, Contestant] = {name: call for name, call in made.items() if not isinstance(call, str)}
    repeats: dict[str, int] = {}
    for name, call in list(calls.items()):
        try:
            call()
            repeats[name] = _repeats(_seconds(call, 1)) if case.calls == 1 else 1
        except Exception as error:
            if name == OURS:
                raise
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            del calls[name]
    times: dict[str, list[float]] = {name: [] for name in calls}
    rates: list[float] = []
    begun = time.perf_counter()
    while not _enough(len(times[OURS]) // case.calls, time.perf_counter() - begun, options):
        if probe is not None:
            rates.append(probe())
        for name, call in calls.items():
            if case.pause and len(calls) > 1:
                time.sleep(case.pause)
                call()
            times[name] += [_seconds(call, repeats[name]) for _ in range(case.calls)]
    row |= {"work": case.work, "unit": case.unit, "seconds": times, "probe": rates, "missing": missing}
    if case.calls > 1:
        row["p99"] = {name: percentile(values, 99) for name, values in times.items()}
    return row | summary(row)


def _seconds(call: Contestant, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _repeats(seconds: float) -> int:
    return min(MOST_CALLS, max(1, math.ceil(SAMPLE / max(seconds, 1e-9))))


def _enough(rounds: int, seconds: float, options: Options) -> bool:
    if options.rounds is not None:
        return rounds >= options.rounds
    if rounds < FEWEST:
        return options.quick and rounds >= 2 and seconds > 2 * options.seconds
    if options.quick:
        return seconds >= options.seconds / 2 or rounds >= MOST
    return (rounds >= USUAL and seconds >= 2.0) or seconds >= options.seconds or rounds >= MOST


def quartiles(values: list[float]) -> list[float]:
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Quartiles of each contestant's seconds and of the ratio peer / penstock in each round; the share of the peak."""
    times, ours = row["seconds"], row["seconds"][OURS]
    found: dict[str, Any] = {"quartiles": {name: quartiles(values) for name, values in times.items()}}
    found["ratio"] = {
        name: quartiles([theirs / own for theirs, own in zip(values, ours, strict=True)])
        for name, values in times.items()
        if name != OURS
    }
    if row.get("probe") and row.get("work"):
        shares = [row["work"] / own / rate for own, rate in zip(ours, row["probe"], strict=True)]
        found["share"] = statistics.median(shares)
    return found
