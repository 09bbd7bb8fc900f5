"""The reference against torch's own LSTM, against finite differences, and against its definition."""

import lstm_cases as cases
import pytest
import torch
from torch import nn

from penstock.kernels.lstm import ops, reference
from penstock.kernels.lstm.protocol import LayerInputs, LayerWeights

LENGTHS = [2, 0, 3]


def library(inputs: LayerInputs) -> nn.LSTM:
    weights = inputs.weights
    module = nn.LSTM(
        weights.input_size,
        weights.hidden_size,
        bias=bool(weights.b_ih),
        bidirectional=weights.directions == 2,
        proj_size=weights.output_size if weights.w_hr else 0,
        dtype=torch.float64,
    )
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    state = {
        f"{name}_l0{'_reverse' if d else ''}": weight
        for name, kind in zip(names, weights, strict=True)
        for d, weight in enumerate(kind)
    }
    module.load_state_dict(state)
    return module


@pytest.mark.parametrize("options", [{}, {"directions": 1}, {"proj_size": 3}, {"bias": False}, {"states": False}])
def test_is_nn_lstm_on_each_sequence(options: dict) -> None:
    inputs = cases.layer([3, 1, 17, 2], 4, 5, **options)
    y, h_n, c_n, cells = reference.lstm_layer(inputs)
    module = library(inputs)
    for b in range(inputs.batch_size):
        rows = slice(int(inputs.cu_seqlens[b]), int(inputs.cu_seqlens[b + 1]))
        hx = None if inputs.h0 is None else (inputs.h0[:, b].contiguous(), inputs.c0[:, b].contiguous())
        expected, (h, c) = module(inputs.x[rows], hx)
        torch.testing.assert_close(y[rows], expected)
        torch.testing.assert_close(h_n[:, b], h)
        torch.testing.assert_close(c_n[:, b], c)
        torch.testing.assert_close(cells[rows][-1, :5], c[0])


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("options", [{}, {"proj_size": 1}, {"zoneout": True, "resets": True}, {"states": False}])
def test_gradients_by_finite_differences(backend: str, options: dict) -> None:
    inputs = cases.recorded(cases.layer(LENGTHS, 2, 2, **options), torch.float64)

    def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ops.lstm_layer(with_floats(inputs, tensors), True, True, backend)

    assert torch.autograd.gradcheck(function, cases.floats(inputs), fast_mode=backend != "reference")


@pytest.mark.parametrize("options", [{"directions": 1}, {"proj_size": 1, "resets": True, "zoneout": True}])
def test_second_gradients_by_finite_differences(options: dict) -> None:
    inputs = cases.recorded(cases.layer([2, 0, 1], 1, 2, **options), torch.float64)

    def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ops.lstm_layer(with_floats(inputs, tensors), False, True, "torch")[:3]

    assert torch.autograd.gradgradcheck(function, cases.floats(inputs), fast_mode=True)


def with_floats(inputs: LayerInputs, tensors: tuple[torch.Tensor, ...]) -> LayerInputs:
    x, *rest = tensors
    kinds = []
    for kind in inputs.weights:
        kinds.append(rest[: len(kind)])
        rest = rest[len(kind) :]
    h0, c0 = rest or (None, None)
    return inputs._replace(x=x, weights=LayerWeights(*kinds), h0=h0, c0=c0)


def test_second_gradients_of_tied_weights() -> None:
    x, w, v = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 2), (8, 2), (8, 2)))
    inputs = LayerInputs(x, torch.tensor([0, 1, 4], dtype=torch.int32), 3, LayerWeights([w, w], [v, v], [], [], []))

    def function(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        tied = inputs._replace(x=x, weights=LayerWeights([w, w], [v, v], [], [], []))
        return ops.lstm_layer(tied, False, True, "torch")[0]

    assert torch.autograd.gradcheck(function, (x, w, v), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, w, v), fast_mode=True)


def test_zoneout_keeps_the_old_state_where_it_is_one() -> None:
    inputs = cases.layer([5], 3, 4, directions=1)
    ones = torch.ones(1, 1, dtype=torch.float64)
    y, h_n, c_n, _ = reference.lstm_layer(inputs._replace(zone_h=ones, zone_c=ones))
    assert torch.equal(h_n, inputs.h0)
    assert torch.equal(c_n, inputs.c0)
    assert torch.equal(y, inputs.h0[0].expand(5, 4))
    plain = reference.lstm_layer(inputs)
    zoned = reference.lstm_layer(inputs._replace(zone_h=0 * ones, zone_c=0 * ones))
    assert all(torch.equal(a, b) for a, b in zip(plain, zoned, strict=True))


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_resets_separate_sequences(backend: str) -> None:
    inputs = cases.layer([6, 0, 4], 3, 4)
    resets = torch.tensor([0, 0, 1, 0, 0, 0, 1, 0, 0, 1], dtype=torch.bool)
    whole = ops.lstm_layer(inputs._replace(resets=resets), True, False, backend)
    # segments of 2, 4; 0; 3, 1 tokens: the first token's reset discards the forward direction's initial state only
    pieces = inputs._replace(
        cu_seqlens=torch.tensor([0, 2, 6, 6, 9, 10], dtype=torch.int32),
        h0=initial(inputs.h0),
        c0=initial(inputs.c0),
    )
    y, h_n, c_n, cells = ops.lstm_layer(pieces, True, False, backend)
    torch.testing.assert_close(whole[0], y)
    torch.testing.assert_close(whole[3], cells)
    for found, segments in ((whole[1], h_n), (whole[2], c_n)):
        torch.testing.assert_close(found[0], segments[0, [1, 2, 4]])
        torch.testing.assert_close(found[1], segments[1, [0, 2, 3]])


def initial(state: torch.Tensor) -> torch.Tensor:
    out = state.new_zeros(2, 5, state.shape[2])
    out[0, 0], out[0, 2] = state[0, 0], state[0, 1]
    out[1, 1], out[1, 2], out[1, 4] = state[1, 0], state[1, 1], state[1, 2]
    return out
