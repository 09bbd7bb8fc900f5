"""The C++ LSTM against the float64 reference: every instruction set that this machine has."""

import pytest
import torch

from penstock import _native
from penstock.kernels import use_backend
from penstock.kernels.lstm import cpu
from penstock.kernels.lstm.functional import lstm
from penstock.kernels.lstm.protocol import LayerWeights

ISAS = _native.available_isas()
BOUNDS = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-2, 2e-2)}  # values, gradients


@pytest.fixture
def isa(request, monkeypatch):
    """Sets the instruction set, and one thread: on a busy machine OpenMP's threads wait long for each other."""
    monkeypatch.setattr(cpu, "isa", request.param)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield request.param
    torch.set_num_threads(before)


all_isas = pytest.mark.parametrize("isa", ISAS, indirect=True)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


class Problem:
    """One layer with random weights, states and gradients, as float64 values that the dtype can represent."""

    def __init__(
        self, lengths, input_size, hidden_size, directions, dtype, *, bias=True, states=True, forget=0.0, seed=0
    ):
        generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

        def draw(*shape, scale=1.0, dtype=dtype):
            return (torch.randn(shape, generator=generator) * scale).to(dtype).double()

        tokens, batch, wide = sum(lengths), len(lengths), hidden_size**-0.5
        self.cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        self.max_seqlen = max(lengths, default=0)
        self.x = draw(tokens, input_size)
        self.weights = LayerWeights(
            [draw(4 * hidden_size, input_size, scale=wide) for _ in range(directions)],
            [draw(4 * hidden_size, hidden_size, scale=wide) for _ in range(directions)],
            [draw(4 * hidden_size, scale=wide) for _ in range(directions)] if bias else [],
            [draw(4 * hidden_size, scale=wide) for _ in range(directions)] if bias else [],
            [],
        )
        for b in self.weights.b_ih:
            b[hidden_size : 2 * hidden_size] += forget
        self.h0 = draw(directions, batch, hidden_size) if states else None
        self.c0 = draw(directions, batch, hidden_size, dtype=torch.float32) if states else None
        self.grads = (
            draw(tokens, directions * hidden_size),
            draw(directions, batch, hidden_size),
            draw(directions, batch, hidden_size, dtype=torch.float32),
            draw(tokens, directions * hidden_size, dtype=torch.float32),
        )

    def leaves(self, dtype):
        def leaf(tensor, dtype=dtype):
            return tensor.to(dtype, copy=True).requires_grad_()

        weights = LayerWeights(*([leaf(w) for w in kind] for kind in self.weights))
        h0 = None if self.h0 is None else leaf(self.h0)
        c0 = None if self.c0 is None else leaf(self.c0, torch.promote_types(dtype, torch.float32))
        return leaf(self.x), weights, h0, c0

    def run(self, backend, dtype=None, *, cells=True):
        """Values and gradients by name."""
        dtype = dtype or self.dtype
        x, weights, h0, c0 = self.leaves(dtype)
        with use_backend(backend):
            y, h_n, c_n, *rest = lstm(x, self.cu_seqlens, self.max_seqlen, [weights], h0, c0, return_cells=cells)
        outputs = [y, h_n, c_n, *(rest[0] if cells else [])]
        torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(self.grads, outputs, strict=False)])
        values = dict(zip(["y", "h_n", "c_n", "cells"], outputs, strict=False))
        gradients = {"x": x.grad}
        for kind, tensors in weights._asdict().items():
            gradients |= {f"{kind}[{d}]": tensor.grad for d, tensor in enumerate(tensors)}
        if h0 is not None:
            gradients |= {"h0": h0.grad, "c0": c0.grad}
        return {name: value.detach() for name, value in values.items()}, gradients

    def check(self, **kwargs):
        expected, found = self.run("reference", torch.float64, **kwargs), self.run("cpu", **kwargs)
        for wanted, got, bound in zip(expected, found, BOUNDS[self.dtype], strict=True):
            for name, reference in wanted.items():
                value = got[name].double()
                assert value.shape == reference.shape
                error = (value - reference).norm() / reference.norm().clamp(min=1e-30)
                assert torch.isfinite(value).all() and error <= bound, f"{name}: error {float(error):.1e}"


LENGTHS = {
    1: [[1], [9]],
    3: [[0, 7, 1], [5, 5, 5]],
    7: [[3, 0, 61, 1, 1, 17, 2]],
    129: [[(37 * i) % 11 for i in range(129)]],
}


@all_isas
@both_dtypes
@pytest.mark.parametrize("hidden_size", [1, 7, 16, 100, 256])
@pytest.mark.parametrize("batch", LENGTHS)
def test_matches_reference(isa, dtype, hidden_size, batch):
    for case, lengths in enumerate(LENGTHS[batch]):
        for directions in (1, 2):
            input_size = [1, 5, 33, 64][(batch + hidden_size + directions) % 4]
            Problem(lengths, input_size, hidden_size, directions, dtype, seed=case, states=directions == 2).check()
