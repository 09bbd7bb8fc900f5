"""The Triton LSTM in Triton's interpreter; run by test_triton.py, in a process of its own."""

from collections import defaultdict

import lstm_cases as cases
import pytest
import torch
import triton
from kernel_cases import pairwise

from penstock.kernels import lstm_cell, use_backend
from penstock.kernels.lstm import triton as backend
from penstock.kernels.lstm.protocol import OutputGrads

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# lengths, I, H, and options
LAYERS = [
    ([3, 0, 2, 1, 4], 4, 7, {}),  # each step takes the interpreter a tenth of a second
    ([2, 3], 3, 16, {"directions": 1, "states": False, "bias": False}),
    ([2] * 18, 3, 70, {"resets": True}),
]


@pytest.fixture
def bfloat16_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9's interpreter holds bfloat16 as integers and multiplies those; products are exact in float32."""
    from triton.runtime.interpreter import InterpreterBuilder

    plain = InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, *rest):
        a, b = (self.create_fp_ext(x, triton.language.float32) if x.dtype.is_bf16() else x for x in (a, b))
        return plain(self, a, b, d, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.usefixtures("bfloat16_dot")
@pairwise(
    {
        "lengths, input_size, hidden_size, options": LAYERS,
        "persistent": [True, False],
        "dtype": DTYPES,
    }
)
def test_layer(lengths, input_size, hidden_size, options, persistent, dtype, monkeypatch) -> None:
    monkeypatch.setattr(backend, "_RESIDENT_BYTES", 1 << 20 if persistent else 0)
    inputs = cases.layer(lengths, input_size, hidden_size, dtype=dtype, **options)
    cases.check("triton", inputs, dtype, return_cells=not options)


@pytest.mark.parametrize("persistent", [True, False])
def test_bounds_outside_the_tokens_stay_in_memory(persistent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_RESIDENT_BYTES", 1 << 20 if persistent else 0)
    inputs = cases.layer([3, 2], 3, 5)
    single = cases.recorded(inputs, torch.float32)
    wild = single._replace(cu_seqlens=torch.tensor([-7, 3, 1 << 30], dtype=torch.int32))
    with torch.no_grad():
        y = backend.forward(wild, False, False).y
    torch.testing.assert_close(
        y[3:].double(), cases.truth(inputs, [*cases.cotangents(inputs)])[0][0][3:], atol=1e-5, rtol=0
    )


def test_a_bound_far_above_the_lengths_costs_no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[int] = []
    monkeypatch.setattr(backend, "_RESIDENT_BYTES", 0)
    for name in ("step_forward", "step_backward"):
        monkeypatch.setattr(backend, name, defaultdict(lambda: lambda *_, **__: launches.append(1)))
    inputs = cases.recorded(cases.layer([3, 2], 3, 5), torch.float32)._replace(max_seqlen=1000)
    with torch.no_grad():
        found = backend.forward(inputs, False, True)
        grads = OutputGrads(found.y, None, None, None)
        backend.backward(grads, inputs, found.y, found.saved, True, True)
    assert len(launches) == 2 * 5


@pytest.mark.parametrize("persistent", [True, False])
def test_same_bits_and_no_leak_between_sequences(persistent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_RESIDENT_BYTES", 1 << 20 if persistent else 0)
    inputs = cases.layer([2, 0, 3, 1], 3, 5)
    changed = inputs._replace(x=inputs.x.clone())
    changed.x[2:5] = float("nan")
    grads = [*cases.cotangents(inputs)[:3], None]
    results = [cases.run("triton", each, torch.float32, grads) for each in (inputs, inputs, changed)]
    (y, *_), (dx, *_) = results[0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    for rows in (slice(0, 2), slice(5, 6)):
        assert torch.equal(y[rows], results[2][0][0][rows])
        assert torch.equal(dx[rows], results[2][1][0][rows])


@pairwise({"dtype": DTYPES})
def test_cell(dtype: torch.dtype) -> None:
    gates = torch.randn(37, 4 * 50).to(dtype).requires_grad_()
    c = torch.randn(37, 50, requires_grad=True)
    results = []
    for name in ("triton", "reference"):
        with use_backend(name):
            h, c_next = lstm_cell(gates, c)
        both = torch.autograd.grad([h, c_next], [gates, c], [torch.ones_like(h), torch.full_like(c, 0.3)])
        only_c = torch.autograd.grad(lstm_cell(gates, c)[1].sum(), [gates, c])
        results.append([h, c_next, *both, *only_c])
    assert max(cases.errors(*results)) < cases.BOUNDS[dtype][0]


def test_functions_near_zero_and_far() -> None:
    x = torch.tensor([0.0, 1e-6, -1e-3, 0.0999, 0.1001, -5.0, 88.0, -200.0, float("nan")])
    gates = torch.stack([torch.full_like(x, 100.0), torch.full_like(x, -100.0), x, x], 1).double()
    with use_backend("triton"):
        h, c = lstm_cell(gates.float(), torch.zeros(9, 1))
    torch.testing.assert_close(c[:, 0].double(), x.double().tanh(), rtol=1e-6, atol=0, equal_nan=True)
    expected = x.double().sigmoid() * x.double().tanh().tanh()
    torch.testing.assert_close(h[:, 0].double(), expected, rtol=1e-6, atol=1e-30, equal_nan=True)
