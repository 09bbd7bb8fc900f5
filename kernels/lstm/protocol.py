"""What a backend of the LSTM implements, one layer with both directions, and what several of them share."""

from typing import Any, NamedTuple, Protocol

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
    """Everything one layer reads. x, the weights and h0 share one dtype; c0 has `accumulate_dtype(dtype)`.

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
    resets: Tensor | None = None  # bool, (tokens,), a new segment starts; a backend finds it applied (see wrappers.py)
    ids: Tensor | None = None  # int32, (tokens,); a backend finds it applied unless FUSES (see wrappers.py)
    pool: str = ""  # the same

    @property
    def batch_size(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def tokens(self) -> int:
        return (self.x if self.ids is None else self.ids).shape[0]

    @property
    def steps(self) -> int:
        """As max_seqlen, which a caller may have set far above the lengths, while each step may be a launch."""
        return min(self.max_seqlen, self.tokens)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.w_ih[0].dtype


class LayerOutputs(NamedTuple):
    """Direction d lies in columns d * P to (d + 1) * P of y, and d * H to (d + 1) * H of cells.

    A sequence of length 0 returns its h0 and c0. c_n and cells have `accumulate_dtype(dtype)`.
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


def why_no_kernel(
    device: str,
    dtypes: tuple[torch.dtype, ...],
    *,
    device_type: str,
    dtype: torch.dtype,
    proj_size: int = 0,
    needs: tuple[str, ...] = (),
    **_: Any,
) -> str | None:
    """None if a recurrent kernel for a device and some dtypes can serve a call with these facts, else the reason."""
    if device_type != device:
        return f"tensors are on {device_type}"
    if dtype not in dtypes:
        return f"dtype is {dtype}, not {' or '.join(str(each).removeprefix('torch.') for each in dtypes)}"
    if proj_size:
        return "it has no projection (proj_size)"
    if "zoneout" in needs:
        return "it has no zoneout"
    return None


def initial_state(state: Tensor | None, inputs: LayerInputs, dtype: torch.dtype) -> Tensor:
    """A (D, B, H) buffer that holds `state`, or zeros, and is nobody else's."""
    shape = inputs.weights.directions, inputs.batch_size, inputs.weights.hidden_size
    if state is None:
        return inputs.x.new_zeros(shape, dtype=dtype)
    return state.to(dtype, copy=True, memory_format=torch.contiguous_format)


def fed_back(y: Tensor, inputs: LayerInputs) -> list[Tensor]:
    """Per direction: what each token was fed as h, (tokens, H)."""
    tokens, hidden, cu_seqlens = inputs.tokens, inputs.weights.hidden_size, inputs.cu_seqlens
    rows = torch.arange(tokens, device=y.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens[1:], rows, right=True).clamp(max=max(inputs.batch_size - 1, 0))
    out = []
    for d in range(inputs.weights.directions):
        begins = rows == (cu_seqlens[sequence] if d == 0 else cu_seqlens[sequence + 1] - 1)
        shifted = y[:, d * hidden : (d + 1) * hidden].roll(-1 if d else 1, 0)
        first = torch.zeros_like(shifted) if inputs.h0 is None else inputs.h0[d, sequence]
        out.append(torch.where(begins[:, None], first, shifted))
    return out


def into_h0(dgates: Tensor, w_hh: Tensor, dh_n: Tensor, inputs: LayerInputs) -> Tensor:
    """The gradient of h0 from each sequence's first step, float32; an empty sequence passes dh_n on.

    dgates is (tokens, D * 4H), w_hh (D, 4H, H) with its rows in the order of dgates' columns, dh_n (D, B, H).
    """
    tokens, width, starts, ends = dgates.shape[0], w_hh.shape[1], inputs.cu_seqlens[:-1], inputs.cu_seqlens[1:]
    out = []
    for d, rows in enumerate((starts, ends - 1)[: w_hh.shape[0]]):
        first = dgates[rows.long().clamp(0, tokens - 1), d * width : (d + 1) * width]
        out.append(torch.where((ends > starts)[:, None], (first @ w_hh[d]).float(), dh_n[d]))
    return torch.stack(out)


def saved_like(inputs: LayerInputs, return_cells: bool) -> list[Tensor]:
    """What recurrent kernels save: gates, cells and, if they pool, y and the places of the maxima."""
    tokens, weights = inputs.tokens, inputs.weights
    width = weights.directions * weights.hidden_size
    like = weights.w_ih[0]
    saved = [like.new_empty(tokens, 4 * width), like.new_empty(tokens, width, dtype=torch.float32)]
    if inputs.pool:
        saved.append(like.new_empty(tokens, width))
    if inputs.pool == "max":
        saved.append(like.new_empty(inputs.batch_size, width, dtype=torch.int32))
    return saved
