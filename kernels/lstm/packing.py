"""A ragged batch laid out step by step, as in a PackedSequence, in each direction's own order of time."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass
class Packing:
    """Sequences are sorted by length, so that the rows still active at a step are the first ones of the step before."""

    sizes: list[int]  # active rows of each step, descending
    bounds: list[int]  # step t owns packed rows bounds[t] to bounds[t + 1]
    order: Tensor  # (B,), sequences by descending length
    rows: list[Tensor]  # per direction: (tokens,), the token of each packed row
    last: Tensor  # (sequences that are not empty,), the packed row of the last step, sequences in `order`

    @classmethod
    def of(cls, cu_seqlens: Tensor, tokens: int, directions: int) -> "Packing":
        device = cu_seqlens.device
        bounds = cu_seqlens.cpu().long()  # a device is waited for here
        lengths = bounds.diff()
        batch = lengths.numel()
        order = torch.argsort(lengths, descending=True, stable=True)
        ended = torch.bincount(lengths).cumsum(0) if batch else lengths  # ended[t]: sequences of length <= t
        sizes = (batch - ended[:-1]).tolist()
        offsets = torch.tensor([0, *accumulate(sizes)])
        rank = torch.empty_like(order)
        rank[order] = torch.arange(batch)
        sequence = torch.repeat_interleave(torch.arange(batch), lengths)
        step = torch.arange(tokens) - bounds[sequence]
        place = offsets[step] + rank[sequence]
        forward = torch.empty_like(place)
        forward[place] = torch.arange(tokens)
        reverse = torch.empty_like(place)
        reverse[place] = bounds[sequence + 1] - 1 - step
        rows = [forward.to(device), reverse.to(device)][:directions]
        longest_first = lengths[order][: sizes[0] if sizes else 0]
        last = offsets[longest_first - 1] + torch.arange(len(longest_first))
        return cls(sizes, offsets.tolist(), order.to(device), rows, last.to(device))

    @property
    def nonempty(self) -> int:
        """The number of sequences that have tokens: the first ones in `order`."""
        return self.sizes[0] if self.sizes else 0

    def pack(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """(tokens, D * width) in token order to (D, tokens, width) step by step."""
        columns = values.to(dtype).unflatten(1, (len(self.rows), -1))
        return torch.stack([columns[rows, d] for d, rows in enumerate(self.rows)])

    def unpack(self, values: Tensor) -> Tensor:
        """The inverse of `pack`."""
        directions, tokens, width = values.shape
        out = values.new_empty(tokens, directions, width)
        for d, rows in enumerate(self.rows):
            out[rows, d] = values[d]
        return out.flatten(1)

    def sort(self, state: Tensor, dtype: torch.dtype) -> Tensor:
        """A state of (D, B, width) with its sequences in `order`: a copy."""
        return state.to(dtype)[:, self.order]

    def unsort(self, state: Tensor) -> Tensor:
        out = torch.empty_like(state)
        out[:, self.order] = state
        return out

    def final(self, packed: Tensor, initial: Tensor | None) -> Tensor:
        """(D, B, width): each sequence's value at its last step, its (sorted) initial state or zero if it has none."""
        directions, _, width = packed.shape
        out = packed.new_zeros(directions, len(self.order), width) if initial is None else initial.clone()
        out[:, : self.nonempty] = packed[:, self.last]
        return self.unsort(out)
