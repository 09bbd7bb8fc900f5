"""Autocast, written by hand: `torch.library.register_autocast` knows one fixed dtype and would cast every tensor."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

_UNCHANGED = contextlib.nullcontext()
# asked once: torch 2.11's compiler cannot trace the question
_HAS_AUTOCAST = {device: torch.amp.is_autocast_available(device) for device in ("cpu", "cuda", "xpu", "mps", "meta")}
_MaybeTensor = TypeVar("_MaybeTensor", Tensor, None, Tensor | None)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on x's device, None where it is off, or x is float64 or not floating point."""
    device = x.device.type
    has_autocast = _HAS_AUTOCAST[device] if device in _HAS_AUTOCAST else torch.amp.is_autocast_available(device)
    is_cast = x.is_floating_point() and x.dtype != torch.float64
    if not is_cast or not has_autocast or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def as_called(x: Tensor) -> Tensor:
    """x in the dtype that autocast asks for."""
    dtype = autocast_dtype(x)
    return x if dtype is None else x.to(dtype)


def cast(tensor: _MaybeTensor, dtype: torch.dtype) -> _MaybeTensor:
    """In the dtype, if it is floating point; else as it is, for the caller's checks to refuse."""
    return tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """No autocast inside an operation. Where it is off already, torch's own context costs more than asking."""
    if device_type == "meta":  # which has none
        return _UNCHANGED
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else _UNCHANGED
