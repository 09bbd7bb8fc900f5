"""The one batch format: sequences laid end to end, with their bounds."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from penstock.kernels import checks

# up to this number, bounds are compared faster as Python's integers than by torch's operations
_FEW = 64


@dataclass(frozen=True, eq=False)
class Ragged:
    """A batch of sequences of different lengths without padding.

    Attributes:
        values: (total_tokens, ...), sequence b in rows cu_seqlens[b] to cu_seqlens[b + 1].
        cu_seqlens: int32, (batch + 1,), the layout of FlashAttention's varlen calls and of a jagged NestedTensor.
        max_seqlen: an upper bound of the lengths, known on the host: no device is asked for it.
        ids: int64, (batch,), names the examples (the store's rows), for reproducible dropout and for messages.

    Raises:
        TypeError: cu_seqlens is not int32, ids not int64, or max_seqlen not an integer.
    """

    values: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        _is_tensor("cu_seqlens", self.cu_seqlens, torch.int32)
        if self.ids is not None:
            _is_tensor("ids", self.ids, torch.int64)
        if type(self.max_seqlen) is not int:
            object.__setattr__(self, "max_seqlen", checks.integer("max_seqlen", self.max_seqlen))

    @classmethod
    def from_lengths(cls, values: Tensor, lengths: Sequence[int] | Tensor, ids: Tensor | None = None) -> "Ragged":
        """Builds and checks a batch from the lengths of its sequences, given on the host.

        Raises:
            TypeError: lengths are not integers (nothing is rounded), or ids not int64.
            ValueError: the lengths are negative, do not add up to `values`' rows, or disagree with `ids` in number.
        """
        lengths = checks.integers("lengths", lengths)
        if lengths.ndim != 1:
            raise ValueError(f"lengths must be one-dimensional, got shape {tuple(lengths.shape)}")
        if lengths.numel() and int(lengths.min()) < 0:
            raise ValueError(f"lengths must not be negative, got {int(lengths.min())}")
        total = int(lengths.sum())
        if values.ndim == 0:
            raise ValueError("values must have a row for each token, got a single number")
        if total != values.shape[0]:
            raise ValueError(f"lengths add up to {total}, but values has {values.shape[0]} rows")
        check_token_count(total)
        if isinstance(ids, Tensor) and ids.shape != lengths.shape:
            raise ValueError(f"ids has shape {tuple(ids.shape)} for {lengths.numel()} sequences")
        lengths = lengths.cpu()
        cu_seqlens = torch.zeros(lengths.numel() + 1, dtype=torch.int32, device="cpu")
        torch.cumsum(lengths, 0, out=cu_seqlens[1:])
        max_seqlen = int(lengths.max()) if lengths.numel() else 0
        return cls(values, cu_seqlens.to(values.device), max_seqlen, ids)

    @property
    def batch_size(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """int32, (batch,), on the batch's device."""
        return self.cu_seqlens.diff()

    def with_values(self, values: Tensor) -> "Ragged":
        """The same sequences with other values, (total_tokens, ...)."""
        return Ragged(values, self.cu_seqlens, self.max_seqlen, self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Ragged":
        ids = None if self.ids is None else self.ids.to(device, non_blocking=non_blocking)
        return Ragged(
            self.values.to(device, non_blocking=non_blocking),
            self.cu_seqlens.to(device, non_blocking=non_blocking),
            self.max_seqlen,
            ids,
        )

    def pin_memory(self) -> "Ragged":
        ids = None if self.ids is None else self.ids.pin_memory()
        return Ragged(self.values.pin_memory(), self.cu_seqlens.pin_memory(), self.max_seqlen, ids)


def _is_tensor(name: str, tensor: Any, dtype: torch.dtype) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor of {dtype}, got {type(tensor).__name__}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")


_FIELDS = "values", "cu_seqlens", "max_seqlen", "ids"


def _of_leaves(*leaves: Any) -> Ragged:
    """Unchecked: torch puts whatever it likes in the place of tensors."""
    ragged = object.__new__(Ragged)
    for name, leaf in zip(_FIELDS, leaves, strict=True):
        object.__setattr__(ragged, name, leaf)
    return ragged


pytree.register_pytree_node(
    Ragged,
    lambda ragged: ([getattr(ragged, name) for name in _FIELDS], None),
    lambda leaves, _: _of_leaves(*leaves),
    serialized_type_name="penstock.kernels.Ragged",
    flatten_with_keys_fn=lambda ragged: ([(pytree.GetAttrKey(name), getattr(ragged, name)) for name in _FIELDS], None),
)


def check_cu_seqlens_form(name: str, cu_seqlens: Tensor, device: torch.device | None) -> None:
    """Checks what can be known without reading sequence bounds, also while a compiler traces.

    Raises:
        TypeError: not a tensor of int32. ValueError: not of shape (batch + 1,), or not on the tokens' device, unless
            that is None.
    """
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"{name} must be a tensor of int32, got {type(cu_seqlens).__name__}")
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"{name} must have shape (batch + 1,), got {tuple(cu_seqlens.shape)}")
    if device is not None and cu_seqlens.device != device:
        raise ValueError(f"{name} is on {cu_seqlens.device}, the tokens are on {device}")


def check_token_count(tokens: int) -> None:
    """Raises ValueError if cu_seqlens, which is int32, cannot count this many tokens."""
    if tokens > torch.iinfo(torch.int32).max:
        raise ValueError(f"{tokens} tokens in one batch: cu_seqlens is int32, split the batch")


def check_cu_seqlens(name: str, cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> None:
    """Checks the contents of sequence bounds: always on the CPU, elsewhere only if PENSTOCK_DEBUG=1, for it waits.

    Raises:
        ValueError: the bounds do not start at 0, decrease, do not end at `tokens`, or a length exceeds `max_seqlen`.
    """
    if cu_seqlens.device.type != "cpu":
        if os.environ.get("PENSTOCK_DEBUG", "0") in ("", "0"):
            return
        cu_seqlens = cu_seqlens.cpu()
    if cu_seqlens.numel() <= _FEW:
        bounds = cu_seqlens.tolist()
        first, last, lengths = bounds[0], bounds[-1], [end - start for start, end in pairwise(bounds)]
        shortest, longest = min(lengths, default=0), max(lengths, default=0)
    else:
        first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
        shortest, longest = (int(bound) for bound in cu_seqlens.long().diff().aminmax())  # int32 would wrap
    if first != 0 or last != tokens:
        raise ValueError(f"{name} must run from 0 to the number of tokens, {tokens}, got {first} to {last}")
    if shortest < 0:
        raise ValueError(f"{name} must not decrease, but a sequence has length {shortest}")
    if longest > max_seqlen:
        raise ValueError(f"max_seqlen is {max_seqlen}, but {name} holds a sequence of length {longest}")
