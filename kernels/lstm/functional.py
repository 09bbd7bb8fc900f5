"""The LSTM as a function of ragged input: layers, directions, dropout."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penstock.kernels import checks, dispatch
from penstock.kernels.autocast import autocast_dtype, cast
from penstock.kernels.dropout import dropout as ragged_dropout
from penstock.kernels.dropout import keep_mask
from penstock.kernels.lstm import ops
from penstock.kernels.lstm.protocol import LayerInputs, LayerWeights
from penstock.kernels.philox import new_seed
from penstock.kernels.precision import accumulate_dtype
from penstock.kernels.ragged import check_cu_seqlens_form

if TYPE_CHECKING:
    from penstock.kernels.lstm.packed import PackedLayers

# dropout of a layer's output has its layer as its stream; zoneout's streams lie beyond
_ZONE_H_STREAM, _ZONE_C_STREAM = 1 << 16, 2 << 16


def lstm(
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    weights: Sequence[LayerWeights],
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    dropout: float = 0.0,
    variational: bool = False,
    zoneout: tuple[float, float] = (0.0, 0.0),
    training: bool = True,
    resets: Tensor | None = None,
    return_cells: bool = False,
    ids: Tensor | None = None,
    seed: Tensor | None = None,
    embeddings: Tensor | None = None,
    pooling: str | None = None,
    packed: "PackedLayers | None" = None,
) -> tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Runs a stack of LSTM layers over a ragged batch.

    With L layers, D directions, H = hidden size and P = projection size (or H):

    Args:
        x: (tokens, I), the sequences end to end; with `embeddings`, int32 or int64, (tokens,), rows of it.
        cu_seqlens: int32, (B + 1,), sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1]; lengths of 0 are allowed.
        max_seqlen: an upper bound of the lengths.
        weights: one LayerWeights per layer, all in x's dtype (under autocast they are cast as x is).
        h0: (L * D, B, P), x's dtype; zero if None. c0: (L * D, B, H), float32 or x's dtype; zero if None.
        dropout: probability of dropping an output of every layer but the last, if `training`.
        variational: one dropout mask per sequence, the same at each of its tokens (Gal & Ghahramani, NeurIPS 2016).
        zoneout: probabilities of keeping the old h and the old c (Krueger et al., ICLR 2017); their expectations apply
            if not `training`.
        resets: bool, (tokens,), True where a new segment starts: no state crosses this border in either direction;
            dropout still counts positions from the sequence's start.
        return_cells: also return every cell state.
        ids: int64, (B,), names the examples for dropout; their places in the batch if None.
        seed: int64 scalar for dropout and zoneout; drawn from torch's generator if None.
        embeddings: (rows, I), float32 or the weights' dtype, a table in which x looks up its rows. The layer then
            projects each distinct row once, however often it occurs, and the gradient is the table's, dense.
        pooling: "max" or "mean", to return y pooled over each sequence, as `segment_pool` does.
        packed: the weights as `LSTM.prepare_inference` keeps them; `weights` is then `packed.weights`.

    Returns:
        y (tokens, D * P), or (B, D * P) with `pooling`, in x's dtype (the weights', with `embeddings`), h_n
        (L * D, B, P) in the same, c_n (L * D, B, H) in float32 (float64 for float64) and, with `return_cells`, a list
        of L tensors (tokens, D * H) in c_n's dtype.

    Raises:
        ValueError: shapes or devices disagree, a probability is outside [0, 1], or cu_seqlens is malformed (checked on
            the CPU, elsewhere only with PENSTOCK_DEBUG=1).
        TypeError: dtypes disagree.
        IndexError: x holds what is not a row of `embeddings`, on the CPU.
    """
    floats = x if embeddings is None else embeddings
    lowered = autocast_dtype(floats)
    if lowered is not None:
        x, h0 = x if embeddings is not None else cast(x, lowered), cast(h0, lowered)
        if packed is None:
            weights = [LayerWeights(*([cast(w, lowered) for w in kind] for kind in layer)) for layer in weights]
    if pooling not in (None, "max", "mean"):
        raise ValueError(f"pooling must be None, 'max' or 'mean', got {pooling!r}")
    words = None
    if embeddings is not None:
        words = _check_ids(x, embeddings, weights)
        x = embeddings
    dropout = checks.probability("dropout", dropout)
    if len(zoneout) != 2:
        raise ValueError(f"zoneout must be two probabilities, got {zoneout}")
    zoneout = checks.probability("zoneout", zoneout[0]), checks.probability("zoneout", zoneout[1])
    max_seqlen = checks.integer("max_seqlen", max_seqlen, 0)
    checks.seed(seed, x.device)
    _check(x, words, cu_seqlens, weights, h0, c0, resets, ids)
    call_dtype = weights[0].w_ih[0].dtype
    if packed is not None and packed.quantised and h0 is not None and not bool((h0.abs() <= 1).all()):
        raise ValueError("h0 must lie in [-1, 1], as every h does, for weights in int8")
    if packed is not None and packed.dtype != call_dtype:
        weights = packed.computed
        x, h0 = x if embeddings is not None else cast(x, packed.dtype), cast(h0, packed.dtype)
    if c0 is not None:
        c0 = c0.to(accumulate_dtype(weights[0].w_ih[0].dtype))
    random = training and (any(zoneout) or (dropout > 0 and len(weights) > 1))
    if random and seed is None:
        seed = new_seed(x.device)

    directions = weights[0].directions
    tensors = [x, *(w for layer in weights for kind in layer for w in kind), h0, c0]
    save = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    final_h, final_c, cells = [], [], []
    for layer, layer_weights in enumerate(weights):
        rows = slice(layer * directions, (layer + 1) * directions)
        if layer and training and dropout > 0 and seed is not None:
            x = ragged_dropout(x, cu_seqlens, dropout, seed, layer - 1, ids, per_sequence=variational)
        inputs = LayerInputs(
            x,
            cu_seqlens,
            max_seqlen,
            layer_weights,
            h0=None if h0 is None else h0[rows],
            c0=None if c0 is None else c0[rows],
            resets=resets,
            ids=words if layer == 0 else None,
            pool=pooling if pooling and layer == len(weights) - 1 else "",
        )
        if any(zoneout):
            inputs = _with_zoneout(inputs, zoneout, seed if training else None, layer, ids)
        if packed is None:
            x, h_n, c_n, layer_cells = ops.lstm_layer(inputs, return_cells, save, _choose(inputs, return_cells))
        else:
            x, h_n, c_n, layer_cells = ops.packed_layer(inputs, return_cells, packed.layers[layer])
        final_h.append(h_n)
        final_c.append(c_n)
        cells.append(layer_cells)
    h_n, c_n = (states[0] if len(states) == 1 else torch.cat(states) for states in (final_h, final_c))
    if packed is not None:
        x, h_n = cast(x, call_dtype), cast(h_n, call_dtype)
    return (x, h_n, c_n, cells) if return_cells else (x, h_n, c_n)


def _with_zoneout(
    inputs: LayerInputs, probabilities: tuple[float, float], seed: Tensor | None, layer: int, ids: Tensor | None
) -> LayerInputs:
    """The weights of the old states: 0 or 1 as drawn with the seed, or their expectation without one."""

    def weight(p: float, stream: int, width: int) -> Tensor | None:
        if not p:
            return None
        if seed is None:
            return inputs.x.new_full((1, 1), p, dtype=inputs.dtype)
        kept = keep_mask(inputs.cu_seqlens, inputs.tokens, p, seed, stream + layer, ids, width)
        return (~kept).to(inputs.dtype)

    weights = inputs.weights
    return inputs._replace(
        zone_h=weight(probabilities[0], _ZONE_H_STREAM, weights.directions * weights.output_size),
        zone_c=weight(probabilities[1], _ZONE_C_STREAM, weights.directions * weights.hidden_size),
    )


def _choose(inputs: LayerInputs, return_cells: bool) -> str:
    zoneout = inputs.zone_h is not None or inputs.zone_c is not None
    weights = inputs.weights
    return dispatch.choose(
        "lstm",
        device_type=inputs.x.device.type,
        dtype=inputs.dtype,
        input_size=weights.input_size,
        hidden_size=weights.hidden_size,
        proj_size=weights.output_size if weights.w_hr else 0,
        needs=("zoneout",) * zoneout + ("cells",) * return_cells,
    )


def _check_ids(x: Tensor, embeddings: Tensor, weights: Sequence[LayerWeights]) -> Tensor:
    """The ids as the layer takes them, int32."""
    if x.ndim != 1:
        raise ValueError(f"x must be (tokens,) with embeddings, got shape {tuple(x.shape)}")
    if x.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"x must be int32 or int64 with embeddings, got {x.dtype}")
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must be (rows, input size), got shape {tuple(embeddings.shape)}")
    wanted = [torch.float32, *(weight.dtype for layer in weights[:1] for weight in layer.w_ih)]
    if embeddings.dtype not in wanted:
        raise TypeError(f"embeddings must be {_either(wanted[:2])}, got {embeddings.dtype}")
    if x.device != embeddings.device:
        raise ValueError(f"x is on {x.device}, embeddings on {embeddings.device}")
    return checks.as_int32(x)


def _check(
    x: Tensor,
    words: Tensor | None,
    cu_seqlens: Tensor,
    weights: Sequence[LayerWeights],
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    ids: Tensor | None,
) -> None:
    if x.ndim != 2:
        raise ValueError(f"x must be (tokens, input size), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating dtype, got {x.dtype}")
    check_cu_seqlens_form("cu_seqlens", cu_seqlens, x.device)
    if not weights:
        raise ValueError("weights must hold at least one layer")
    directions, batch = weights[0].directions, cu_seqlens.shape[0] - 1
    if directions not in (1, 2):
        raise ValueError(f"weights must have one or two directions, got {directions}")
    dtype, tokens = (x.dtype, x.shape[0]) if words is None else (weights[0].w_ih[0].dtype, words.shape[0])
    hidden, output = weights[0].hidden_size, weights[0].output_size
    width, device = x.shape[1], x.device
    for layer, of_layer in enumerate(weights):
        if hidden == 0 or width == 0 or output == 0:
            raise ValueError(f"layer {layer} has input size {width}, hidden size {hidden}: neither may be 0")
        expected = (4 * hidden, width), (4 * hidden, output), (4 * hidden,), (4 * hidden,), (output, hidden)
        if not of_layer.w_hr and output != hidden:
            raise ValueError(f"weights[{layer}].w_hh takes {output} units of {hidden}, but there is no w_hr")
        if len(of_layer.b_ih) != len(of_layer.b_hh):
            raise ValueError(f"weights[{layer}] must have both b_ih and b_hh or neither")
        for kind, tensors, shape in zip(LayerWeights._fields, of_layer, expected, strict=True):
            if len(tensors) != directions and (tensors or kind in ("w_ih", "w_hh")):
                raise ValueError(f"weights[{layer}].{kind} has {len(tensors)} entries for {directions} directions")
            for tensor in tensors:
                if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
                    _check_tensor(f"weights[{layer}].{kind}", tensor, shape, x, (dtype,))
        width = directions * output
    states = len(weights) * directions
    if h0 is not None:
        _check_tensor("h0", h0, (states, batch, output), x, (dtype,))
    if c0 is not None:
        _check_tensor("c0", c0, (states, batch, hidden), x, (dtype, accumulate_dtype(dtype)))
    if resets is not None:
        _check_tensor("resets", resets, (tokens,), x, (torch.bool,))
    checks.ids(ids, batch, device)


def _check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], x: Tensor, dtypes: tuple[torch.dtype, ...]
) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes:
        why = f": x is {x.dtype}, convert either with .to()" if x.dtype in dtypes else ""
        raise TypeError(f"{name} must be {_either(dtypes)}, got {tensor.dtype}{why}")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")


def _either(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(dict.fromkeys(map(str, dtypes)))
