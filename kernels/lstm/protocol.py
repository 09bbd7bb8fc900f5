"""What a backend of the LSTM implements: one layer, both directions, forward and backward."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class LayerWeights(NamedTuple):
    """One layer's weights, a list entry per direction (forward, then reverse); an absent kind is an empty list.

    Gates are stacked in nn.LSTM's order i, f, g, o. H is hidden_size, P is proj_size, or H without a projection.
    """

    w_ih: list[Tensor]  # (4H, I)
    w_hh: list[Tensor]  # (4H, P)
    b_ih: list[Tensor]  # (4H,)
    b_hh: list[Tensor]  # (4H,)
    w_hr: list[Tensor]  # (P, H)

    @property
    def directions(self) -> int:
        return len(self.w_ih)

    @property
    def input_size(self) -> int:
        return self.w_ih[0].shape[1]

    @property
    def hidden_size(self) -> int:
        return self.w_ih[0].shape[0] // 4

    @property
    def output_size(self) -> int:
        """P: the width of one direction's output and of what is fed back."""
        return self.w_hh[0].shape[1]


class LayerInputs(NamedTuple):
    """Everything one layer reads. x, the weights and h0 share one dtype; c0 has `cell_dtype(dtype)`.

    The state of a sequence b of length n starts at h0[d, b], c0[d, b] (zero if None). Direction 0 reads rows
    cu_seqlens[b] + t, direction 1 rows cu_seqlens[b + 1] - 1 - t, for t = 0 ... n - 1.
    `zone_h` and `zone_c` are zoneout's weight of the old state, broadcastable to (tokens, D * P) and (tokens, D * H).
    With `ids`, x is a table of embeddings, (rows, I), in float32 or the weights' dtype, and token t reads row ids[t].
    With `pool`, "max" or "mean", y is pooled over each sequence as `segment_pool` does.
    """

    x: Tensor  # (tokens, I)
    cu_seqlens: Tensor  # int32, (B + 1,)
    max_seqlen: int
    weights: LayerWeights
    h0: Tensor | None = None  # (D, B, P)
    c0: Tensor | None = None  # (D, B, H)
    zone_h: Tensor | None = None
    zone_c: Tensor | None = None
    resets: Tensor | None = None  # bool, (tokens,), a new segment starts; a backend finds it applied (see segments.py)
    ids: Tensor | None = None  # int32, (tokens,); a backend finds it applied unless FUSES (see composed.py)
    pool: str = ""  # the same

    @property
    def batch_size(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def tokens(self) -> int:
        return (self.x if self.ids is None else self.ids).shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.w_ih[0].dtype


class LayerOutputs(NamedTuple):
    """Direction d lies in columns d * P to (d + 1) * P of y, and d * H to (d + 1) * H of cells.

    A sequence of length 0 returns its h0 and c0. c_n and cells have `cell_dtype(dtype)`.
    """

    y: Tensor  # (tokens, D * P); (0,) with pooling
    h_n: Tensor  # (D, B, P)
    c_n: Tensor  # (D, B, H)
    cells: Tensor  # (tokens, D * H) if asked for, else (0,)
    saved: list[Tensor]  # what the backend's own backward needs, as `saved_like` describes it; [] if not asked for
    pooled: Tensor | None = None  # (B, D * P) with pooling


class OutputGrads(NamedTuple):
    """The gradients of y, h_n, c_n, cells and pooled; None stands for zero."""

    y: Tensor | None
    h_n: Tensor | None
    c_n: Tensor | None
    cells: Tensor | None
    pooled: Tensor | None = None


class InputGrads(NamedTuple):
    """The gradients, in the dtype of what they belong to; None, or an empty list, where there is nothing to return.

    `bias` is the gradient of b_ih and of b_hh alike.
    """

    x: Tensor | None
    w_ih: list[Tensor]
    w_hh: list[Tensor]
    bias: list[Tensor]
    w_hr: list[Tensor]
    h0: Tensor | None
    c0: Tensor | None


class Implementation(Protocol):
    """A backend: a module with these functions, registered with `dispatch.register("lstm", name, module, ...)`.

    One that serves `ids` and `pool` itself also has FUSES = True.
    """

    def forward(self, inputs: LayerInputs, return_cells: bool, save: bool) -> LayerOutputs: ...

    def backward(
        self,
        grads: OutputGrads,
        inputs: LayerInputs,
        y: Tensor,
        saved: list[Tensor],
        need_x: bool,
        need_weights: bool,
    ) -> InputGrads:
        """Gradients of h0 and c0 are returned whenever h0 and c0 are given. `grads` must not be written to."""
        ...

    def saved_like(self, inputs: LayerInputs, return_cells: bool) -> list[Tensor]:
        """Empty tensors of the shapes and dtypes of `saved`; called with fake tensors when a graph is traced.

        Shapes depend on the number of tokens, never on the number of sequences: resets change the latter.
        """
        ...


def cell_dtype(dtype: torch.dtype) -> torch.dtype:
    """The cell state's dtype: float32, whatever the dtype of inputs and outputs, save for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
