"""What machine this is, and what it can do at most: copies and matrix products on random data."""

import importlib.metadata
import os
import platform
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import torch

from penstock.benchmarks.gpu.cells import each, in_turn
from penstock.benchmarks.gpu.context import Context, emit

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}


def describe(smoke: bool) -> dict[str, Any]:
    """Names and versions, for the head of the page and to tell machines apart."""
    about: dict[str, Any] = {
        "device": "no GPU (smoke run)" if smoke else torch.cuda.get_device_name(),
        "driver": None if smoke else driver(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": None if smoke else torch.backends.cudnn.version(),
        "cores": os.cpu_count(),
        "commit": commit(),
    }
    for package in ("triton", "transformers"):
        try:
            about[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            about[package] = None
    if not smoke:
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(properties.L2_cache_size / 2**20, 1),
        }
    return about


def driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return output_of(query).splitlines()[0] if output_of(query) else None


def commit() -> str:
    """The checkout's commit; PENSTOCK_COMMIT names it where the history did not come along."""
    if named := os.environ.get("PENSTOCK_COMMIT"):
        return named
    hash_ = output_of(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    if not hash_:
        return "unknown"
    changed = output_of(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return f"{hash_} and changes" if changed else hash_


def output_of(command: list[str]) -> str:
    """A command's output; nothing if it does not exist or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def run(context: Context) -> None:
    """Rows `copy` and `matmul`: the ceilings that every kernel's floor is reckoned from."""
    each(context, [{"kind": "copy"}], lambda seconds: _copy(context, seconds), spare=len(DTYPES))
    each(context, [{"kind": "matmul", "dtype": name} for name in DTYPES], partial(_matmul, context))


def _copy(context: Context, seconds: float) -> None:
    device = context.device
    size = 2**12 if context.smoke else min(2**30, torch.cuda.mem_get_info()[0] // 4)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = in_turn(context, "machine", {"copy": lambda: target.copy_(source)}, seconds)["copy"]
    emit(kind="copy", bytes=size, rate=2e3 * size / copied["ms"], **copied)


def _matmul(context: Context, dtype: str, seconds: float) -> None:
    side = 32 if context.smoke else 8192
    a, b = (torch.randn(side, side, device=context.device).to(DTYPES[dtype]) for _ in range(2))
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        product = in_turn(context, "machine", {f"matmul {dtype}": lambda: a @ b}, seconds)[f"matmul {dtype}"]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    emit(kind="matmul", dtype=dtype, side=side, rate=2e3 * side**3 / product["ms"], **product)


def rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The ceilings among a finished part's rows: bytes a second, operations a second by type."""
    out = {}
    for row in rows:
        if "rate" not in row:
            continue
        if row["kind"] == "copy":
            out["bytes"] = row["rate"]
        elif row["kind"] == "matmul":
            out[row["dtype"]] = row["rate"]
    return out
