"""LSTM layers to try backends on, and the float64 truth to measure them against."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import kernel_cases
import torch
from torch import Tensor

from penstock.kernels import dispatch
from penstock.kernels.lstm import ops, reference
from penstock.kernels.lstm.protocol import LayerInputs, LayerWeights
from penstock.kernels.precision import accumulate_dtype

# bounds of ||y - r|| / ||r|| against float64: of outputs, of gradients
BOUNDS = {
    torch.float64: (1e-12, 1e-12),
    **{dtype: (bound, bound) for dtype, bound in kernel_cases.BOUND.items()},
    torch.bfloat16: (1e-2, 2e-2),
}

# what runs here by default, besides the reference
BACKENDS = [name for operation, name, reason in dispatch.status() if operation == "lstm" and reason is None][:-1]


def layer(
    lengths: list[int],
    input_size: int,
    hidden_size: int,
    directions: int = 2,
    *,
    proj_size: int = 0,
    bias: bool = True,
    states: bool = True,
    zoneout: bool = False,
    resets: bool = False,
    vocabulary: int = 0,
    pool: str = "",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> LayerInputs:
    """One layer's inputs, initialised as nn.LSTM does, in float64 but representable in `dtype`.

    With a vocabulary, x is the table of that many embeddings.
    """
    random = torch.Generator().manual_seed(seed)
    batch, tokens, output = len(lengths), sum(lengths), proj_size or hidden_size

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=random, dtype=torch.float64) * scale).to(dtype).double()

    def uniform(*shape: int) -> Tensor:
        values = torch.rand(*shape, generator=random, dtype=torch.float64) * 2 - 1
        return (values * hidden_size**-0.5).to(dtype).double()

    def each(*shape: int, wanted: bool = True) -> list[Tensor]:
        return [uniform(*shape) for _ in range(directions)] if wanted else []

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random) < 0.3

    weights = LayerWeights(
        each(4 * hidden_size, input_size),
        each(4 * hidden_size, output),
        each(4 * hidden_size, wanted=bias),
        each(4 * hidden_size, wanted=bias),
        each(output, hidden_size, wanted=proj_size > 0),
    )
    cu_seqlens = torch.zeros(batch + 1, dtype=torch.int32)
    cu_seqlens[1:] = torch.tensor(lengths).cumsum(0)
    return LayerInputs(
        normal(vocabulary or tokens, input_size),
        cu_seqlens,
        max(lengths, default=0),
        weights,
        normal(directions, batch, output, scale=0.5) if states else None,
        normal(directions, batch, hidden_size, scale=0.5) if states else None,
        chance(tokens, directions * output).double() if zoneout else None,
        chance(tokens, directions * hidden_size).double() if zoneout else None,
        chance(tokens) if resets else None,
        torch.randint(vocabulary, (tokens,), generator=random, dtype=torch.int32) if vocabulary else None,
        pool,
    )


def floats(inputs: LayerInputs) -> list[Tensor]:
    """What can have a gradient, in a fixed order."""
    states = [state for state in (inputs.h0, inputs.c0) if state is not None]
    return [inputs.x, *(weight for kind in inputs.weights for weight in kind), *states]


def recorded(inputs: LayerInputs, dtype: torch.dtype) -> LayerInputs:
    """Fresh leaves of `dtype` that require gradients."""

    def leaf(tensor: Tensor | None, to: torch.dtype = dtype) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(to).requires_grad_()

    return inputs._replace(
        x=leaf(inputs.x),
        weights=LayerWeights(*([leaf(weight) for weight in kind] for kind in inputs.weights)),
        h0=leaf(inputs.h0),
        c0=leaf(inputs.c0, accumulate_dtype(dtype)),
        zone_h=None if inputs.zone_h is None else inputs.zone_h.to(dtype),
        zone_c=None if inputs.zone_c is None else inputs.zone_c.to(dtype),
    )


def cotangents(inputs: LayerInputs, seed: int = 1) -> list[Tensor]:
    """Random gradients, in float64, of y (or what is pooled of it), h_n, c_n and cells."""
    random = torch.Generator().manual_seed(seed)
    weights, tokens, batch = inputs.weights, inputs.tokens, inputs.batch_size
    directions, output, hidden = weights.directions, weights.output_size, weights.hidden_size
    rows = batch if inputs.pool else tokens
    shapes = (rows, directions * output), (directions, batch, output), (directions, batch, hidden)
    shapes = (*shapes, (tokens, directions * hidden))
    return [torch.randn(*shape, generator=random, dtype=torch.float64).bfloat16().double() for shape in shapes]


def truth(inputs: LayerInputs, grads: list[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients by the reference, in float64."""
    copy = recorded(inputs, torch.float64)
    outputs = reference.lstm_layer(copy)
    return list(outputs), _gradients(outputs, copy, grads)


def serves(
    backend: str,
    dtype: torch.dtype,
    options: Mapping[str, Any] | None = None,
    return_cells: bool = False,
) -> bool:
    """Whether a backend serves a layer of such a dtype, which `layer(..., **options)` makes."""
    options = options or {}
    needs = [*(["zoneout"] if options.get("zoneout") else []), *(["cells"] if return_cells else [])]
    facts = {"input_size": 8, "hidden_size": 8, "proj_size": options.get("proj_size", 0), "needs": tuple(needs)}
    return kernel_cases.serves("lstm", backend, dtype=dtype, **facts)


def run(
    backend: str, inputs: LayerInputs, dtype: torch.dtype, grads: list[Tensor | None], return_cells: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients by one backend, through the operation."""
    copy = recorded(inputs, dtype)
    outputs = ops.lstm_layer(copy, return_cells, True, backend)
    return list(outputs if return_cells else outputs[:3]), _gradients(outputs, copy, grads)


def _gradients(outputs: tuple[Tensor, ...], inputs: LayerInputs, grads: list[Tensor | None]) -> list[Tensor]:
    pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
    return list(
        torch.autograd.grad(
            [out for out, _ in pairs],
            floats(inputs),
            [grad.to(out.dtype) for out, grad in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
    )


def error(found: Tensor, true: Tensor) -> float:
    """||found - true|| / ||true||, absolute where the truth is zero."""
    found, true = found.detach().double(), true.detach().double()
    return float((found - true).norm()) / (float(true.norm()) or 1.0)


def errors(found: list[Tensor], true: list[Tensor]) -> Iterator[float]:
    return (error(a, b) for a, b in zip(found, true, strict=True))


def _clear_maxima(inputs: LayerInputs, dtype: torch.dtype) -> Tensor:
    """Whether a sequence's largest output, (batch, directions * output), is still the largest after rounding.

    Of two that round to almost the same, either may get the gradient.
    """
    y, *_ = reference.lstm_layer(recorded(inputs._replace(pool=None), torch.float64))
    clear = torch.ones(inputs.batch_size, y.shape[1], dtype=torch.bool)
    bounds = inputs.cu_seqlens.tolist()
    for sequence, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if end - begin > 1:
            first, second = y[begin:end].detach().topk(2, dim=0).values
            clear[sequence] = first - second > 8 * torch.finfo(dtype).eps
    return clear


def check(backend: str, inputs: LayerInputs, dtype: torch.dtype, return_cells: bool = False) -> None:
    """Asserts that values and every gradient lie within the bounds of `dtype`."""
    grads: list[Tensor | None] = [*cotangents(inputs)]
    if not return_cells:
        grads[3] = None
    if inputs.pool == "max":
        grads[0] = grads[0] * _clear_maxima(inputs, dtype)
    outputs, gradients = run(backend, inputs, dtype, grads, return_cells)
    true_outputs, true_gradients = truth(inputs, grads)
    of_outputs, of_gradients = BOUNDS[dtype]
    for name, found in zip(("y", "h_n", "c_n", "cells"), errors(outputs, true_outputs[: len(outputs)]), strict=False):
        assert found <= of_outputs, f"{name}: error {found:.2e}"
    for place, found in enumerate(errors(gradients, true_gradients)):
        assert found <= of_gradients, f"gradient {place}: error {found:.2e}"
