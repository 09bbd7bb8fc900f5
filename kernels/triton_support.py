"""Whether Triton's kernels can run here: one answer for every operation, without importing Triton."""

import contextlib
import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

UNVERIFIED = "it has run in Triton's interpreter only, not yet on a GPU; use_backend('triton') asks for it"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache  # looking for the package takes longer than a small kernel
def available() -> str | None:
    """None if Triton kernels can run here, else the reason; found out once in a process."""
    try:
        installed = importlib.util.find_spec("triton") is not None
    except ImportError:
        installed = False
    if not installed:
        return "triton is not installed"
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return "it needs compute capability 8.0"
    return None


def why_not(*, device_type: str, dtype: torch.dtype, **_: object) -> str | None:
    """None if Triton kernels can serve such tensors, else the reason."""
    if device_type != ("cpu" if INTERPRETED else "cuda"):
        return f"it serves CUDA tensors, not {device_type}"
    if dtype == torch.float64:
        return "it has no float64"
    return None


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the device of x."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
