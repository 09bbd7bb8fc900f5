"""What pretraining hides of a text: places drawn by the dropout rule, so that they depend on a seed, the text's row and
the token's position alone, not on the batch around it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from penstock.kernels import Ragged
from penstock.kernels.dropout import keep_mask
from penstock.kernels.philox import dropout_bits

# Streams beyond those that models drop by.
_PLACES_STREAM, _REPLACEMENT_STREAM = 6 << 16, 7 << 16
_ROUND = 32  # as with an encoder's tokens: few shapes of the products that follow


class Places(NamedTuple):
    """Some of a batch's tokens, rounded up to few numbers of them.

    Attributes:
        rows: int64 (places,): their rows in the batch's values, ascending, then fillers.
        number: int64 scalar: how many are no fillers.
    """

    rows: Tensor
    number: Tensor

    def targets(self, values: Tensor, ignored: int) -> Tensor:
        """int64 (places,): the tokens that stand there; `ignored` for fillers."""
        place = torch.arange(len(self.rows), device=values.device)
        return values[self.rows].long().masked_fill(place >= self.number, ignored)


def drawn(batch: Ragged, share: float, seed: Tensor, special: Tensor) -> Tensor:
    """bool (total_tokens,): each token, but for special ones, with probability `share`.

    Args:
        batch: of token ids. seed: int64 scalar. special: bool (vocab_size,).
    """
    tokens = batch.values.shape[0]
    kept = keep_mask(batch.cu_seqlens, tokens, share, seed, _PLACES_STREAM, batch.ids, 1)[:, 0]
    return ~kept & ~special[batch.values]


def places_of(chosen: Tensor) -> Places:
    """The places that are True in a bool tensor, (total_tokens,), of one token at least."""
    rows = chosen.nonzero()[:, 0]
    count = rows.shape[0]
    filler = rows.new_zeros(-count % _ROUND if count else _ROUND)
    return Places(torch.cat([rows, filler]), torch.tensor(count, device=rows.device))


def replaced(batch: Ragged, places: Tensor, seed: Tensor, cumulative: Tensor) -> Tensor:
    """int32 (total_tokens,): the tokens, those at `places` drawn from a distribution.

    Args:
        places: int64 (places,). cumulative: float64 (vocab_size,): sums of the tokens' probabilities, up to 1.
    """
    sequence = torch.searchsorted(batch.cu_seqlens[1:].long(), places, right=True)
    position = places - batch.cu_seqlens[sequence]
    ids = sequence if batch.ids is None else batch.ids[sequence]
    low, high = dropout_bits(seed, ids, position, _REPLACEMENT_STREAM, 2).double().unbind(1)
    drawn = torch.searchsorted(cumulative, (high * 65536 + low + 0.5) / 2**32, right=True)
    return batch.values.index_copy(0, places, drawn.to(batch.values.dtype))
