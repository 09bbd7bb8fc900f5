"""The Triton kernels of residual_norm, bias_gelu, geglu, rotary and segment_pool compiled for GPUs that need not be
there; interpreted_rowwise.py runs them."""

import pytest
import torch
import triton

from penstock.kernels import dispatch
from penstock.kernels.gelu import triton as gelu
from penstock.kernels.norm import triton as norm
from penstock.kernels.pooling import triton as pooling
from penstock.kernels.rotary import triton as rotation


def test_say_what_they_cannot_serve():
    facts = {"device_type": "cuda", "dtype": torch.bfloat16, "width": 384, "mode": "max"}
    for operation in ("residual_norm", "bias_gelu", "geglu", "rotary", "segment_pool"):
        why_not = dispatch._registry[operation]["triton"].why_not
        assert why_not(**facts) is None
        assert "CUDA" in why_not(**{**facts, "device_type": "cpu"})
        assert "float64" in why_not(**{**facts, "dtype": torch.float64})
    assert "width" in dispatch._registry["residual_norm"]["triton"].why_not(**{**facts, "width": 8193})


FLOATS = {"weight", "bias", "x_bias", "rstd", "sums", "scores", "weights", "grad_scores", "cos", "sin"}
INTEGERS = {"cu_seqlens": "*i32", "ids": "*i64", "seed": "*i64", "eps": "fp32", "dropout_scale": "fp32"}
STREAM = {"residual", "z_out", "grad_z", "grad_residual"}
COUNTS = {"batch", "halvings", "threshold", "rows", "rows_per_program", "count", "tokens", "half"}
COUNTS |= {f"{of}_{stride}" for of in "qk" for stride in ("token_stride", "head_stride")}


def compile_kernel(kernel, capability, num_warps=4, element="*bf16", saved="*fp32", stream="*bf16", **constants):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def kind(name):
        if name in constants:
            return "constexpr"
        if name in COUNTS:
            return "i32"
        if name == "saved":
            return saved
        if name in STREAM:
            return stream
        return INTEGERS.get(name) or ("*fp32" if name in FLOATS else element)

    signature = {name: kind(name) for name in kernel.arg_names}
    values = {(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants}
    pointers = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(kernel, signature, values, pointers)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compile_for_gpus(capability):
    binaries = []
    for width in (384, 1024):
        shape = {"WIDTH": width, "BLOCK": norm.block(width), "DROPOUT": True, "num_warps": norm.warps(width)}
        options = {"HAS_X_BIAS": True, "HAS_BIAS": True, "SAVE": True}
        for more in ({"PRENORM": False}, {"PRENORM": True, "stream": "*fp32"}):
            forward, backward = {**options, **more}, {"TWO_GRADIENTS": True, **more}
            binaries.append(compile_kernel(norm.forward_kernel, capability, **shape, **forward))
            binaries.append(compile_kernel(norm.backward_kernel, capability, **shape, **backward))
    options = {"WIDTH": 1536, "HAS_BIAS": True}
    binaries.append(compile_kernel(gelu.forward_kernel, capability, BLOCK=gelu.BLOCK, SAVE=True, **options))
    tile = {"BLOCK_ROWS": gelu.BLOCK_ROWS, "BLOCK_COLUMNS": gelu.BLOCK_COLUMNS}
    binaries.append(compile_kernel(gelu.backward_kernel, capability, **tile, **options))
    options = {"WIDTH": 576, "HAS_BIAS": True}
    binaries.append(compile_kernel(gelu.geglu_forward_kernel, capability, BLOCK=gelu.BLOCK, **options))
    binaries.append(compile_kernel(gelu.geglu_backward_kernel, capability, **tile, **options))
    heads = {"Q_HEADS": 12, "Q_BLOCK": rotation.block(12), "K_HEADS": 3, "K_BLOCK": rotation.block(3)}
    half = {"HALF": 24, "HALF_BLOCK": rotation.block(24)}
    for transposed in (False, True):
        options = {"TRANSPOSED": transposed, **heads, **half}
        binaries.append(compile_kernel(rotation.kernel, capability, **options))
    shape = {"FEATURES": 512, "BLOCK": pooling.BLOCK}
    for mode in ("max", "mean", "last", "attention"):
        saved = "*i32" if mode == "max" else "*fp32"
        options = {"saved": saved, "MODE": mode, **shape}
        binaries.append(compile_kernel(pooling.forward_kernel, capability, **options))
        binaries.append(compile_kernel(pooling.backward_kernel, capability, **options))
    binaries.append(compile_kernel(pooling.scores_backward_kernel, capability, **shape))
    assert all(binary.asm["cubin"] for binary in binaries)
