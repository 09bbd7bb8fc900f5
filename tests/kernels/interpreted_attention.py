"""The Triton attention in Triton's interpreter; run by test_triton.py, in a process of its own."""

import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import BOUND

from penstock.kernels import dispatch, philox, use_backend
from penstock.kernels.attention import Backward, Problem
from penstock.kernels.attention import plain as reference
from penstock.kernels.attention import triton as backend
from penstock.kernels.attention.triton_kernels import find_block
from penstock.kernels.philox_triton import dropout_bits, head_key, keep_weights

LENGTHS_Q = [5, 0, 1, 70, 2]
LENGTHS_K = [3, 3, 1, 66, 0]
LONGEST = max(LENGTHS_Q), max(LENGTHS_K)
VARIANTS = {
    "full": {},
    "causal": {"window_right": 0},
    "window": {"window_left": 7, "window_right": 3},
    "dropout": {"dropout_p": 0.2},
    "all": {"dropout_p": 0.1, "window_left": 40, "window_right": 0},
    # places are int32 there, and the sum would wrap
    "far": {"window_left": 2**31 - 2, "window_right": 2**31 - 2, "longest": (2**31, 2**40)},
}


def compute(module, dtype, heads, kv_heads, head_dim, longest=LONGEST, **options):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS_Q), sum(LENGTHS_K), sum(LENGTHS_K), sum(LENGTHS_Q)
    sizes = zip(tokens, (heads, kv_heads, kv_heads, heads), strict=True)
    q, k, v, grad_out = (torch.randn(*size, head_dim, generator=generator).to(dtype) for size in sizes)
    if module is reference:
        q, k, v, grad_out = q.double(), k.double(), v.double(), grad_out.double()
    bounds = [torch.tensor([0, *x]).cumsum(0).to(torch.int32) for x in (LENGTHS_Q, LENGTHS_K)]
    seed, ids = torch.tensor(-(2**62) + 12345), torch.arange(len(LENGTHS_Q)) + 2**33
    options = {"window_left": -1, "window_right": -1, "dropout_p": 0.0, "seed": seed, "ids": ids, **options}
    fields = *bounds, *longest, head_dim**-0.5
    out, lse = module.varlen_attention(Problem(q, k, v, *fields, **options))
    return lse, out, *module.varlen_attention_backward(Backward(grad_out, q, k, v, out, lse, *fields, **options))


@pytest.mark.parametrize(
    ("dtype", "shape", "variant"),
    [
        *((torch.float32, (2, 1, 20), variant) for variant in ("window", "dropout", "all", "far")),
        *(pytest.param(torch.float32, (2, 1, 20), variant, marks=pytest.mark.slow) for variant in ("full", "causal")),
        pytest.param(torch.float32, (1, 1, 80), "all", marks=pytest.mark.slow),
        pytest.param(torch.float16, (2, 2, 64), "dropout", marks=pytest.mark.slow),
        (torch.float16, (1, 1, 256), "full"),
    ],
)
def test_equals_reference(dtype, shape, variant):
    lse, *found = compute(backend, dtype, *shape, **VARIANTS[variant])
    expected_lse, *expected = compute(reference, dtype, *shape, **VARIANTS[variant])
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)
    bound = BOUND[dtype]
    for y, r, limit in zip(found, expected, [bound, *[2 * bound] * 3], strict=True):
        assert y.dtype == dtype
        assert (y.double() - r).norm() <= limit * r.norm()


@pytest.mark.parametrize("part_keys", [256, 40])
@pytest.mark.parametrize(
    ("shape", "variant"),
    [
        ((2, 1, 20), "all"),
        ((1, 1, 64), "full"),
        ((2, 2, 64), "dropout"),
        ((1, 1, 32), "window"),
        ((1, 1, 32), "far"),
    ],
)
def test_one_backward_kernel_equals_reference(shape, variant, part_keys, monkeypatch):
    """Also where the keys of long sequences are shared out to several programs."""
    monkeypatch.setattr(backend, "_PROGRAMS", 0)
    monkeypatch.setattr(backend, "_PART_KEYS", part_keys)
    monkeypatch.setattr(backend, "_two_kernels", None)
    _, _, *found = compute(backend, torch.float16, *shape, **VARIANTS[variant])
    _, _, *expected = compute(reference, torch.float16, *shape, **VARIANTS[variant])
    for y, r in zip(found, expected, strict=True):
        assert y.dtype == torch.float16
        assert (y.double() - r).norm() <= 2 * BOUND[torch.float16] * r.norm()


@triton.jit
def blocks_kernel(out, cu_seqlens, batch, blocks, BLOCK: tl.constexpr):
    sequence, block = find_block(tl.program_id(0), cu_seqlens, batch, blocks, BLOCK)
    tl.store(out + 2 * tl.program_id(0), sequence)
    tl.store(out + 2 * tl.program_id(0) + 1, block)


@pytest.mark.parametrize(
    "lengths", [[5], [0], [16, 32, 1], [0, 0, 17, 0], [15, 16, 17, 31, 32, 33], [1] * 700, [100, 0, 1, 64] * 200]
)
def test_every_block_is_found_by_one_program(lengths):
    tokens, batch, bounds = sum(lengths), len(lengths), torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    wanted = {(b, block) for b, length in enumerate(lengths) for block in range(-(-length // 16))}
    each = max(-(-max(lengths) // 16), 1)
    for programs, blocks in ((batch * each, each), (tokens // 16 + batch, 0)):
        out = torch.full((programs, 2), -1)
        blocks_kernel[programs,](out, bounds, batch, blocks, BLOCK=16)
        found = [tuple(place) for place in out.tolist()]
        assert len(set(found)) == programs
        assert wanted <= set(found)
        assert all(0 <= b < batch and block >= 0 for b, block in found)


@pytest.mark.parametrize("bounds", [[-5, 3, 70], [50, 0, 2**31 - 1], [9, 9, 9], [70, 3, 0]])
def test_no_bounds_lead_out_of_the_batch(bounds):
    """Whatever they hold: memory is safe where the sequence is one of the batch."""
    out = torch.full((20, 2), -1)
    blocks_kernel[20,](out, torch.tensor(bounds, dtype=torch.int32), 2, 0, BLOCK=16)
    assert all(0 <= sequence < 2 for sequence, _ in out.tolist())


@triton.jit
def bits_kernel(out, seed, example_id, stream, M: tl.constexpr, N: tl.constexpr):
    rows = 1000 + tl.arange(0, M)
    bits = dropout_bits(tl.load(seed), tl.load(example_id), rows, stream, 3 + tl.arange(0, N // 8))
    tl.store(out + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :], bits.to(tl.int32))


def test_dropout_bits_follow_the_rule():
    out = torch.empty(8, 64, dtype=torch.int32)
    for seed, example_id in ((0, 0), (2**63 - 1, 7), (-(2**60) - 3, 2**45 + 11)):
        seed, example_id = torch.tensor([seed]), torch.tensor([example_id])
        bits_kernel[1,](out, seed, example_id, 5, M=8, N=64)
        expected = philox.dropout_bits(seed[0], example_id.expand(8), torch.arange(1000, 1008), 5, 24 + 64)[:, 24:]
        assert torch.equal(out, expected)


@triton.jit
def weights_kernel(out, seed, example_id, head, threshold, M: tl.constexpr, N: tl.constexpr):
    of_query, of_key, key = head_key(tl.load(seed), tl.load(example_id), head)
    keep = keep_weights(of_query, of_key, key, 48, 32, threshold, M, N)
    tl.store(out + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :], keep)


@pytest.mark.parametrize("p", [2**-16, 0.3, 1.0])
@pytest.mark.parametrize(("seed", "example_id"), [(0, 0), (2**63 - 1, 7), (-(2**60) - 3, 2**45 + 11)])
def test_attention_weights_follow_the_rule(seed, example_id, p):
    seed, example_id, out = torch.tensor([seed]), torch.tensor([example_id]), torch.empty(32, 64, dtype=torch.bool)
    weights_kernel[1,](out, seed, example_id, 5, philox.threshold(p), M=32, N=64)
    expected = philox.keep_weights(seed[0], example_id, torch.tensor([5]), range(48, 80), 96, p)[0, :, 32:]
    assert torch.equal(out, expected)


def test_is_chosen_on_request_only():
    facts = {"device_type": "cpu", "dtype": torch.float32, "head_dim": 64, "dropout": True}
    assert dispatch.choose("varlen_attention", **facts) != "triton"
    with use_backend("triton"):
        assert dispatch.choose("varlen_attention", **facts) == "triton"
        with pytest.raises(RuntimeError, match="float64"):
            dispatch.choose("varlen_attention", **{**facts, "dtype": torch.float64})
