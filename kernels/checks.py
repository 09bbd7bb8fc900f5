"""Arguments that must be numbers, or tensors of them: nothing is rounded, and True is not 1."""

import numbers
import operator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def integer(name: str, value: Any, least: int | None = None) -> int:
    """The value, if it is a whole number: an int, one of NumPy's, or what a compiler has in its place.

    Raises:
        TypeError: it is not an integer. ValueError: it is below `least`.
    """
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or not isinstance(value, int):
        value = _indexed(name, value)
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def _indexed(name: str, value: Any) -> int:
    scalar = isinstance(value, Tensor) or type(value).__name__ in ("bool", "bool_", "ndarray")
    if scalar or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r} of {type(value).__name__}")
    return operator.index(value)


def real(name: str, value: Any, least: float | None = None) -> float:
    """The value, if it is a real number: Python's, one of NumPy's, or what a compiler has in its place.

    Raises:
        TypeError: it is none. ValueError: it is below `least`, or NaN where there is one.
    """
    if type(value) is not float and not isinstance(value, torch.SymFloat):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r} of {type(value).__name__}")
        value = float(value)
    if least is not None and not value >= least:
        raise ValueError(f"{name} must be at least {least:g}, got {value}")
    return value


def probability(name: str, p: Any) -> float:
    """The value, if it is a number in [0, 1]; raises TypeError or ValueError else."""
    p = real(name, p)
    if not 0 <= p <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {p}")
    return p


def floating(name: str, *tensors: Tensor | None) -> None:
    """Raises TypeError if a tensor, unless it is None, is not floating point."""
    for tensor in tensors:
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")


def table(name: str, tensor: Tensor) -> None:
    """A table of embeddings. Raises TypeError or ValueError if it is not (rows, width), float32 or float64."""
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {tensor.dtype}")
    if tensor.ndim != 2:
        raise ValueError(f"{name} must have shape (rows, width), got {tuple(tensor.shape)}")


def dense_and_apart(device: torch.device, **tensors: Tensor) -> None:
    """What is read and changed by address. Raises ValueError if a tensor is not contiguous on the device, or two share
    memory, of which one may be changed."""
    ends: list[tuple[int, int, str]] = []
    for name, tensor in tensors.items():
        if tensor.is_neg():
            raise ValueError(f"{name} must not be a negated view: call resolve_neg()")
        if tensor.device != device or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous and on {device}, got strides {tensor.stride()}, {tensor.device}"
            )
        if tensor.numel():
            ends.append((tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.itemsize, name))
    for (_, end, one), (start, _, other) in pairwise(sorted(ends)):
        if start < end:
            raise ValueError(f"{one} and {other} share memory, but a step changes them in place: clone one of them")


def rows(name: str, rows: Tensor, count: int) -> None:
    """Rows of a table of `count`. Raises IndexError if one is not there, ValueError if one is named twice: on several
    threads, both would be changed at once."""
    if not rows.numel():
        return
    ascending = bool((rows[1:] > rows[:-1]).all())
    lowest, highest = map(int, (rows[0], rows[-1]) if ascending else rows.aminmax())
    if lowest < 0 or highest >= count:
        raise IndexError(f"{name} are {lowest} to {highest}, the table has {count}")
    if not ascending and rows.unique().numel() < rows.numel():
        raise ValueError(f"{name} must be distinct, but one is named twice")


def as_int32(integers: Tensor) -> Tensor:
    """Integers as int32. What is beyond becomes its least or greatest, where a cast would wrap it to a valid one."""
    ends = torch.iinfo(torch.int32)
    return integers if integers.dtype == torch.int32 else integers.clamp(ends.min, ends.max).to(torch.int32)


def ids(tensor: Any, batch: int, device: torch.device) -> None:
    """Examples' names: int64, (batch,), on the tokens' device; None is allowed.

    Raises:
        TypeError: not a tensor of int64. ValueError: of another shape or on another device.
    """
    if tensor is None:
        return
    _is_int64("ids", tensor)
    if tensor.shape != (batch,):
        raise ValueError(f"ids must be of shape ({batch},), one for each sequence, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"ids is on {tensor.device}, the tokens are on {device}")


def seed(tensor: Any, device: torch.device) -> None:
    """The key of dropout: one int64 on the tokens' device; None is allowed. Raises as `ids` does."""
    if tensor is None:
        return
    if isinstance(tensor, Tensor) and tensor.numel() != 1:
        raise ValueError(f"seed must be one number, got shape {tuple(tensor.shape)}")
    _is_int64("seed", tensor)
    if tensor.device != device:
        raise ValueError(f"seed is on {tensor.device}, the tokens are on {device}")


def integers(name: str, values: Any) -> Tensor:
    """The values as int64 on their own device: a tensor, an array or a sequence of integers.

    Raises:
        TypeError: they are not integers, or not numbers.
    """
    if isinstance(values, Tensor) or hasattr(values, "dtype"):
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
        if tensor.dtype not in INTEGERS:
            raise TypeError(f"{name} must be integers, got {tensor.dtype}")
        return tensor.to(torch.int64)
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a sequence of integers, got {type(values).__name__}")
    return torch.tensor([_nested(name, value) for value in values], dtype=torch.int64, device="cpu")


def _nested(name: str, value: Any) -> Any:
    return [_nested(name, each) for each in value] if isinstance(value, list | tuple) else integer(name, value)


def _is_int64(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor of int64, got {type(tensor).__name__}")
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {tensor.dtype}")
