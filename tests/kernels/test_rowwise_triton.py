"""The Triton kernels of residual_norm, bias_gelu, geglu, rotary and segment_pool: values in the interpreter, which must
be asked for before a kernel is defined, in a process of its own; and compiled for GPUs that need not be there."""

import os
import subprocess
import sys
from itertools import accumulate

import pytest
import torch
import triton

from penstock.kernels import bias_gelu, dispatch, geglu, residual_norm, rotary, segment_pool, use_backend
from penstock.kernels.gelu import triton as gelu
from penstock.kernels.norm import triton as norm
from penstock.kernels.pooling import triton as pooling
from penstock.kernels.rotary import triton as rotation

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INTERPRETED, reason="run in the interpreter by test_in_the_interpreter")
outside = pytest.mark.skipif(INTERPRETED, reason="not for the interpreter")

LENGTHS = (3, 0, 1, 14, 0)
BOUND = {torch.float32: 1e-5, torch.float16: 2e-3}


@outside
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=os.path.dirname(__file__))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert " passed" in run.stdout


def bounds(lengths=LENGTHS):
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


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


@inside
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(("prenorm", "wide"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("width", [5, 70])
def test_norm(width, prenorm, wide, p, dtype, monkeypatch):
    monkeypatch.setattr(norm, "_PROGRAMS", 4)  # more than one row each
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(LENGTHS), width)] * 2 + [(width,)] * 3
    drop = {"dropout_p": p, "cu_seqlens": bounds(), "ids": torch.arange(5) + 2**40, "seed": torch.tensor(-(2**50))}

    def operation(x, residual, x_bias, weight, bias):
        stream = residual.to(torch.promote_types(x.dtype, torch.float32)) if wide else residual
        return residual_norm(x, stream, weight, bias, x_bias=x_bias, prenorm=prenorm, **(drop if p else {}))

    check(operation, [torch.randn(shape, generator=generator) for shape in shapes], dtype)


@inside
@pytest.mark.parametrize("dtype", BOUND)
def test_gelu(dtype):
    generator = torch.Generator().manual_seed(0)
    check(bias_gelu, [torch.randn(shape, generator=generator) * 2 for shape in ((131, 21), (21,))], dtype)
    check(bias_gelu, [torch.randn(3, 200, generator=generator)], dtype)
    check(geglu, [torch.randn(shape, generator=generator) * 2 for shape in ((131, 42), (42,))], dtype)
    check(geglu, [torch.randn(3, 260, generator=generator)], dtype)


@inside
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("q_heads", "k_heads", "head_dim"), [(3, 3, 32), (5, 1, 10), (0, 2, 6), (1, 1, 2)])
def test_rotary(q_heads, k_heads, head_dim, dtype):
    generator = torch.Generator().manual_seed(0)
    cos, sin = (torch.randn(13, head_dim, generator=generator) for _ in range(2))

    def operation(product):
        return rotary(product[:, :q_heads], product[:, q_heads:], cos, sin)

    check(operation, [torch.randn(13, q_heads + k_heads, head_dim, generator=generator)], dtype)


@inside
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("mode", ["max", "mean", "last", "attention"])
def test_pooling(mode, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(sum(LENGTHS), 130, generator=generator)
    scores = [torch.randn(sum(LENGTHS), generator=generator)] if mode == "attention" else []

    def operation(values, scores=None):
        return segment_pool(values, bounds(), mode, scores, bidirectional=mode == "last")

    check(operation, [values, *scores], dtype)


@inside
def test_the_first_maximum_and_the_first_nan():
    values = torch.tensor([[1.0, 5.0], [7.0, 5.0], [7.0, 2.0], [3.0, float("nan")], [4.0, float("inf")]])
    values.requires_grad_()
    with use_backend("triton"):
        out = segment_pool(values, bounds((3, 2)), "max")
    torch.testing.assert_close(out, torch.tensor([[7.0, 5.0], [4.0, float("nan")]]), equal_nan=True)
    out.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, 1], [1, 0], [0, 0], [0, 1], [1, 0]]))


@inside
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


@outside
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


@outside
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
