"""Attention and pooling on a GPU against float64 on the CPU."""

import pytest
import torch
from kernel_cases import BOUND as BOUNDS
from kernel_cases import bounds, pairwise

from penstock.kernels import segment_pool, use_backend, varlen_attention
from penstock.kernels.pooling import MODES

pytestmark = pytest.mark.gpu  # skipped, with the reason, where there is none

LENGTHS_Q = [5, 0, 1, 37, 64, 131, 2, 0, 1, 211, 1031, 300]
LENGTHS_K = [5, 3, 1, 37, 70, 120, 0, 0, 97, 211, 1031, 17]
VARIANTS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (64, 64)},
    "dropout": {"dropout_p": 0.1},
    "all": {"dropout_p": 0.1, "causal": True, "window": (70, -1)},
}
BACKENDS = ["torch", "triton"]


def attend(inputs, grad_out, backend, options):
    device = grad_out.device
    inputs = [x.detach().requires_grad_() for x in inputs]
    cu_seqlens = [bounds(x).to(device) for x in (LENGTHS_Q, LENGTHS_K)]
    seed = torch.tensor(2**61 + 99, device=device)
    with use_backend(backend):
        out = varlen_attention(*inputs, *cu_seqlens, max(LENGTHS_Q), max(LENGTHS_K), seed=seed, **options)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad_out)]


def make(heads, kv_heads, head_dim, dtype):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS_Q), sum(LENGTHS_K), sum(LENGTHS_K), sum(LENGTHS_Q)
    sizes = zip(tokens, (heads, kv_heads, kv_heads, heads), strict=True)
    *inputs, grad_out = (torch.randn(*size, head_dim, generator=generator).to(dtype) for size in sizes)
    return inputs, grad_out


@pytest.mark.kernel("varlen_attention")
@pairwise(
    {
        "backend, dtype": [(backend, dtype) for backend in BACKENDS for dtype in BOUNDS],
        "shape": [(4, 4, 64), (6, 2, 80), (2, 1, 128), (2, 2, 33), (1, 1, 256), (2, 2, 16)],
        "variant": list(VARIANTS),
    }
)
def test_attention_equals_float64_twice_alike(backend, variant, shape, dtype):
    inputs, grad_out = make(*shape, dtype)
    expected = attend([x.double() for x in inputs], grad_out.double(), "torch", VARIANTS[variant])
    on_gpu = [x.cuda() for x in inputs], grad_out.cuda()
    found = attend(*on_gpu, backend, VARIANTS[variant])
    again = attend(*on_gpu, backend, VARIANTS[variant])
    for y, r, limit in zip(found, expected, [BOUNDS[dtype], *[2 * BOUNDS[dtype]] * 3], strict=True):
        assert (y.cpu().double() - r).norm() <= limit * r.norm()
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.kernel("varlen_attention")
@pairwise({"backend": BACKENDS})
def test_a_sequence_is_bitwise_independent_of_the_others_values(backend):
    inputs, grad_out = make(4, 4, 64, torch.bfloat16)
    before = attend([x.cuda() for x in inputs], grad_out.cuda(), backend, VARIANTS["full"])
    for x, lengths in zip(inputs, (LENGTHS_Q, LENGTHS_K, LENGTHS_K), strict=True):
        x.split(lengths)[4].fill_(float("nan"))
    after = attend([x.cuda() for x in inputs], grad_out.cuda(), backend, VARIANTS["full"])
    for a, b, lengths in zip(before, after, (LENGTHS_Q, LENGTHS_Q, LENGTHS_K, LENGTHS_K), strict=True):
        parts = zip(a.split(lengths), b.split(lengths), strict=True)
        assert all(torch.equal(x, y) for index, (x, y) in enumerate(parts) if index != 4)


@pytest.mark.kernel("varlen_attention")
@pairwise({"backend": BACKENDS})
def test_bad_bounds_on_the_device_stay_within_the_tokens(backend):
    inputs, _ = make(2, 2, 64, torch.bfloat16)
    q, k, v = (x.cuda().requires_grad_() for x in inputs)
    wild = torch.tensor([-5, 10**9, 3, 2**31 - 1, 7], dtype=torch.int32, device="cuda")
    if backend == "triton":
        with use_backend(backend):
            varlen_attention(q, k, v, wild, wild, 128, 128).sum().backward()
    for mode in ("max", "mean", "last"):
        segment_pool(q.flatten(1), wild, mode).sum().backward()
    torch.cuda.synchronize()


@pytest.mark.kernel("segment_pool", "torch")
@pairwise({"dtype": list(BOUNDS), "mode": list(MODES)})
def test_pooling_equals_float64_twice_alike(mode, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(sum(LENGTHS_Q), 96, generator=generator).to(dtype)
    scores = torch.randn(sum(LENGTHS_Q), generator=generator).to(dtype) if mode == "attention" else None

    def pool(device, dtype):
        leaves = [None if x is None else x.to(device, dtype).requires_grad_() for x in (values, scores)]
        out = segment_pool(leaves[0], bounds(LENGTHS_Q).to(device), mode, leaves[1], bidirectional=mode == "last")
        return [out, *torch.autograd.grad(out.square().sum(), [x for x in leaves if x is not None])]

    found, again, expected = pool("cuda", dtype), pool("cuda", dtype), pool("cpu", torch.float64)
    for y, r, limit in zip(found, expected, [BOUNDS[dtype], *[2 * BOUNDS[dtype]] * 2], strict=False):
        assert (y.cpu().double() - r).norm() <= limit * r.norm()
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
