"""Checks of `cu_seqlens`, shared by every operation on ragged batches."""

import os

import torch
from torch import Tensor

DEBUG = os.environ.get("PENSTOCK_DEBUG", "") not in ("", "0")


def check_cu_seqlens(cu_seqlens: Tensor, device: torch.device, name: str = "cu_seqlens") -> None:
    """Checks type, shape and device, which is free and works while tracing.

    Raises:
        TypeError: not int32. ValueError: not of shape (batch + 1,), or on another device than the tokens.
    """
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"{name} must have shape (batch + 1,), got {tuple(cu_seqlens.shape)}")
    if cu_seqlens.device != device:
        raise ValueError(f"{name} is on {cu_seqlens.device}, the tokens are on {device}")


def check_bounds(
    cu_seqlens: Tensor, tokens: int, max_seqlen: int | None = None, suffix: str = "", always: bool = False
) -> None:
    """Checks the values: always on a CPU, on a GPU only if PENSTOCK_DEBUG is set, as it waits for the device.

    Args:
        suffix: what is appended to the arguments' names in messages, such as "_q".
        always: checks wherever the tensor is.
    Raises:
        ValueError: the bounds do not rise from 0 to `tokens`, or a sequence is longer than `max_seqlen`.
    """
    if cu_seqlens.device.type != "cpu" and not (DEBUG or always):
        return
    name = f"cu_seqlens{suffix}"
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0 or last != tokens:
        raise ValueError(f"{name} must run from 0 to the token count {tokens}, it runs from {first} to {last}")
    if cu_seqlens.shape[0] == 1:
        return
    shortest, longest = (int(length) for length in cu_seqlens.diff().aminmax())
    if shortest < 0:
        raise ValueError(f"{name} must not decrease, it holds a sequence of length {shortest}")
    if max_seqlen is not None and longest > max_seqlen:
        raise ValueError(f"max_seqlen{suffix} is {max_seqlen}, but {name} holds a sequence of length {longest}")
