"""What a pooling backend is asked to compute."""

from typing import Protocol

import torch
from torch import Tensor

from penstock.kernels.precision import accumulate_dtype

MODES = ("max", "mean", "last", "attention")


def saved_shape(values: Tensor, batch_size: int, mode: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what forward saves for backward."""
    if mode == "max":
        return (batch_size, values.shape[1]), torch.int32
    if mode == "attention":
        return (values.shape[0],), accumulate_dtype(values.dtype)
    return (0,), values.dtype


class Backend(Protocol):
    """What a backend's module defines; its functions run below autograd."""

    def forward(
        self, values: Tensor, scores: Tensor | None, cu_seqlens: Tensor, mode: str, bidirectional: bool
    ) -> tuple[Tensor, Tensor]:
        """Pools values, (tokens, features), by scores, (tokens,), present exactly if the mode is "attention".

        Returns (batch, features), and what backward needs: the row of each maximum (max; any where the sequence is
        empty), the weight of each token (attention), or nothing.
        """
        ...

    def backward(
        self,
        grad_out: Tensor,
        values: Tensor | None,
        saved: Tensor,
        cu_seqlens: Tensor,
        tokens: int,
        mode: str,
        bidirectional: bool,
    ) -> tuple[Tensor, Tensor]:
        """Returns d_values, (tokens, features), in the dtype of grad_out, and d_scores, (tokens,), in that of `saved`.

        `values` is present, and d_scores is not empty, exactly if the mode is "attention".
        """
        ...

    def why_not(self, *, device_type: str, dtype: torch.dtype, mode: str, **_: object) -> str | None:
        """None, or one line saying why this backend cannot serve such a call."""
        ...

    def available(self) -> str | None:
        """None, or one line saying why this backend cannot run here at all."""
        ...
