"""The machine that figures are of: its processor, what it does at most, and how busy others keep it meanwhile."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

BUSY = 0.05  # of all cores: from here on figures say so
TICKS = os.sysconf("SC_CLK_TCK")


def is_busy(cores: float | None) -> bool:
    """Whether that many cores, kept busy by others, spoil a measurement."""
    return cores is not None and cores > BUSY * (os.cpu_count() or 1)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def flops_probe(dtype: str) -> Callable[[], float] | None:
    """Measures, in a millisecond or less, the operations per second that all threads reach on registers alone.

    Args:
        dtype: "float32" or "bfloat16".

    Returns:
        The measurement; None where the compiled kernels are out of use.
    """
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
