"""Rows of a table and its gradient, against torch's own."""

import pytest
import torch
from kernel_cases import pairwise
from torch.nn import functional as F

from penstock.kernels.embedding import embedding


def problem(dtype=torch.float32, shape=(2, 37), rows=50, width=24):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(rows, shape, generator=generator)
    weight = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    return ids, weight, torch.randn(*shape, width, generator=generator).to(dtype)


@pairwise(
    {
        "shape": [(0,), (1,), (513,), (2, 37)],
        "padding_idx": [None, 0, 7],
        "dtype": [torch.float32, torch.float64],
    }
)
def test_equals_torchs(dtype, shape, padding_idx):
    ids, weight, grad_out = problem(dtype, shape)
    out, expected = embedding(ids, weight, padding_idx), F.embedding(ids, weight, padding_idx)
    assert torch.equal(out, expected)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(y, weight, grad_out) for y in (out, expected))
    torch.testing.assert_close(gradient, expected_gradient)


def test_repeats_bit_for_bit():
    ids, weight, grad_out = problem(shape=(5000,))
    first, second = (torch.autograd.grad(embedding(ids, weight), weight, grad_out)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_an_id_beyond_the_table():
    _, weight, _ = problem()
    with pytest.raises(IndexError, match="out of range"):
        embedding(torch.tensor([50]), weight)


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 0)])
def test_a_table_without_columns(shape):
    weight = torch.zeros(5, 0, requires_grad=True)
    embedding(torch.zeros(shape, dtype=torch.int64), weight, 1).sum().backward()
    assert weight.grad.shape == (5, 0)


def test_double_backward():
    ids, weight, _ = problem(torch.float64, (3,), 5, 4)
    assert torch.autograd.gradgradcheck(lambda w: embedding(ids, w, 2), weight)


def test_as_torch_asks_of_an_operation():
    ids, weight, grad_out = problem()
    torch.library.opcheck(torch.ops.penstock.embedding, (ids, weight, 0))
    torch.library.opcheck(torch.ops.penstock.embedding_backward, (grad_out.requires_grad_(), ids, 50, 0))
