"""What a backend of the rotary position embedding is asked to compute."""

from typing import Protocol

import torch
from torch import Tensor


class Backend(Protocol):
    """What a backend's module defines; its functions run below autograd and with autocast off."""

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
        """x cos + rotate_half(x) sin for q and for k, with rotate_half((x1, x2)) = (-x2, x1) on the halves of a head.

        Transposed, which takes gradients back: x cos + rotate_half^T(x sin), and rotate_half^T is -rotate_half.

        Args:
            q: (tokens, heads, head_dim), the last dimension dense; k, of its dtype, may have another number of heads.
            cos, sin: (tokens, head_dim), dense, in `accumulate_dtype`.
        Returns:
            q and k rotated, dense, rounded once to their dtype.
        """
        ...

    def why_not(self, *, device_type: str, dtype: torch.dtype, **_: object) -> str | None:
        """None, or one line saying why this backend cannot serve such a call."""
        ...

    def available(self) -> str | None:
        """None, or one line saying why this backend cannot run here at all."""
        ...
