"""The machine that figures are of: what it is, how busy others keep it, and what it does at most at this moment."""

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("penstock", "torch", "numpy", "transformers", "onnxruntime", "datasets", "mosaicml-streaming", "accelerate")
BUSY = 0.05  # of all cores: from here on a line says so
INTERVAL = 0.5  # seconds
TICKS = os.sysconf("SC_CLK_TCK")


def describe(threads: int, isa: str) -> dict[str, Any]:
    """Names and versions, to tell machines and runs apart."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "isa": isa,
        "threads": threads,
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
        "malloc": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The checkout's; "unknown" in an installed package."""
    root = str(Path(__file__).resolve().parents[1])
    try:
        done = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


class Others:
    """How many cores other processes keep busy, between two looks at /proc."""

    def __init__(self, proc: Path = Path("/proc"), own: int | None = None) -> None:
        self._proc, self._own = proc, own or os.getpid()
        self._before = self._look()

    def cores(self) -> float | None:
        """In the mean since the last call; None where the system does not tell."""
        before, self._before = self._before, self._look()
        if before is None or self._before is None:
            return None
        everything, busy, own = (now - then for now, then in zip(self._before, before, strict=True))
        if everything <= 0:
            return None
        return max(0.0, busy - own) / everything * (os.cpu_count() or 1)

    def _look(self) -> tuple[int, int, int] | None:
        """Ticks of all cores: passed, busy, and ours with our children's."""
        try:
            fields = [int(value) for value in (self._proc / "stat").read_text().splitlines()[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        idle = fields[3] + fields[4]
        return sum(fields), sum(fields) - idle, sum(map(self._ticks, self._tree(self._own)))

    def _tree(self, process: int) -> list[int]:
        found = [process]
        for tasks in (self._proc / str(process) / "task").glob("*/children"):
            try:
                children = tasks.read_text().split()
            except OSError:
                continue
            found += [one for child in children for one in self._tree(int(child))]
        return found

    def _ticks(self, process: int) -> int:
        """Those of its ended children are among them, so nothing is lost when one ends."""
        try:
            after_name = (self._proc / str(process) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0
        return sum(int(value) for value in after_name[11:15])


def before_the_run() -> float | None:
    others = Others()
    time.sleep(INTERVAL)
    return others.cores()


def busy_line(cores: float | None) -> str:
    """One line for a machine that is busy, nothing for a quiet one."""
    count = os.cpu_count() or 1
    if cores is None or cores <= BUSY * count:
        return ""
    return (
        f"the machine is busy: other processes use {cores:.1f} of {count} cores; "
        "believe ratios within a round, not times, and measure again when it is quiet"
    )


def flops_probe(dtype: str) -> Callable[[], float] | None:
    """Operations per second that all threads reach on registers alone."""
    import torch

    from penstock.kernels import compiled

    if compiled.available() is not None:
        return None
    from penstock import _native

    def probe() -> float:
        start = time.perf_counter()
        operations = _native.lstm_cpu.multiply_in_registers(compiled.isa(), dtype, torch.get_num_threads(), 50_000)
        return operations / (time.perf_counter() - start)

    return probe


def bytes_probe(moved: float | None = None) -> Callable[[], float]:
    """Bytes per second, read and written, of a copy that moves as many; None: more than a cache holds.

    A copy of what a cache holds is the bound of a case that moves no more: memory's own would be exceeded.
    """
    import torch

    size = 2**25 if moved is None else max(1, round(moved / 2))
    copies = max(1, 2**22 // size)  # a short copy is timed by many
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)

    def probe() -> float:
        start = time.perf_counter()
        for _ in range(copies):
            target.copy_(source)
        return 2 * size * copies / (time.perf_counter() - start)

    probe()
    return probe
