"""Every backend of the LSTM layer that runs here, against the float64 reference."""

import itertools

import lstm_cases as cases
import pytest
import torch
from kernel_cases import implementations, pairwise
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from penstock.kernels import dispatch
from penstock.kernels.lstm import ops
from penstock.kernels.lstm.protocol import into_h0

BACKENDS = cases.BACKENDS
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
IMPLEMENTATIONS = implementations("lstm", BACKENDS, DTYPES, input_size=6, hidden_size=10)
SHAPES = [
    ([1], 1, 1),
    ([2, 3, 1], 3, 7),
    ([5, 5, 5], 8, 16),
    ([17, 0, 3, 1, 0, 8, 2], 5, 13),
    ([1] * 129, 4, 8),
    ([0, 0], 3, 4),
    ([], 3, 4),
    ([211, 2, 1], 7, 33),
]
OPTIONS = [
    {},
    {"directions": 1},
    {"proj_size": 3},
    {"bias": False, "states": False},
    {"zoneout": True},
    {"resets": True},
    {"resets": True, "zoneout": True, "proj_size": 2, "states": False},
    {"vocabulary": 9},
    {"pool": "max"},
    {"pool": "mean", "vocabulary": 40, "directions": 1},
    {"pool": "max", "vocabulary": 2, "resets": True},
]


@pairwise({"backend, dtype": [each for each in IMPLEMENTATIONS if each[1].itemsize > 2], "shape": SHAPES})
def test_shapes(backend: str, dtype: torch.dtype, shape: tuple[list[int], int, int]) -> None:
    cases.check(backend, cases.layer(*shape), dtype)


def is_served(backend: str, dtype: torch.dtype, options: dict, lengths: list[int]) -> bool:
    return (backend, dtype) in IMPLEMENTATIONS and cases.serves(backend, dtype, options, len(lengths) > 2)


@pairwise({"backend": BACKENDS, "dtype": DTYPES, "options": OPTIONS, "lengths": [[4, 11, 0, 1, 7], [6, 6]]}, is_served)
def test_options(backend: str, dtype: torch.dtype, options: dict, lengths: list[int]) -> None:
    cases.check(backend, cases.layer(lengths, 6, 10, dtype=dtype, **options), dtype, return_cells=len(lengths) > 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", range(4), ids=["y", "h_n", "c_n", "cells"])
def test_gradients_from_one_output(backend: str, wanted: int) -> None:
    inputs = cases.layer([3, 0, 7, 1], 4, 6)
    grads = [grad if place == wanted else None for place, grad in enumerate(cases.cotangents(inputs))]
    found = cases.run(backend, inputs, torch.float32, grads, return_cells=True)[1]
    assert max(cases.errors(found, cases.truth(inputs, grads)[1])) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", ["x", "weights", "h0", "all but c0"])
@pytest.mark.parametrize("lengths", [[3, 0, 5], [4, 4]])
def test_some_inputs_without_gradient(backend: str, frozen: str, lengths: list[int]) -> None:
    exact = cases.layer(lengths, 4, 6)
    inputs = cases.recorded(exact, torch.float32)
    weights = [w for kind in inputs.weights for w in kind]
    of = {"x": [inputs.x], "h0": [inputs.h0], "weights": weights, "all but c0": [inputs.x, inputs.h0, *weights]}
    for tensor in of[frozen]:
        tensor.requires_grad_(False)
    outputs = ops.lstm_layer(inputs, False, True, backend)
    grads = cases.cotangents(inputs)
    torch.autograd.backward(outputs[:3], [grad.float() for grad in grads[:3]])
    expected = cases.truth(exact, [*grads[:3], None])[1]
    for tensor, grad in zip(cases.floats(inputs), expected, strict=True):
        if tensor.requires_grad:
            assert cases.error(tensor.grad, grad) < 1e-5
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_worse_than_nn_lstm(backend: str, dtype: torch.dtype) -> None:
    inputs = cases.layer([60, 13, 32, 1], 32, 64, dtype=dtype, states=False)
    grads = [cases.cotangents(inputs)[0], None, None, None]
    true_outputs, true_gradients = cases.truth(inputs, grads)
    outputs, gradients = cases.run(backend, inputs, dtype, grads)

    module = nn.LSTM(32, 64, bidirectional=True).to(dtype)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    parameters = [getattr(module, name + suffix) for name in names for suffix in ("", "_reverse")]
    with torch.no_grad():
        for parameter, weight in zip(parameters, cases.floats(inputs)[1:], strict=True):
            parameter.copy_(weight)
    bounds = inputs.cu_seqlens.tolist()
    x = inputs.x.to(dtype).requires_grad_()
    packed = pack_sequence([x[a:b] for a, b in itertools.pairwise(bounds)], enforce_sorted=False)
    padded, lengths = nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)
    y = torch.cat([row[:n] for row, n in zip(padded, lengths, strict=True)])
    theirs = torch.autograd.grad(y, [x, *parameters], grads[0].to(dtype))
    assert cases.error(outputs[0], true_outputs[0]) <= 2 * cases.error(y, true_outputs[0]) + 1e-6
    for ours, other, true in zip(gradients, theirs, true_gradients, strict=True):
        assert cases.error(ours, true) <= 2 * cases.error(other, true) + 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_sequences_values_do_not_matter(backend: str, dtype: torch.dtype) -> None:
    inputs = cases.layer([9, 4, 0, 21, 4], 12, 20)
    others = torch.ones(38, dtype=torch.bool)
    others[9:13] = False
    changed = inputs._replace(x=torch.where(others[:, None], inputs.x * 3 + 1, inputs.x))
    grads = cases.cotangents(inputs)
    grads[3] = None
    results = [cases.run(backend, each, dtype, grads) for each in (inputs, changed)]
    (y, h_n, c_n), (y2, h_n2, c_n2) = (outputs for outputs, _ in results)
    assert torch.equal(y[9:13], y2[9:13])
    assert torch.equal(h_n[:, 1], h_n2[:, 1])
    assert torch.equal(c_n[:, 1], c_n2[:, 1])
    assert not torch.equal(y[:9], y2[:9])
    assert torch.equal(results[0][1][0][9:13], results[1][1][0][9:13])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_sequence(backend: str) -> None:
    inputs = cases.layer([4, 6, 3], 5, 7)
    inputs.x[5] = float("nan")
    grads = [*cases.cotangents(inputs)[:3], None]
    outputs, gradients = cases.run(backend, inputs, torch.float32, grads)
    assert outputs[0][[4, 5, 9]].isnan().any(1).all()
    assert not outputs[0][[0, 1, 2, 3, 10, 11, 12]].isnan().any()
    assert not gradients[0][[0, 1, 2, 3, 10, 11, 12]].isnan().any()
    assert gradients[1].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_of_sequences_does_not_matter(backend: str) -> None:
    lengths = [3, 8, 1, 5]
    inputs = cases.recorded(cases.layer(lengths, 4, 6), torch.float32)
    pieces = inputs.x.split(lengths)
    order = [2, 0, 3, 1]
    cu_seqlens = torch.tensor([0, 1, 4, 9, 17], dtype=torch.int32)
    permuted = inputs._replace(
        x=torch.cat([pieces[b] for b in order]),
        cu_seqlens=cu_seqlens,
        h0=inputs.h0[:, order],
        c0=inputs.c0[:, order],
    )
    y, h_n, _, _ = ops.lstm_layer(inputs, False, False, backend)
    y2, h_n2, _, _ = ops.lstm_layer(permuted, False, False, backend)
    torch.testing.assert_close(torch.cat([y.split(lengths)[b] for b in order]), y2)
    torch.testing.assert_close(h_n[:, order], h_n2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_passes_from_chunk_to_chunk(backend: str) -> None:
    inputs = cases.recorded(cases.layer([7, 7], 4, 6, directions=1), torch.float32)
    whole = ops.lstm_layer(inputs, False, False, backend)
    x = inputs.x.view(2, 7, 4)
    first = inputs._replace(
        x=x[:, :3].reshape(6, 4), cu_seqlens=torch.tensor([0, 3, 6], dtype=torch.int32), max_seqlen=3
    )
    y1, h, c, _ = ops.lstm_layer(first, False, False, backend)
    second = first._replace(
        x=x[:, 3:].reshape(8, 4), cu_seqlens=torch.tensor([0, 4, 8], dtype=torch.int32), max_seqlen=4, h0=h, c0=c
    )
    y2, h, c, _ = ops.lstm_layer(second, False, False, backend)
    y = torch.cat([y1.view(2, 3, 6), y2.view(2, 4, 6)], 1).flatten(0, 1)
    for found, expected in zip((y, h, c), whole, strict=False):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_gates(backend: str, dtype: torch.dtype) -> None:
    # a forget gate near 1 for 160 steps: a rounded cell state or a rounded activation would show
    inputs = cases.layer([160, 40], 8, 16, states=False, dtype=dtype)
    for b_ih, b_hh in zip(inputs.weights.b_ih, inputs.weights.b_hh, strict=True):
        b_ih[16:32], b_hh[16:32] = 6.0, 0.0
    cases.check(backend, inputs, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_every_time(backend: str, dtype: torch.dtype) -> None:
    inputs = cases.layer([13, 40, 0, 7, 7, 1], 24, 40)
    grads = [*cases.cotangents(inputs)[:3], None]
    outputs, gradients = cases.run(backend, inputs, dtype, grads)
    for _ in range(7):
        again, gradients_again = cases.run(backend, inputs, dtype, grads)
        assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=[] if name == "cpu" else pytest.mark.slow) for name in BACKENDS]
)
def test_more_than_65535_steps(backend: str) -> None:
    inputs = cases.layer([65_600, 3], 1, 2, directions=1, states=False)
    with torch.no_grad():
        y, h_n, _, _ = ops.lstm_layer(cases.recorded(inputs, torch.float32), False, False, backend)
    tail = inputs._replace(
        x=inputs.x[65_000:65_600], cu_seqlens=torch.tensor([0, 600], dtype=torch.int32), max_seqlen=600
    )
    expected = ops.lstm_layer(tail, False, False, "torch")[1]  # 600 steps forget where they started from
    torch.testing.assert_close(h_n[:, :1].double(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(y[65_599], h_n[0, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_saves_nothing_at_inference(backend: str) -> None:
    inputs = cases.recorded(cases.layer([3, 5], 4, 6), torch.float32)
    x, cu_seqlens, max_seqlen, weights, *states = inputs
    for save in (False, True):
        *_, saved, _ = torch.ops.penstock.lstm_layer(x, cu_seqlens, max_seqlen, *weights, *states, False, save, backend)
        like = dispatch.implementation("lstm", backend).saved_like(inputs, False) if save else []
        assert [(t.shape, t.dtype) for t in saved] == [(t.shape, t.dtype) for t in like]


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("lengths", [[3, 5], [4, 4]])
def test_gradients_under_a_dispatch_mode(backend: str, lengths: list[int]) -> None:
    inputs = cases.layer(lengths, 4, 6)
    with FlopCounterMode(display=False):
        cases.check(backend, inputs, torch.float32)


def test_gradient_of_the_initial_state_is_of_the_first_step_that_there_is() -> None:
    """The GPU's backends share it. An empty sequence has no step."""
    inputs, random = cases.layer([3, 0, 2], 4, 5), torch.Generator().manual_seed(1)
    dgates, dh_n = torch.randn(5, 2 * 20, generator=random), torch.randn(2, 3, 5, generator=random)
    w_hh = torch.randn(2, 20, 5, generator=random)
    first = {(0, 0): 0, (0, 2): 3, (1, 0): 2, (1, 2): 4}
    found = into_h0(dgates, w_hh, dh_n, inputs)
    for d, b in itertools.product(range(2), range(3)):
        expected = dgates[first[d, b], 20 * d : 20 * (d + 1)] @ w_hh[d] if (d, b) in first else dh_n[d, b]
        torch.testing.assert_close(found[d, b], expected)
