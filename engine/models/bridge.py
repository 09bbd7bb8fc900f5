"""transformers' attention interface, served by `varlen_attention`.

A model with `attn_implementation=ATTENTION` runs on one row that holds the whole batch's tokens end to end. The bounds
of the sequences travel as the keyword arguments that transformers already has for them (`cu_seq_lens_q`, `max_length_q`
and the same for keys), so no token of one sequence sees another's. Without bounds the call fails: the library's own
fallback would be to attend to everything.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from penstock.kernels import Ragged, varlen_attention

# Not "flash", "sdpa", "flex_attention" or "a/b" anywhere in it: transformers gives names that hold these a meaning.
ATTENTION = "penstock_varlen"


def bounds(batch: Ragged) -> dict[str, Any]:
    """The keyword arguments that tell a transformers model where the sequences of its one row begin and end."""
    return {
        "cu_seq_lens_q": batch.cu_seqlens,
        "cu_seq_lens_k": batch.cu_seqlens,
        "max_length_q": batch.max_seqlen,
        "max_length_k": batch.max_seqlen,
        "example_ids": batch.ids,
    }


def positions(batch: Ragged, padding_idx: int | None = None) -> Tensor:
    """Each token's position in its own sequence, int64, (total_tokens,).

    Args:
        batch: token ids. padding_idx: None to count all tokens from 0. Otherwise, as fairseq does, only tokens other
            than this one count, from `padding_idx + 1`, and the position of this one is `padding_idx` itself.
    """
    total = batch.values.shape[0]
    if padding_idx is None:
        starts = torch.repeat_interleave(batch.cu_seqlens[:-1], batch.lengths, output_size=total)
        return torch.arange(total, device=starts.device) - starts
    counts = batch.values != padding_idx
    counted = counts.cumsum(0)
    before = F.pad(counted, (1, 0))[batch.cu_seqlens[:-1]]
    return (counted - torch.repeat_interleave(before, batch.lengths, output_size=total)) * counts + padding_idx


def first_tokens(hidden: Tensor, bounds: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The hidden states of each sequence's first token, and the bounds with which they attend to all of its tokens.

    Args:
        hidden: (total_tokens, width).
        bounds: the keyword arguments that a layer receives, the bounds among them.
    Returns:
        (batch, width), where an empty sequence has some other's token; and keyword arguments for `attend`.
    """
    cu_seqlens = bounds["cu_seq_lens_k"]
    first = hidden[cu_seqlens[:-1].clamp(max=hidden.shape[0] - 1)]
    one_each = torch.arange(cu_seqlens.shape[0], dtype=torch.int32, device=cu_seqlens.device)
    names = ("cu_seq_lens_k", "max_length_k", "example_ids")
    return first, {"cu_seq_lens_q": one_each, "max_length_q": 1, **{name: bounds[name] for name in names}}


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    example_ids: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Attention within each sequence, of (tokens, heads, head_dim) tensors.

    Raises:
        ValueError: there is a mask, or the bounds are missing.
    """
    if attention_mask is not None:
        raise ValueError(f"{ATTENTION} attention takes no attention_mask: give the sequences' bounds")
    if cu_seq_lens_q is None or cu_seq_lens_k is None or max_length_q is None or max_length_k is None:
        raise ValueError(
            f"{ATTENTION} attention needs the sequences' bounds: cu_seq_lens_q, cu_seq_lens_k, max_length_q and "
            "max_length_k; without them every token would attend to the whole batch"
        )
    # What arrives for a local layer is the number of keys to either side plus one (checked in transformers 5.23).
    side = -1 if sliding_window is None else sliding_window - 1
    return varlen_attention(
        q,
        k,
        v,
        cu_seq_lens_q,
        cu_seq_lens_k,
        max_length_q,
        max_length_k,
        dropout_p=dropout,
        softmax_scale=scaling,
        window=(side, side),
        ids=example_ids,
    )


def _interface(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """From query, key and value, (1, heads, tokens, head_dim), to (1, tokens, heads, head_dim)."""
    if query.shape[0] != 1:
        raise ValueError(
            f"{ATTENTION} attention takes all sequences in one row and needs the sequences' bounds, got a batch of "
            f"{query.shape[0]} rows"
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(q, k, v, attention_mask, **kwargs)[None], None


def _mask(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """No mask is made; one that was given is passed on, for `attend` to refuse."""
    return attention_mask


AttentionInterface.register(ATTENTION, _interface)
AttentionMaskInterface.register(ATTENTION, _mask)
