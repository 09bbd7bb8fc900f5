"""The Triton attention in the interpreter, which must be asked for before a kernel is defined: in a process of its own;
and compiled for GPUs that need not be there."""

import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

from penstock.kernels import dispatch, philox, use_backend
from penstock.kernels.attention import Backward, Problem
from penstock.kernels.attention import plain as reference
from penstock.kernels.attention import triton as backend
from penstock.kernels.attention import triton_kernels as kernels
from penstock.kernels.philox_triton import dropout_bits

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INTERPRETED, reason="run in the interpreter by test_in_the_interpreter")
outside = pytest.mark.skipif(INTERPRETED, reason="not for the interpreter")

LENGTHS_Q = [5, 0, 1, 70, 2]
LENGTHS_K = [3, 3, 1, 66, 0]
VARIANTS = {
    "full": {},
    "causal": {"window_right": 0},
    "window": {"window_left": 7, "window_right": 3},
    "dropout": {"dropout_p": 0.2},
    "all": {"dropout_p": 0.1, "window_left": 40, "window_right": 0},
}


@outside
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=os.path.dirname(__file__))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert "passed" in run.stdout


def compute(module, dtype, heads, kv_heads, head_dim, **options):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS_Q), sum(LENGTHS_K), sum(LENGTHS_K), sum(LENGTHS_Q)
    sizes = zip(tokens, (heads, kv_heads, kv_heads, heads), strict=True)
    q, k, v, grad_out = (torch.randn(*size, head_dim, generator=generator).to(dtype) for size in sizes)
    if module is reference:
        q, k, v, grad_out = q.double(), k.double(), v.double(), grad_out.double()
    bounds = [torch.tensor([0, *x]).cumsum(0).to(torch.int32) for x in (LENGTHS_Q, LENGTHS_K)]
    seed, ids = torch.tensor(-(2**62) + 12345), torch.arange(len(LENGTHS_Q)) + 2**33
    options = {"window_left": -1, "window_right": -1, "dropout_p": 0.0, "seed": seed, "ids": ids, **options}
    fields = *bounds, max(LENGTHS_Q), max(LENGTHS_K), head_dim**-0.5
    out, lse = module.varlen_attention(Problem(q, k, v, *fields, **options))
    return lse, out, *module.varlen_attention_backward(Backward(grad_out, q, k, v, out, lse, *fields, **options))


@inside
@pytest.mark.parametrize(
    ("dtype", "shape", "variant"),
    [
        *((torch.float32, (2, 1, 20), variant) for variant in VARIANTS),
        (torch.float32, (1, 1, 80), "all"),
        (torch.float16, (2, 2, 64), "dropout"),
        (torch.float16, (1, 1, 256), "full"),
    ],
)
def test_equals_reference(dtype, shape, variant):
    lse, *found = compute(backend, dtype, *shape, **VARIANTS[variant])
    expected_lse, *expected = compute(reference, dtype, *shape, **VARIANTS[variant])
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)
    bound = {torch.float32: 1e-5, torch.float16: 2e-3}[dtype]
    for y, r, limit in zip(found, expected, [bound, *[2 * bound] * 3], strict=True):
        assert y.dtype == dtype
        assert (y.double() - r).norm() <= limit * r.norm()


@triton.jit
def bits_kernel(out, seed, example_id, stream, M: tl.constexpr, N: tl.constexpr):
    rows = 1000 + tl.arange(0, M)
    bits = dropout_bits(tl.load(seed), tl.load(example_id), rows, stream, 3 + tl.arange(0, N // 8))
    tl.store(out + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :], bits.to(tl.int32))


@inside
def test_dropout_bits_follow_the_rule():
    out = torch.empty(8, 64, dtype=torch.int32)
    for seed, example_id in ((0, 0), (2**63 - 1, 7), (-(2**60) - 3, 2**45 + 11)):
        seed, example_id = torch.tensor([seed]), torch.tensor([example_id])
        bits_kernel[1,](out, seed, example_id, 5, M=8, N=64)
        expected = philox.dropout_bits(seed[0], example_id.expand(8), torch.arange(1000, 1008), 5, 24 + 64)[:, 24:]
        assert torch.equal(out, expected)


@inside
def test_is_chosen_on_request_only():
    facts = {"device_type": "cpu", "dtype": torch.float32, "head_dim": 64, "dropout": True}
    assert dispatch.choose("varlen_attention", **facts) != "triton"
    with use_backend("triton"):
        assert dispatch.choose("varlen_attention", **facts) == "triton"
        with pytest.raises(RuntimeError, match="float64"):
            dispatch.choose("varlen_attention", **{**facts, "dtype": torch.float64})


@outside
def test_says_what_it_cannot_serve():
    facts = {"device_type": "cuda", "dtype": torch.bfloat16, "head_dim": 64, "dropout": True}
    why_not = dispatch._registry["varlen_attention"]["triton"].why_not
    assert why_not(**facts) is None
    assert "CUDA" in why_not(**{**facts, "device_type": "cpu"})
    assert "float64" in why_not(**{**facts, "dtype": torch.float64})
    assert "head_dim" in why_not(**{**facts, "head_dim": 257})


SHARED_MEMORY = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}  # sm_86 runs what is built for sm_80, and has 99 KiB


def compile_kernel(kernel, tile, dtype, head_dim, capability, window=False, dropout=True):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    q = torch.empty(1, 12, head_dim, dtype=dtype)
    window, p = (1, 1) if window else (-1, -1), 0.1 if dropout else 0.0
    constants = backend._constants(Problem(q, q, q, None, None, 1, 1, 1.0, *window, p, None, None), tile)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    if not dropout:
        constants.update(seed=None, ids=None)
    element = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    types = dict.fromkeys(("lse", "delta", "cu_seqlens_q", "cu_seqlens_k", "seed", "ids"))
    types.update(lse="*fp32", delta="*fp32", cu_seqlens_q="*i32", cu_seqlens_k="*i32", seed="*i64", ids="*i64")
    types.update(scale="fp32", dropout_scale="fp32")
    types.update(dict.fromkeys(("q", "k", "v", "out", "grad_out", "dq", "dk", "dv"), element))
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    values = {(i,): constants[n] for i, n in enumerate(kernel.arg_names) if n in constants}
    aligned = [i for i, n in enumerate(kernel.arg_names) if signature[n][0] == "*" or n.startswith("stride")]
    source = ASTSource(kernel, signature, values, {(i,): [["tt.divisibility", 16]] for i in aligned})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@outside
@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize(
    ("dtype", "head_dim", "window"),
    [
        (torch.bfloat16, 32, False),
        (torch.bfloat16, 64, False),
        (torch.float16, 64, True),
        (torch.bfloat16, 80, False),
        (torch.bfloat16, 256, False),
        (torch.float32, 64, False),
    ],
)
def test_compiles_for_gpus(dtype, head_dim, window, capability):
    tiles = backend.choose_tiles(dtype, head_dim, 512)
    for kernel, tile in zip((kernels.forward_kernel, kernels.dq_kernel, kernels.dkdv_kernel), tiles, strict=True):
        compiled = compile_kernel(kernel, tile, dtype, head_dim, capability, window)
        assert compiled.metadata.shared <= SHARED_MEMORY[capability]
        assert compiled.asm["cubin"]
