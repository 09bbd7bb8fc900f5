"""What an attention backend is asked to compute."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """Everything about one call but the tensors that have gradients.

    Attributes:
        cu_seqlens_q, cu_seqlens_k: int32, (batch + 1,), checked against the token counts.
        max_seqlen_q, max_seqlen_k: upper bounds of the lengths, on the host.
        scale: multiplies q k^T.
        window_left, window_right: with `shift = length_k - length_q`, query i sees the keys from
            i + shift - window_left to i + shift + window_right; -1 is unbounded. Causal is window_right = 0.
        dropout_p: probability of dropping an attention weight; 0 whenever it rounds to nothing.
        seed: int64 scalar, ids: int64, (batch,), on the device of q; both present exactly if dropout_p > 0.
            Head h drops the weight of key j for query i of example b by the rule of `philox.py` with
            example id = ids[b], stream = h, position = i, unit = j (i and j count from their sequence's start).
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    scale: float
    window_left: int = -1
    window_right: int = -1
    dropout_p: float = 0.0
    seed: Tensor | None = None
    ids: Tensor | None = None

    @property
    def batch_size(self) -> int:
        return self.cu_seqlens_q.shape[0] - 1


class Backend(Protocol):
    """What a backend's module defines; its functions run below autograd and with autocast off.

    q (total_q, heads, head_dim) and k, v (total_k, kv_heads, head_dim) have one dtype and any strides, except that the
    last one is 1. Query head h reads kv head h // (heads // kv_heads).
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        """Returns out, contiguous and shaped as q, and lse, (heads, total_q), in `lse_dtype`.

        lse is the natural logarithm of the sum of exp(scale * q k^T) over the visible keys, before dropout. A query
        that sees no key has out 0 and lse +inf, so that exp(score - lse) is 0.
        """
        ...

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, problem: Problem
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns dq, dk, dv, contiguous, in the dtype of q. `grad_out` is contiguous."""
        ...

    def why_not(self, *, device_type: str, dtype: torch.dtype, head_dim: int, dropout: bool, **_: object) -> str | None:
        """None, or one line saying why this backend cannot serve such a call."""
        ...

    def available(self) -> str | None:
        """None, or one line saying why this backend cannot run here at all."""
        ...


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the logsumexp, and of the arithmetic: float32, or float64 for float64 input."""
    return torch.float64 if dtype == torch.float64 else torch.float32
