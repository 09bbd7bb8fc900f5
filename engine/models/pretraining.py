"""What the models that learn from texts without labels share."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from penstock.kernels.philox import new_seed


class PretrainingOutput(NamedTuple):
    """
    Attributes:
        loss: float32 scalar: the sum of the losses of what the model had to tell, nats.
        correct: integer scalar: how often it was right. told: how much there was to tell.
    """

    loss: Tensor
    correct: Tensor
    told: Tensor


class Vocabulary(NamedTuple):
    """What pretraining knows of a store's tokens.

    Attributes:
        counts: int64 (vocab_size,): how often each occurs in the texts; 0 for special ones.
        special: the ids of those, which are neither hidden nor put in the place of others.
        mask_token_id: what stands where a token is hidden; None for a tokenizer that has none.
    """

    counts: np.ndarray
    special: Sequence[int]
    mask_token_id: int | None


def corruption_seed(training: bool, device: torch.device) -> Tensor:
    """int64 scalar: in training from torch's generator, else always the same: evaluations hide the same tokens."""
    return new_seed(device) if training else torch.zeros((), dtype=torch.int64, device=device)
