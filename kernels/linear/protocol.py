"""What a backend of a linear layer is asked to compute: the gradient of its weight."""

from typing import Protocol

import torch
from torch import Tensor


class Backend(Protocol):
    """What a backend's module defines; its functions run below autograd and with autocast off."""

    def weight_gradient(self, grad_out: Tensor, x: Tensor) -> Tensor:
        """grad_out^T x, (out_features, in_features), in `accumulate_dtype`.

        Args:
            grad_out: (tokens, out_features), dense, as x, (tokens, in_features), and in its dtype.
        """
        ...

    def why_not(self, *, device_type: str, dtype: torch.dtype, **_: object) -> str | None:
        """None, or one line saying why this backend cannot serve such a call."""
        ...

    def available(self) -> str | None:
        """None, or one line saying why this backend cannot run here at all."""
        ...
