"""torch's own LSTM in the place of ours, for those who have no penstock: a module, a trace, an ONNX file."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

if TYPE_CHECKING:
    from penstock.kernels.lstm.module import LSTM


def check(module: "LSTM", what: str) -> None:
    """Raises ValueError if the module, in its present mode, computes what torch.nn.LSTM cannot."""
    beyond = []
    if any(module.zoneout):
        beyond.append(f"zoneout={module.zoneout}")
    if module.training and module.weight_dropout:
        beyond.append(f"weight_dropout={module.weight_dropout} in training")
    if module.training and module.variational and module.dropout and module.num_layers > 1:
        beyond.append("variational dropout in training")
    if beyond:
        eval_first = "" if any(module.zoneout) else "; call eval() first"
        raise ValueError(f"{what} is torch.nn.LSTM, which has no {' and no '.join(beyond)}{eval_first}")


def to_torch(module: "LSTM") -> nn.LSTM:
    """A torch.nn.LSTM with copies of the module's weights; see `LSTM.to_torch`."""
    check(module, "the result of to_torch")
    weights = {name: getattr(module, name) for name in _names(module)}
    like = next(iter(weights.values()))
    stock = nn.LSTM(
        module.input_size,
        module.hidden_size,
        module.num_layers,
        module.bias,
        module.batch_first,
        float(module.dropout),
        module.bidirectional,
        module.proj_size,
        device="meta",  # no random numbers are drawn for weights that come from elsewhere
        dtype=like.dtype,
    ).to_empty(device=like.device)
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            parameter.copy_(weights[name])
            parameter.requires_grad_(weights[name].requires_grad)
    stock.flatten_parameters()
    return stock.train(module.training)


def _names(module: "LSTM") -> list[str]:
    """Names of the weights, in the order of torch's operation."""
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    kinds += ["weight_hr"] if module.proj_size else []
    return [f"{kind}_l{n}{suffix}" for n in range(module.num_layers) for suffix in _suffixes(module) for kind in kinds]


def _suffixes(module: "LSTM") -> list[str]:
    return ["", "_reverse"] if module.bidirectional else [""]


def traced(module: "LSTM", input: Any, hx: tuple[Tensor, Tensor] | None, options: dict[str, Any]) -> Any:
    """torch.nn.LSTM's forward on the weights that the module has at this moment, for torch.jit.trace."""
    check(module, "what torch.jit.trace records")
    _check_call("torch.jit.trace", input, options, PackedSequence)
    packed = isinstance(input, PackedSequence)
    x = input.data if packed else input
    unbatched = not packed and x.ndim == 2
    if unbatched:
        x = x.unsqueeze(0 if module.batch_first else 1)
        hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    if hx is None:
        batch = input.batch_sizes[0] if packed else x.size(0 if module.batch_first else 1)
        rows = module.num_layers * (2 if module.bidirectional else 1)
        output = module.proj_size or module.hidden_size
        hx = x.new_zeros(rows, batch, output), x.new_zeros(rows, batch, module.hidden_size)
    elif packed:
        hx = _permuted(hx, input.sorted_indices)
    weights = [getattr(module, name) for name in _names(module)]
    rest = weights, module.bias, module.num_layers, float(module.dropout), module.training, module.bidirectional
    if packed:
        y, h, c = torch._VF.lstm(x, input.batch_sizes, hx, *rest)
        return input._replace(data=y), _permuted((h, c), input.unsorted_indices)
    y, h, c = torch._VF.lstm(x, hx, *rest, module.batch_first)
    if unbatched:
        return y.squeeze(0 if module.batch_first else 1), (h.squeeze(1), c.squeeze(1))
    return y, (h, c)


def _permuted(states: tuple[Tensor, Tensor], order: Tensor | None) -> tuple[Tensor, Tensor]:
    return states if order is None else (states[0].index_select(1, order), states[1].index_select(1, order))


def onnx(module: "LSTM", input: Any, hx: tuple[Tensor, Tensor] | None, options: dict[str, Any]) -> Any:
    """The layers as ONNX's LSTM operator, one each, while torch.onnx.export looks on.

    Raises:
        ValueError, TypeError: the module, or this call of it, is beyond that operator.
    """
    try:
        check(module, "what torch.onnx.export writes")
        _check_call("torch.onnx.export", input, options)
        if module.proj_size:
            raise ValueError("ONNX's LSTM has no projection (proj_size)")
        if module.training and module.dropout and module.num_layers > 1:
            raise ValueError("ONNX's LSTM has no dropout between layers: call eval() before torch.onnx.export")
    except (TypeError, ValueError) as error:
        # the exporter swallows it and fails otherwise, somewhere else
        warnings.warn(f"torch.onnx.export cannot write this LSTM: {error}", stacklevel=3)
        raise
    unbatched = input.ndim == 2
    x = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if module.batch_first else input
    time, batch = x.shape[:2]
    directions, hidden = 2 if module.bidirectional else 1, module.hidden_size
    if hx is not None and unbatched:
        hx = hx[0].unsqueeze(1), hx[1].unsqueeze(1)
    final_h, final_c = [], []
    for layer in range(module.num_layers):
        bias = (
            torch.cat([_gates(module, "bias_ih", layer), _gates(module, "bias_hh", layer)], 1) if module.bias else None
        )
        rows = slice(layer * directions, (layer + 1) * directions)
        h0, c0 = (None, None) if hx is None else (state[rows] for state in hx)
        y, h_n, c_n = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            [x, _gates(module, "weight_ih", layer), _gates(module, "weight_hh", layer), bias, None, h0, c0],
            {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"},
            dtypes=[x.dtype] * 3,
            shapes=[(time, directions, batch, hidden), *[(directions, batch, hidden)] * 2],
        )
        x = y.transpose(1, 2).flatten(2)
        final_h.append(h_n)
        final_c.append(c_n)
    states = torch.cat(final_h), torch.cat(final_c)
    if unbatched:
        return x.squeeze(1), (states[0].squeeze(1), states[1].squeeze(1))
    return x.transpose(0, 1) if module.batch_first else x, states


def _gates(module: "LSTM", kind: str, layer: int) -> Tensor:
    """(directions, 4H, ...), with the gates in ONNX's order i, o, f, g."""
    each, hidden = [getattr(module, f"{kind}_l{layer}{suffix}") for suffix in _suffixes(module)], module.hidden_size
    return torch.stack([torch.cat([w[:hidden], w[3 * hidden :], w[hidden : 3 * hidden]]) for w in each])


def _check_call(tool: str, input: Any, options: dict[str, Any], *others: type) -> None:
    if not isinstance(input, (Tensor, *others)) or (isinstance(input, Tensor) and input.is_nested):
        raise TypeError(f"{tool} takes a padded input to LSTM, not a {type(input).__name__}")
    used = [name for name, value in options.items() if value is not None and value is not False]
    if used:
        raise ValueError(f"{tool} records torch's own LSTM, which has no {', '.join(used)}")
