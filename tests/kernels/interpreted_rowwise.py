"""The Triton kernels of residual_norm, bias_gelu, geglu, rotary and segment_pool in Triton's interpreter; run by
test_triton.py, in a process of its own."""

import pytest
import torch
from kernel_cases import BOUND, bounds, pairwise

from penstock.kernels import bias_gelu, geglu, residual_norm, rotary, segment_pool, use_backend
from penstock.kernels.norm import triton as norm

LENGTHS = (3, 0, 1, 14, 0)
DTYPES = [torch.float32, torch.float16]  # the interpreter holds bfloat16 as integers


def run(backend, operation, inputs):
    """The outputs and the gradients of the inputs."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    with use_backend(backend):
        outs = operation(*inputs)
    outs = outs if isinstance(outs, tuple) else (outs,)
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(out.shape, generator=generator).to(out.dtype) for out in outs]
    return [*(out.detach() for out in outs), *torch.autograd.grad(outs, inputs, directions)]


def check(operation, inputs, dtype):
    inputs = [x.to(dtype) for x in inputs]
    found = run("triton", operation, inputs)
    expected = run("reference", operation, [x.double() for x in inputs])
    for y, r, limit in zip(found, expected, [BOUND[dtype]] + [2 * BOUND[dtype]] * 6, strict=False):
        assert (y.double() - r).norm() <= limit * r.norm()


@pairwise(
    {
        "prenorm, wide": [(False, False), (True, False), (True, True)],
        "dtype": DTYPES,
        "p": [0.0, 0.3],
        "width": [5, 70],
    }
)
def test_norm(width, prenorm, wide, p, dtype, monkeypatch):
    monkeypatch.setattr(norm, "_PROGRAMS", 4)  # more than one row each
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(LENGTHS), width)] * 2 + [(width,)] * 3
    drop = {
        "dropout_p": p,
        "cu_seqlens": bounds(LENGTHS),
        "ids": torch.arange(5) + 2**40,
        "seed": torch.tensor(-(2**50)),
    }

    def operation(x, residual, x_bias, weight, bias):
        stream = residual.to(torch.promote_types(x.dtype, torch.float32)) if wide else residual
        return residual_norm(x, stream, weight, bias, x_bias=x_bias, prenorm=prenorm, **(drop if p else {}))

    check(operation, [torch.randn(shape, generator=generator) for shape in shapes], dtype)


@pairwise({"dtype": DTYPES})
def test_gelu(dtype):
    generator = torch.Generator().manual_seed(0)
    check(bias_gelu, [torch.randn(shape, generator=generator) * 2 for shape in ((131, 21), (21,))], dtype)
    check(bias_gelu, [torch.randn(3, 200, generator=generator)], dtype)
    check(geglu, [torch.randn(shape, generator=generator) * 2 for shape in ((131, 42), (42,))], dtype)
    check(geglu, [torch.randn(3, 260, generator=generator)], dtype)


@pairwise({"q_heads, k_heads, head_dim": [(3, 3, 32), (5, 1, 10), (0, 2, 6), (1, 1, 2)], "dtype": DTYPES})
def test_rotary(q_heads, k_heads, head_dim, dtype):
    generator = torch.Generator().manual_seed(0)
    cos, sin = (torch.randn(13, head_dim, generator=generator) for _ in range(2))

    def operation(product):
        return rotary(product[:, :q_heads], product[:, q_heads:], cos, sin)

    check(operation, [torch.randn(13, q_heads + k_heads, head_dim, generator=generator)], dtype)


@pairwise(
    {
        "mode": ["max", "mean", "last", "attention"],
        "dtype": DTYPES,
        "lengths": [LENGTHS, (16, 0, 17, 37)],  # within one block of tokens, and more than one
    }
)
def test_pooling(mode, dtype, lengths):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(sum(lengths), 130, generator=generator)
    scores = [torch.randn(sum(lengths), generator=generator)] if mode == "attention" else []

    def operation(values, scores=None):
        return segment_pool(values, bounds(lengths), mode, scores, bidirectional=mode == "last")

    check(operation, [values, *scores], dtype)


def test_the_first_maximum_and_the_first_nan():
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([[1.0, 5.0], [7.0, 5.0], [7.0, 2.0], [3.0, nan], [4.0, inf], [2.0, 1.0], [nan, 0.0]])
    values.requires_grad_()
    with use_backend("triton"):
        out = segment_pool(values, bounds((3, 2, 2)), "max")
    torch.testing.assert_close(out, torch.tensor([[7.0, 5.0], [4.0, nan], [nan, 1.0]]), equal_nan=True)
    out.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, 1], [1, 0], [0, 0], [0, 1], [1, 0], [0, 1], [1, 0]]))


@pytest.mark.parametrize("odd", [7.0, float("nan")])
@pytest.mark.parametrize("rows", [(3, 4), (3, 19), (20, 35), (5, 21, 37)])
def test_the_first_of_equals_in_any_block_of_tokens(odd, rows):
    values = torch.zeros(40, 3)
    values[:, 2] = -float("inf")
    values[list(rows), :2] = odd
    values[rows[0], 1] = 8.0
    values.requires_grad_()
    with use_backend("triton"):
        out = segment_pool(values, bounds((40,)), "max")
    first = [rows[0], rows[1] if odd != odd else rows[0], 0]
    torch.testing.assert_close(out[0], torch.tensor([odd, odd if odd != odd else 8.0, -float("inf")]), equal_nan=True)
    out.sum().backward()
    assert values.grad.nonzero().tolist() == sorted([row, column] for column, row in enumerate(first))


@pytest.mark.parametrize("lengths", [(), (0, 0), (1,)])
def test_degenerate_batches(lengths):
    x, vector, angles = torch.randn(sum(lengths), 9), torch.ones(9), torch.ones(sum(lengths), 8)
    drop = {"dropout_p": 0.5, "cu_seqlens": bounds(lengths)}
    outs = [
        run("triton", lambda x, w: residual_norm(x, x, w, **drop), [x, vector]),
        run("triton", lambda x, w: residual_norm(x, x, w, prenorm=True, **drop), [x, vector]),
        run("triton", bias_gelu, [x, vector]),
        run("triton", geglu, [x[:, 1:], vector[1:]]),
        run("triton", lambda x: rotary(x[:, None, :8], x[:, None, 1:], angles, angles), [x]),
        run("triton", lambda x: segment_pool(x, bounds(lengths), "max"), [x]),
    ]
    assert all(tensor.isfinite().all() for tensors in outs for tensor in tensors)
