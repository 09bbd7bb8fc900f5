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
        shape: of the input without its features; (tokens,) of what lies in no rectangle.
        in_order: from that shape to (tokens,).
        values_out: from (tokens, width) to the input's form.
        batched: False if the input was one sequence without a batch dimension.
        offsets: of a NestedTensor, else None.
    """

    ragged: Ragged
    shape: torch.Size
    in_order: Callable[[Tensor], Tensor]
    values_out: Callable[[Tensor], Any]
    batched: bool = True
    offsets: Tensor | None = None

    @classmethod
    def of(cls, input: Tensor | PackedSequence | Ragged, batch_first: bool, features: bool = True) -> "RaggedForm":
        """Raises TypeError or ValueError, naming `input`, if it has none of the forms.

        Without features, values are (tokens,): for a Ragged only.
        """
        if isinstance(input, Ragged):
            if features and input.values.ndim != 2:
                raise ValueError(f"input's values must be (tokens, features), got {tuple(input.values.shape)}")
            return cls(input, input.values.shape[:1], _unchanged, input.with_values)
        if isinstance(input, PackedSequence):
            return _of_packed(input)
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor, a PackedSequence or a Ragged, got {type(input).__name__}")
        if input.is_nested:
            return _of_nested(input)
        if input.ndim == 2:
            return cls(rectangle(input[None]), input.shape[:1], _unchanged, _unchanged, batched=False)
        if input.ndim == 3:
            return _of_padded(input, batch_first)
        raise ValueError(f"input must have 2 dimensions (unbatched) or 3, got {input.ndim}")

    def tokens_in(self, name: str, tokens: Any) -> Tensor:
        """What the caller gives for each token, from the input's form without features to (tokens,).

        Raises:
            TypeError: no tensor. ValueError: of another form, which would be read as that of other tokens.
        """
        if not isinstance(tokens, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tokens).__name__}")
        if tokens.is_nested and self.offsets is not None:
            tokens = _nested_values(name, tokens, self.offsets)
        if tokens.is_nested or tokens.shape != self.shape:
            found = "a NestedTensor" if tokens.is_nested else tuple(tokens.shape)
            raise ValueError(f"{name} must have shape {tuple(self.shape)}, one for each token of input, got {found}")
        return self.in_order(tokens)

    def state_in(self, state: Tensor) -> Tensor:
        if state.ndim != (3 if self.batched else 2):
            raise ValueError(f"hx must have {3 if self.batched else 2} dimensions, got shape {tuple(state.shape)}")
        return state if self.batched else state.unsqueeze(1)

    def state_out(self, state: Tensor) -> Tensor:
        return state if self.batched else state.squeeze(1)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


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
        return RaggedForm(rectangle(input), input.shape[:2], torch.flatten, lambda y: y.view(batch, time, y.shape[1]))
    time, batch = input.shape[:2]
    return RaggedForm(
        rectangle(input.transpose(0, 1)),
        input.shape[:2],
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

    return RaggedForm(ragged, data.shape[:1], lambda tokens: tokens[packed_row], out)


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

    return RaggedForm(ragged, ragged.values.shape[:1], _unchanged, out, offsets=offsets)


def _nested_values(name: str, tokens: Any, offsets: Tensor) -> Tensor:
    """The values of a jagged NestedTensor of (B, *), whose sequences must be as long as the input's."""
    if tokens.layout != torch.jagged or tokens.ndim != 2:
        raise ValueError(f"{name} must be a jagged NestedTensor of shape (B, *), got {tokens.layout}, {tokens.ndim}-d")
    if tokens.lengths() is not None:
        tokens = tokens.contiguous()
    own = tokens.offsets()
    if own is not offsets and not torch.equal(own.to(offsets), offsets):
        raise ValueError(f"{name} must end its sequences where input does, at {_some(offsets)}, got {_some(own)}")
    return tokens.values()


def _some(offsets: Tensor) -> str:
    return f"{offsets[1:9].tolist()}{' and so on' if offsets.numel() > 9 else ''}"
