"""residual_norm, bias_gelu, geglu, rotary and segment_pool on a GPU against float64 on the CPU."""

import pytest
import torch
from kernel_cases import BOUND as BOUNDS
from kernel_cases import bounds, pairwise

from penstock.kernels import bias_gelu, geglu, residual_norm, rotary, segment_pool, use_backend
from penstock.kernels.pooling import MODES

pytestmark = pytest.mark.gpu  # skipped, with the reason, where there is none

LENGTHS = [5, 0, 1, 37, 64, 131, 2, 0, 1, 211, 1031, 300]
TOKENS = sum(LENGTHS)

BACKENDS, DTYPES = ["torch", "triton"], list(BOUNDS)


def check(backend, operation, inputs, dtype):
    """Values and every gradient within their bounds, and the same bits twice.

    Args:
        operation: takes the inputs, and the device where its other tensors must be.
    """
    inputs = [x.to(dtype) for x in inputs]

    def run(name, device, to):
        leaves = [x.to(device, to).requires_grad_() for x in inputs]
        with use_backend(name):
            outs = operation(*leaves, device=device)
        outs = outs if isinstance(outs, tuple) else (outs,)
        generator = torch.Generator().manual_seed(1)
        directions = [torch.randn(out.shape, generator=generator).to(dtype).to(device, out.dtype) for out in outs]
        return [*(out.detach() for out in outs), *torch.autograd.grad(outs, leaves, directions)]

    expected = run("reference", "cpu", torch.float64)
    found, again = (run(backend, "cuda", dtype) for _ in range(2))
    limits = [BOUNDS[dtype]] * (len(found) - len(inputs)) + [2 * BOUNDS[dtype]] * len(inputs)
    for y, r, limit in zip(found, expected, limits, strict=True):
        assert (y.cpu().double() - r).norm() <= limit * r.norm()
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def normal(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.kernel("residual_norm")
@pairwise(
    {
        "backend, dtype": [(backend, dtype) for backend in BACKENDS for dtype in DTYPES],
        "width": [7, 384, 768, 1030],
        "prenorm, wide": [(False, False), (True, False), (True, True)],
        "p": [0.0, 0.1],
    }
)
def test_residual_norm(backend, width, prenorm, wide, p, dtype):
    def operation(x, residual, x_bias, weight, bias, device):
        drop = {"dropout_p": p, "cu_seqlens": bounds(LENGTHS, device), "seed": torch.tensor(2**61 + 99, device=device)}
        stream = residual.to(torch.promote_types(x.dtype, torch.float32)) if wide else residual
        return residual_norm(x, stream, weight, bias, x_bias=x_bias, prenorm=prenorm, **(drop if p else {}))

    check(backend, operation, normal((TOKENS, width), (TOKENS, width), width, width, width), dtype)


@pytest.mark.kernel("bias_gelu")
@pairwise({"backend": BACKENDS, "dtype": DTYPES, "width": [7, 384, 3072]})
def test_bias_gelu(backend, width, dtype):
    check(backend, lambda x, bias, device: bias_gelu(x, bias), normal((TOKENS, width), width), dtype)


@pytest.mark.kernel("geglu")
@pairwise({"backend": BACKENDS, "dtype": DTYPES, "width": [14, 1152]})
def test_geglu(backend, width, dtype):
    check(backend, lambda x, bias, device: geglu(x, bias), normal((TOKENS, width), width), dtype)


@pytest.mark.kernel("rotary")
@pairwise(
    {
        "backend": BACKENDS,
        "dtype": DTYPES,
        "q_heads, k_heads, head_dim": [(12, 12, 64), (5, 1, 10), (0, 12, 32)],
    }
)
def test_rotary(backend, q_heads, k_heads, head_dim, dtype):
    def operation(product, device):
        cos, sin = (angle.to(device) for angle in normal((TOKENS, head_dim), (TOKENS, head_dim)))
        return rotary(product[:, :q_heads], product[:, q_heads:], cos, sin)

    check(backend, operation, normal((TOKENS, q_heads + k_heads, head_dim)), dtype)


@pytest.mark.kernel("segment_pool")
@pairwise({"backend": BACKENDS, "dtype": DTYPES, "mode": list(MODES), "width": [14, 512]})
def test_pooling(backend, width, mode, dtype):
    def operation(values, scores=None, device="cpu"):
        return segment_pool(values, bounds(LENGTHS, device), mode, scores, bidirectional=mode == "last")

    inputs = normal((TOKENS, width), TOKENS) if mode == "attention" else normal((TOKENS, width))
    check(backend, operation, inputs, dtype)
