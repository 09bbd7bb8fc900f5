"""Padded batches, as transformers passes them, to ragged ones and back."""

import torch
from torch import Tensor
from torch.nn import functional as F

from penstock.kernels import Ragged
from penstock.kernels.convert import rectangle


def as_ragged(input_ids: Ragged | Tensor, attention_mask: Tensor | None = None) -> Ragged:
    """A ragged batch of token ids, (total_tokens,), from either form of input.

    Args:
        input_ids: token ids, ragged or (batch, length).
        attention_mask: (batch, length), nonzero where a token is; for padded input only. The tokens of a row may stand
            at either end, not in pieces. Without it every token counts.
    Raises:
        TypeError, ValueError: the input has another form or dtype, the mask does not fit, has holes, or comes with
            ragged input.
        RuntimeError: torch.export meets a mask.
    """
    if isinstance(input_ids, Ragged):
        if attention_mask is not None:
            raise ValueError("attention_mask goes with padded input_ids only: a ragged batch has cu_seqlens")
        if input_ids.values.ndim != 1:
            raise ValueError(f"token ids must have shape (total_tokens,), got {tuple(input_ids.values.shape)}")
        _check_are_ids(input_ids.values)
        return input_ids
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a Ragged or a tensor, got {type(input_ids).__name__}")
    if input_ids.ndim != 2:
        raise ValueError(f"padded input_ids must have shape (batch, length), got {tuple(input_ids.shape)}")
    _check_are_ids(input_ids)
    if attention_mask is None:
        return rectangle(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)} for input_ids of {tuple(input_ids.shape)}"
        )
    if torch.compiler.is_exporting():
        raise RuntimeError(
            "torch.export cannot follow an attention_mask, whose contents say how much there is to compute: "
            "export the model for a Ragged, or by `penstock export onnx`"
        )
    mask = attention_mask != 0
    # A row in one piece turns from 0 to 1 at most once.
    starts = (mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, :1].sum(1)
    if bool((starts > 1).any()):
        row = int((starts > 1).nonzero()[0, 0])
        raise ValueError(f"attention_mask has a hole in row {row}: the tokens of a row must stand side by side")
    return Ragged.from_lengths(input_ids[mask], mask.sum(1).cpu())


def _check_are_ids(ids: Tensor) -> None:
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"token ids must be int32 or int64, got {ids.dtype}")


def filled_up(batch: Ragged, tokens: int, texts: int, longest: int) -> Ragged:
    """The batch, followed by filler texts, none longer than `longest`, to these sizes; asks no device for anything.

    Args:
        batch: of token ids. texts: room enough for it and for the filler texts.
    """
    count, used = batch.batch_size, batch.values.shape[0]
    places = torch.arange(1, texts - count + 1, dtype=torch.int32, device=batch.cu_seqlens.device)
    ends = (used + longest * places).clamp(max=tokens)
    return Ragged(
        F.pad(batch.values, (0, tokens - used)),
        torch.cat([batch.cu_seqlens, ends]),
        max(batch.max_seqlen, longest),
        None if batch.ids is None else F.pad(batch.ids, (0, texts - count)),
    )
