"""One dropout rule: Python, C++ and torch agree on it, and it does what dropout must."""

from itertools import accumulate

import pytest
import torch
from kernel_cases import codes, pairwise

from penstock import _native
from penstock.kernels import dropout, philox

SEED = torch.tensor(0x5EED_0123_4567_89AB)
BOUNDS = torch.tensor([0, 3, 3, 8, 9], dtype=torch.int32)
IDS = torch.tensor([5, 6, 2**33 + 1, 0])


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("units", [1, 8, 13])
@pytest.mark.parametrize("per_sequence", [False, True])
def test_compiled_mask_is_pythons(ids: torch.Tensor | None, units: int, per_sequence: bool) -> None:
    args = BOUNDS, 9, 0.3, SEED, 2, ids, units, per_sequence
    mask = dropout.keep_mask(*args)
    assert torch.equal(mask, dropout._plain_keep_mask(*args))
    names = torch.arange(4) if ids is None else ids
    for row, (b, position) in enumerate([(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (3, 0)]):
        bits = _native.dropout_bits(int(SEED), int(names[b]), 0 if per_sequence else position, 2, units)
        assert mask[row].tolist() == [int(bit) >= philox.threshold(0.3) for bit in bits]


def test_operation_passes_torchs_checks() -> None:
    torch.library.opcheck(torch.ops.penstock.keep_mask.default, (BOUNDS, 9, 0.3, SEED, 2, IDS, 13, False))
    x = torch.randn(9, 13, requires_grad=True)
    torch.library.opcheck(torch.ops.penstock.dropout.default, (x, BOUNDS, 0.3, SEED, 2, IDS, False))


@pairwise(
    {
        "isa, dtype": [
            *codes("rowwise"),
            *(("", dtype) for dtype in (torch.float16, torch.float64)),  # which no instruction set has code for
        ],
        "units": [1, 13, 130],
        "per_sequence": [False, True],
        "ids": [None, IDS],
    }
)
def test_drops_by_the_mask(isa, ids, per_sequence, dtype, units) -> None:
    x = torch.randn(9, units, dtype=dtype).requires_grad_()
    mask = dropout.keep_mask(BOUNDS, 9, 0.3, SEED, 2, ids, units, per_sequence)
    out = dropout.dropout(x, BOUNDS, 0.3, SEED, 2, ids, per_sequence)
    assert torch.equal(out, x * mask * philox.scale(0.3))
    grad_out = torch.randn_like(x)
    assert torch.equal(torch.autograd.grad(out, x, grad_out)[0], grad_out * mask * philox.scale(0.3))


@pytest.mark.parametrize("lengths", [(0,), (0, 0), (1,), (0, 700, 0, 0, 323, 1)])
def test_same_bits_whatever_the_threads(lengths) -> None:
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    x, before, results = torch.randn(sum(lengths), 40), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(dropout.dropout(x, bounds, 0.3, SEED, 1))
    torch.set_num_threads(before)
    assert torch.equal(results[0], dropout._plain_dropout(x, bounds, 0.3, SEED, 1, None, False))
    assert all(torch.equal(result, results[0]) for result in results)


def test_is_differentiated_as_often_as_one_likes() -> None:
    x = torch.randn(9, 5, dtype=torch.float64).requires_grad_()
    torch.autograd.gradgradcheck(lambda x: dropout.dropout(x, BOUNDS, 0.3, SEED, 2) ** 2, x)


def test_compiles_whole() -> None:
    compiled = torch.compile(dropout.dropout, backend="aot_eager", fullgraph=True, dynamic=True)
    x = torch.randn(9, 5).requires_grad_()
    out, expected = compiled(x, BOUNDS, 0.3, SEED, 2), dropout.dropout(x, BOUNDS, 0.3, SEED, 2)
    assert torch.equal(out, expected)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (out, expected)))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_keeps_the_mean(p: float) -> None:
    x = torch.ones(4096, 64, requires_grad=True)
    y = dropout.dropout(x, torch.tensor([0, 4096], dtype=torch.int32), p, SEED, 0)
    assert abs(float(y.mean()) - (p < 1)) < 0.01
    assert abs(float((y == 0).float().mean()) - p) < 0.01
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_neighbours_are_independent() -> None:
    mask = dropout.keep_mask(torch.tensor([0, 2048, 4096], dtype=torch.int32), 4096, 0.5, SEED, 0, None, 64).float()
    other_layer = dropout.keep_mask(torch.tensor([0, 4096], dtype=torch.int32), 4096, 0.5, SEED, 1, None, 64).float()
    for a, b in [(mask[:-1], mask[1:]), (mask[:, :-1], mask[:, 1:]), (mask[:2048], mask[2048:]), (mask, other_layer)]:
        assert abs(float(((a - 0.5) * (b - 0.5)).mean())) < 0.005
