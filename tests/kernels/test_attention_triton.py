"""The Triton attention compiled for GPUs that need not be there; interpreted_attention.py runs it."""

import pytest
import torch
import triton

from penstock.kernels import dispatch
from penstock.kernels.attention import Problem
from penstock.kernels.attention import triton as backend
from penstock.kernels.attention import triton_kernels as kernels


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
