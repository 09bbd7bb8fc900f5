"""The operations under torch's own checks, torch.compile and autocast."""

import kernel_cases
import lstm_cases as cases
import pytest
import torch
from kernel_cases import pairwise
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from penstock.kernels import LSTM, Ragged, lstm_cell


def arguments(inputs: object, *rest: object) -> tuple:
    x, cu_seqlens, max_seqlen, weights, *states = inputs
    return (x, cu_seqlens, max_seqlen, *weights, *states, *rest)


def is_served(backend: str, options: dict, lengths: list[int]) -> bool:
    return cases.serves(backend, torch.float32, options)


@pairwise(
    {
        "backend": kernel_cases.BACKENDS,
        "options": [
            {},
            {"proj_size": 3, "bias": False, "states": False},
            {"resets": True, "pool": "mean"},
            {"vocabulary": 6, "pool": "max"},
        ],
        "lengths": [[3, 5, 2], [4, 4]],
    },
    is_served,
)
def test_opcheck(backend: str, options: dict, lengths: list[int]) -> None:
    inputs = cases.recorded(cases.layer(lengths, 4, 5, **options), torch.float32)
    torch.library.opcheck(torch.ops.penstock.lstm_layer.default, arguments(inputs, not options, True, backend))


@pytest.mark.parametrize("lengths", [[3, 5, 2], [4, 4]], ids=["ragged", "equal"])
def test_opcheck_backward(lengths: list[int]) -> None:
    inputs = cases.layer(lengths, 4, 5)
    y, *_, saved, _ = torch.ops.penstock.lstm_layer(*arguments(inputs, False, True, "torch"))
    grads = cases.cotangents(inputs)
    args = (*grads[:2], None, None, None, *arguments(inputs), y, saved, True, True, "torch")
    torch.library.opcheck(torch.ops.penstock.lstm_layer_backward.default, args)


def batches() -> list[Ragged]:
    every = [[3, 4, 0, 2], [1, 2], [5, 5, 5, 5, 5], [9, 1, 1, 1, 1, 1, 1, 3], [2, 30]]
    return [Ragged.from_lengths(torch.randn(sum(lengths), 5, requires_grad=True), lengths) for lengths in every]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.3},
        {"zoneout": 0.2, "weight_dropout": 0.1, "variational": True},
    ],
)
def test_compiles_once_for_all_batches(options: dict) -> None:
    module = LSTM(5, 7, 2, bidirectional=True, **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for batch in [*batches(), batches()[0]]:
        results = []
        for run in (module, compiled):
            module.zero_grad()
            torch.manual_seed(0)
            output, (h_n, c_n) = run(batch)
            (output.values.square().sum() + h_n.sum() + c_n.sum()).backward()
            results.append([output.values, *(p.grad for p in module.parameters())])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
    assert counter.frame_count <= 3  # the first batch's sizes, then any, and any with equal lengths


def test_compiles_padded_input_and_inference() -> None:
    module = LSTM(5, 7, 2, bidirectional=True, batch_first=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch, time in ((2, 3), (4, 6)):
        x = torch.randn(batch, time, 5)
        torch.testing.assert_close(compiled(x)[0], module(x)[0])
        with torch.no_grad():
            torch.testing.assert_close(compiled(x)[0], module(x)[0])


@pytest.mark.parametrize("lengths", [[4, 2], [2, 1, 5, 2]], ids=["sorted", "unsorted"])
def test_compiles_packed_input_around_its_lengths(lengths: list[int]) -> None:
    module = LSTM(5, 7, bidirectional=True)
    packed = pack_sequence([torch.randn(length, 5) for length in lengths], enforce_sorted=len(lengths) == 2)
    torch._dynamo.reset()
    (found, states), (expected, expected_states) = (f(packed) for f in (torch.compile(module, backend="eager"), module))
    assert tuple.__len__(found) == 4
    torch.testing.assert_close(states, expected_states)
    for mine, true in zip(pad_packed_sequence(found), pad_packed_sequence(expected), strict=True):
        torch.testing.assert_close(mine, true)


def test_compiled_autocast() -> None:
    module = LSTM(5, 7, bidirectional=True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(batch: Ragged) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module(batch)[0].values

    batch = batches()[0]
    y = run(batch)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert batch.values.grad.dtype == torch.float32


@pytest.mark.slow
def test_inductor() -> None:
    module = LSTM(5, 7, 2, bidirectional=True)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for batch in batches():
        expected, found = module(batch)[0].values, compiled(batch)[0].values
        torch.testing.assert_close(found, expected)
        a, b = (torch.autograd.grad(y.sum(), [batch.values, module.weight_hh_l0]) for y in (expected, found))
        torch.testing.assert_close(a, b)


def test_exports() -> None:
    module = LSTM(5, 7, bidirectional=True, batch_first=True).eval()
    time = torch.export.Dim("time", min=2, max=100)
    program = torch.export.export(module, (torch.randn(2, 6, 5),), dynamic_shapes={"input": {1: time}}, strict=False)
    x = torch.randn(2, 11, 5)
    torch.testing.assert_close(program.module()(x)[0], module(x)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cell(dtype: torch.dtype) -> None:
    gates = torch.randn(9, 28, dtype=torch.float64).to(dtype).requires_grad_()
    c = torch.randn(9, 7, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True)
    h, c_next = lstm_cell(gates, c)
    assert (h.dtype, c_next.dtype) == (dtype, c.dtype)
    dh, dc = torch.randn_like(h), torch.randn_like(c_next)
    found = torch.autograd.grad([h, c_next], [gates, c], [dh, dc])

    exact, c64 = gates.detach().double().requires_grad_(), c.detach().double().requires_grad_()
    i, f, g, o = exact.chunk(4, 1)
    c_true = f.sigmoid() * c64 + i.sigmoid() * g.tanh()
    h_true = o.sigmoid() * c_true.tanh()
    true = torch.autograd.grad([h_true, c_true], [exact, c64], [dh.double(), dc.double()])
    of_outputs, of_gradients = cases.BOUNDS[dtype]
    assert cases.error(h, h_true) < of_outputs
    assert cases.error(c_next, c_true) < of_outputs
    assert max(cases.errors(list(found), list(true))) < of_gradients
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lstm_cell, (gates, c))
        assert torch.autograd.gradgradcheck(lstm_cell, (gates, c))
    torch.library.opcheck(torch.ops.penstock.lstm_cell.default, (gates, c, "torch"))


def test_cell_errors() -> None:
    with pytest.raises(ValueError, match="gates"):
        lstm_cell(torch.randn(3, 9), torch.randn(3, 2))
    with pytest.raises(TypeError, match="gates"):
        lstm_cell(torch.ones(3, 8, dtype=torch.int32), torch.randn(3, 2))
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match="c must be floating point"):
            lstm_cell(torch.randn(3, 8), torch.ones(3, 2, dtype=dtype))


def test_no_two_gradients_share_memory():
    lstm = LSTM(4, 8, num_layers=2, bidirectional=True)
    found = torch.autograd.grad(lstm(torch.randn(3, 2, 4))[0].sum(), list(lstm.parameters()))
    assert len({gradient.data_ptr() for gradient in found}) == len(found) == 16
