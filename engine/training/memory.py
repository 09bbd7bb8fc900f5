"""How this process's C library gives out memory; how much there is, and how much was needed at most."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Lets glibc reuse the pages of freed tensors instead of giving each back to the system; elsewhere does nothing.

    A step on a CPU frees what the next one asks for: gigabytes a second, which the system would clear page by page.
    For programs of ours only, not for whoever calls `train`: the whole process keeps what it once needed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)):
            mallopt(parameter, value)


def return_freed_memory() -> None:
    """Gives the pages of freed memory back to the system, so that it does not count as needed; glibc alone can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def reset_peak_memory() -> None:
    """Begins a new peak, where the system can: Linux."""
    with contextlib.suppress(OSError):  # then the peak is of the whole process, model building included
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int | None:
    """Bytes of memory that this process has held at most since `reset_peak_memory`."""
    if (peak := _of_this_process("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_limit(processes: int = 1) -> int | None:
    """Bytes that this process may hold: those that it holds and those that are free to it, on the machine, in its
    control group and under its own limit (ulimit -v). None where the system does not tell: Linux does.

    Args:
        processes: that share what is free evenly, this one among them.
    """
    held = _of_this_process("VmRSS")
    free = [*_free_of_the_machine(), *_free_of_the_control_groups()]
    if held is None or not free:
        return None
    return held + max(0, min(min(free) // processes, *_free_of_the_process(), sys.maxsize))


def _free_of_the_machine(file: Path = Path("/proc/meminfo")) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in file.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def _free_of_the_control_groups(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """What this process's group leaves, and each one around it that has a limit. Pages of files count as free."""
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                top, names = root, ("memory.max", "memory.current", "inactive_file ")
            elif "memory" in controllers.split(","):
                top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
            else:
                continue
            # in a container the path is the host's, and its own group is at the top
            inner = top / path.lstrip("/")
            for folder in [inner, *inner.parents]:
                yield from _free_of(folder, *names)
                if folder == top:
                    break


def _free_of(group: Path, limit: str, used: str, of_files: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
        most = int((group / limit).read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        files = sum(int(line.split()[1]) for line in lines if line.startswith(of_files))
        yield most - int((group / used).read_text()) + files


def _free_of_the_process() -> Iterator[int]:
    with contextlib.suppress(ImportError, OSError):
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY and (held := _of_this_process("VmSize")) is not None:
            yield most - held


def _of_this_process(name: str) -> int | None:
    """Bytes of an entry of /proc/self/status."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
