"""Times contestants in turn, so that a machine that changes its speed changes it for all."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from penstock.benchmarks.gpu.context import WrongResultError, reason

ROUNDS = 9
_FEWEST_ROUNDS = 3
_SAMPLE_SECONDS = 0.01  # one sample repeats a call until it is about so long
_MOST_CALLS = 50

Call = Callable[[], object]


def compare(
    device: torch.device,
    calls: Mapping[str, Call],
    seconds: float,
    smoke: bool = False,
    watch: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """{name: its figures, or {"why": the reason that there are none}}.

    Figures, in milliseconds of one call: `ms` (the median over the rounds), `low_ms` and `high_ms` (quartiles),
    `host_ms` (how long the host took to issue it: a call that is no longer than that waits for Python, not for the
    GPU); `rounds`, `calls` in a sample, and `peak_mib`, memory that the call takes beyond what was there.

    Args:
        seconds: about how long all of it may take, first calls not counted; three rounds are made in any case.
        watch: told the name of each contestant before its turn.
    """
    runs = {name: _Run(device, call) for name, call in calls.items()}
    out: dict[str, Any] = {}
    for name, run in runs.items():
        watch(name)
        try:
            run.prepare(smoke)
        except WrongResultError:
            raise
        except Exception as error:
            out[name] = {"why": reason(error)}
            if device.type == "cuda":
                torch.cuda.synchronize()  # raises again if the error broke the device's context: nothing can go on
                torch.cuda.empty_cache()
    chosen = {name: run for name, run in runs.items() if name not in out}
    round_seconds = sum(run.estimate * run.calls for run in chosen.values())
    rounds = 2 if smoke else int(min(ROUNDS, max(_FEWEST_ROUNDS, seconds / max(round_seconds, 1e-9))))
    for _ in range(rounds):
        for name, run in chosen.items():
            watch(name)
            run.sample()
    return {name: out.get(name) or runs[name].figures() for name in calls}


class _Run:
    def __init__(self, device: torch.device, call: Call) -> None:
        self._cuda = device.type == "cuda"
        self._call = call
        self._samples: list[float] = []
        self._host: list[float] = []
        self._peak_mib: float | None = None
        self.calls, self.estimate = 1, 0.0

    def prepare(self, smoke: bool) -> None:
        """First calls compile and allocate; then how many calls make a sample."""
        self._call()
        if smoke:
            return
        if self._cuda:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self._call()
            torch.cuda.synchronize()
            self._peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
        self.sample()
        self.estimate = self._samples.pop()
        self._host.clear()
        self.calls = int(min(_MOST_CALLS, max(1, _SAMPLE_SECONDS / max(self.estimate, 1e-9))))

    def sample(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
        start = time.perf_counter()
        for _ in range(self.calls):
            self._call()
        issued = time.perf_counter() - start
        elapsed = issued
        if self._cuda:
            end.record()
            end.synchronize()
            elapsed = begin.elapsed_time(end) / 1e3
        self._samples.append(elapsed / self.calls)
        self._host.append(issued / self.calls)

    def figures(self) -> dict[str, Any]:
        low, middle, high = statistics.quantiles(self._samples, n=4, method="inclusive")
        figures: dict[str, Any] = {"ms": 1e3 * middle, "low_ms": 1e3 * low, "high_ms": 1e3 * high}
        figures |= {"host_ms": 1e3 * statistics.median(self._host), "rounds": len(self._samples), "calls": self.calls}
        return figures if self._peak_mib is None else figures | {"peak_mib": round(self._peak_mib, 1)}


def graphed(call: Call) -> Call:
    """Replays a call from a CUDA graph: what is left of its time when the host has nothing to do with it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def kernels_of(call: Call, most: int = 8) -> list[dict[str, Any]]:
    """The kernels that take longest in one call: name, how often, microseconds in all."""
    cuda = torch.cuda.is_available()
    call()
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        call()
        if cuda:
            torch.cuda.synchronize()

    def microseconds(entry: Any) -> float:
        return float(entry.self_device_time_total if cuda else entry.self_cpu_time_total)

    longest = sorted(profile.key_averages(), key=microseconds, reverse=True)[:most]
    return [
        {"kernel": entry.key[:120], "count": entry.count, "us": round(microseconds(entry), 1)}
        for entry in longest
        if microseconds(entry)
    ]
