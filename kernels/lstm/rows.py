"""What backends with a recurrent kernel share around it: initial states, which token was fed what, what is saved."""

import torch
from torch import Tensor

from penstock.kernels.lstm.protocol import LayerInputs


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
    """What the cpu and the cuda backend save: gates, cells and, if they pool, y and the places of the maxima."""
    tokens, weights = inputs.tokens, inputs.weights
    width = weights.directions * weights.hidden_size
    like = weights.w_ih[0]
    saved = [like.new_empty(tokens, 4 * width), like.new_empty(tokens, width, dtype=torch.float32)]
    if inputs.pool:
        saved.append(like.new_empty(tokens, width))
    if inputs.pool == "max":
        saved.append(like.new_empty(inputs.batch_size, width, dtype=torch.int32))
    return saved
