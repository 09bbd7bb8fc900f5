"""The machine that figures are of: what it is, how busy others keep it, and what it does at most at this moment."""

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.engine.machine import Others, is_busy, processor

PACKAGES = ("penstock", "torch", "numpy", "transformers", "onnxruntime", "datasets", "mosaicml-streaming", "accelerate")
INTERVAL = 0.5  # seconds


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


def before_the_run() -> float | None:
    others = Others()
    time.sleep(INTERVAL)
    return others.cores()


def busy_line(cores: float | None) -> str:
    """One line for a machine that is busy, nothing for a quiet one."""
    if cores is None or not is_busy(cores):
        return ""
    count = os.cpu_count() or 1
    return (
        f"the machine is busy: other processes use {cores:.1f} of {count} cores; "
        "believe ratios within a round, not times, and measure again when it is quiet"
    )


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
