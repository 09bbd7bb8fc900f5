"""Whether Triton's kernels can run here: one answer for every operation, without importing Triton."""

import contextlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

UNVERIFIED = "it has run in Triton's interpreter only, not yet on a GPU; use_backend('triton') asks for it"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def available() -> str | None:
    """None if Triton kernels can run here, else the reason."""
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


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the device of x."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
