"""Other batch formats, in and out of Ragged: padded, PackedSequence, jagged NestedTensor."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from penstock.kernels import checks
from penstock.kernels.ragged import Ragged, check_token_count


@dataclass
class RaggedForm:
    """One input as a Ragged, and the ways in and out for whatever belongs to it.

    Attributes:
        ragged: the input, values of (tokens, features).
        tokens_in: from the input's form, without features, to (tokens,).
        values_out: from (tokens, width) to the input's form.
        batched: False if the input was one sequence without a batch dimension.
    """

    ragged: Ragged
    tokens_in: Callable[[Tensor], Tensor]
    values_out: Callable[[Tensor], Any]
    batched: bool = True

    @classmethod
    def of(cls, input: Tensor | PackedSequence | Ragged, batch_first: bool, features: bool = True) -> "RaggedForm":
        """Raises TypeError or ValueError, naming `input`, if it has none of the forms.

        Without features, values are (tokens,): for a Ragged only.
        """
        if isinstance(input, Ragged):
            if features and input.values.ndim != 2:
                raise ValueError(f"input's values must be (tokens, features), got {tuple(input.values.shape)}")
            return cls(input, lambda tokens: tokens, input.with_values)
        if isinstance(input, PackedSequence):
            return _of_packed(input)
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor, a PackedSequence or a Ragged, got {type(input).__name__}")
        if input.is_nested:
            return _of_nested(input)
        if input.ndim == 2:
            return cls(rectangle(input[None]), lambda tokens: tokens, lambda values: values, batched=False)
        if input.ndim == 3:
            return _of_padded(input, batch_first)
        raise ValueError(f"input must have 2 dimensions (unbatched) or 3, got {input.ndim}")

    def state_in(self, state: Tensor) -> Tensor:
        if state.ndim != (3 if self.batched else 2):
            raise ValueError(f"hx must have {3 if self.batched else 2} dimensions, got shape {tuple(state.shape)}")
        return state if self.batched else state.unsqueeze(1)

    def state_out(self, state: Tensor) -> Tensor:
        return state if self.batched else state.squeeze(1)


def rectangle(values: Tensor) -> Ragged:
    """(B, T, ...), all tokens of it."""
    batch, time = values.shape[:2]
    if not torch.compiler.is_compiling():  # where sizes may be symbols, of which this would make a condition
        check_token_count(batch * time)
    cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=values.device) * time
    # torch.jit.trace has tensors for sizes
    return Ragged(values.flatten(0, 1), cu_seqlens, int(time) if torch.jit.is_tracing() else time)


def _of_padded(input: Tensor, batch_first: bool) -> RaggedForm:
    if batch_first:
        batch, time = input.shape[:2]
        return RaggedForm(rectangle(input), lambda tokens: tokens.flatten(), lambda y: y.view(batch, time, y.shape[1]))
    time, batch = input.shape[:2]
    return RaggedForm(
        rectangle(input.transpose(0, 1)),
        lambda tokens: tokens.t().flatten(),
        lambda y: y.view(batch, time, y.shape[1]).transpose(0, 1).contiguous(),
    )


def _of_packed(input: PackedSequence) -> RaggedForm:
    data, sizes = input.data, input.batch_sizes
    check_token_count(data.shape[0])
    batch = int(sizes[0])
    whole: dict[str, Any] = {"dtype": torch.int64, "device": "cpu"}
    ending = sizes - torch.cat([sizes[1:], sizes.new_zeros(1)])
    lengths = torch.repeat_interleave(torch.arange(1, len(sizes) + 1, **whole), ending).flip(0)  # descending
    rank = torch.arange(batch, **whole)
    if input.unsorted_indices is not None:
        rank = input.unsorted_indices.cpu()
        lengths = lengths[rank]
    starts = torch.tensor([0, *accumulate(lengths.tolist())], **whole)
    step = torch.arange(data.shape[0], **whole) - torch.repeat_interleave(starts[:-1], lengths)
    offsets = torch.tensor([0, *accumulate(sizes.tolist())], **whole)
    packed_row = (offsets[step] + torch.repeat_interleave(rank, lengths)).to(data.device)
    token = torch.empty_like(packed_row)
    token[packed_row] = torch.arange(data.shape[0], dtype=torch.int64, device=data.device)
    ragged = Ragged(data[packed_row], starts.to(data.device, torch.int32), len(sizes))

    def out(values: Tensor) -> PackedSequence:
        # by name: torch.compile makes an empty one of input._replace
        return PackedSequence(values[token], sizes, input.sorted_indices, input.unsorted_indices)

    return RaggedForm(ragged, lambda tokens: tokens[packed_row], out)


def _of_nested(input: Any) -> RaggedForm:
    if input.layout != torch.jagged or input.ndim != 3 or input._ragged_idx != 1 or not input.shape[2:].numel():
        raise ValueError("input must be a jagged NestedTensor of shape (B, *, features)")
    if input.lengths() is not None:
        input = input.contiguous()
    offsets = input.offsets()
    max_seqlen = input._maybe_max_seqlen
    if max_seqlen is None:
        max_seqlen = int(offsets.diff().max()) if offsets.numel() > 1 else 0
    check_token_count(input.values().shape[0])
    cu_seqlens = checks.as_int32(checks.integers("the NestedTensor's offsets", offsets))
    ragged = Ragged(input.values(), cu_seqlens, max_seqlen)

    def out(values: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(values, offsets, max_seqlen=max_seqlen)

    return RaggedForm(ragged, lambda tokens: tokens.values() if tokens.is_nested else tokens, out)
