"""The Triton kernels: values in Triton's interpreter, in a process of their own, and compilation for each GPU.

Triton chooses its interpreter when a kernel is decorated, so that one process either interprets or compiles.
"""

import os
import subprocess
import sys
from pathlib import Path

import lstm_cases as cases
import pytest
import torch

from penstock.kernels import dispatch, lstm_cell, use_backend
from penstock.kernels.lstm.protocol import LayerInputs

triton = pytest.importorskip("triton")
backend = pytest.importorskip("penstock.kernels.lstm.triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_in_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYERS = [
    cases.layer([3, 0, 5, 1, 17], 4, 7),
    cases.layer([2, 3], 3, 16, directions=1, states=False, bias=False),
    cases.layer([2] * 18, 3, 70, resets=True),
]


@compiled
def test_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(Path(__file__))],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.fixture
def bfloat16_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9's interpreter holds bfloat16 as integers and multiplies those; products are exact in float32."""
    from triton.runtime.interpreter import InterpreterBuilder

    plain = InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, *rest):
        a, b = (self.create_fp_ext(x, triton.language.float32) if x.dtype.is_bf16() else x for x in (a, b))
        return plain(self, a, b, d, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@interpreted
@pytest.mark.usefixtures("bfloat16_dot")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("inputs", LAYERS, ids=range(len(LAYERS)))
def test_layer(inputs: LayerInputs, persistent: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_RESIDENT_BYTES", 1 << 20 if persistent else 0)
    exact = inputs._replace(
        x=inputs.x.to(dtype).double(),
        weights=type(inputs.weights)(*([w.to(dtype).double() for w in kind] for kind in inputs.weights)),
        h0=None if inputs.h0 is None else inputs.h0.to(dtype).double(),
    )
    cases.check("triton", exact, dtype, return_cells=len(inputs.x) != 36)


@interpreted
@pytest.mark.parametrize("persistent", [True, False])
def test_bounds_outside_the_tokens_stay_in_memory(persistent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_RESIDENT_BYTES", 1 << 20 if persistent else 0)
    inputs = cases.layer([3, 2], 3, 5)
    single = cases.recorded(inputs, torch.float32)
    wild = single._replace(cu_seqlens=torch.tensor([-7, 3, 1 << 30], dtype=torch.int32))
    with torch.no_grad():
        y = backend.forward(wild, False, False).y
    torch.testing.assert_close(
        y[3:].double(), cases.truth(inputs, [*cases.cotangents(inputs)])[0][0][3:], atol=1e-5, rtol=0
    )


@interpreted
@pytest.mark.parametrize("persistent", [True, False])
def test_same_bits_and_no_leak_between_sequences(persistent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_RESIDENT_BYTES", 1 << 20 if persistent else 0)
    inputs = cases.layer([4, 0, 6, 2], 3, 5)
    changed = inputs._replace(x=inputs.x.clone())
    changed.x[4:10] = float("nan")
    grads = [*cases.cotangents(inputs)[:3], None]
    results = [cases.run("triton", each, torch.float32, grads) for each in (inputs, inputs, changed)]
    (y, *_), (dx, *_) = results[0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    for rows in (slice(0, 4), slice(10, 12)):
        assert torch.equal(y[rows], results[2][0][0][rows])
        assert torch.equal(dx[rows], results[2][1][0][rows])


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
def test_cell(dtype: torch.dtype) -> None:
    gates = torch.randn(37, 4 * 50).to(dtype).requires_grad_()
    c = torch.randn(37, 50, requires_grad=True)
    results = []
    for name in ("triton", "reference"):
        with use_backend(name):
            h, c_next = lstm_cell(gates, c)
        both = torch.autograd.grad([h, c_next], [gates, c], [torch.ones_like(h), torch.full_like(c, 0.3)])
        only_c = torch.autograd.grad(lstm_cell(gates, c)[1].sum(), [gates, c])
        results.append([h, c_next, *both, *only_c])
    assert max(cases.errors(*results)) < cases.BOUNDS[dtype][0]


@interpreted
def test_functions_near_zero_and_far() -> None:
    x = torch.tensor([0.0, 1e-6, -1e-3, 0.0999, 0.1001, -5.0, 88.0, -200.0, float("nan")])
    gates = torch.stack([torch.full_like(x, 100.0), torch.full_like(x, -100.0), x, x], 1).double()
    with use_backend("triton"):
        h, c = lstm_cell(gates.float(), torch.zeros(9, 1))
    torch.testing.assert_close(c[:, 0].double(), x.double().tanh(), rtol=1e-6, atol=0, equal_nan=True)
    expected = x.double().sigmoid() * x.double().tanh().tanh()
    torch.testing.assert_close(h[:, 0].double(), expected, rtol=1e-6, atol=1e-30, equal_nan=True)


def test_is_never_the_default() -> None:
    reasons = {(operation, name): reason for operation, name, reason in dispatch.status()}
    assert reasons["lstm", "triton"]
    facts = {"dtype": torch.float32, "input_size": 4, "hidden_size": 4, "proj_size": 0, "needs": ()}
    for device in ("cpu", "cuda"):
        assert dispatch.choose("lstm", device_type=device, **facts) != "triton"


def signature(kernel, storage: str, constants: dict) -> tuple[dict, dict]:
    """Argument types: pointers by what they hold, numbers as int32."""
    wide = {"cells", "c0", "c_n", "dc", "dh", "dcells", "c", "c_next", "dc_next"}
    if "fused_cell" in kernel.fn.__name__ or "step" in kernel.fn.__name__:
        wide -= {"dh"}
    types = {}
    for name in kernel.arg_names:
        if name in ("tokens", "batch", "step", "count"):
            types[name] = "i32"
        elif name == "cu_seqlens":
            types[name] = "*i32"
        elif name == "order":
            types[name] = "*i64"
        elif name.isupper():
            types[name] = "constexpr"
        else:
            types[name] = "*fp32" if name in wide else f"*{storage}"
    values = {(kernel.arg_names.index(name),): constants[name] for name in types if name.isupper()}
    return types, values


def compile_for(capability: int, name: str, storage: str, hidden: int, everything: bool = True) -> object:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(backend, name)
    tile = backend._persistent_tile(backend._padded(hidden)) if "persistent" in name else dict(backend._STEP_TILE)
    options = {option: tile.pop(option) for option in ("num_warps", "num_stages")}
    flags = dict.fromkeys((arg for arg in kernel.arg_names if arg.startswith(("HAS_", "SAVE_"))), everything)
    constants = {"H": hidden, "D": 2, "FIRST": not everything, "PRECISION": "ieee", "BLOCK": 1024, **flags, **tile}
    source = ASTSource(kernel, *signature(kernel, storage, constants))
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
KERNELS = [
    ("persistent_forward", "bf16", 128),
    ("persistent_backward", "bf16", 128),
    ("persistent_forward", "fp32", 64),
    ("persistent_backward", "fp32", 64),
    ("step_forward", "bf16", 512),
    ("step_backward", "bf16", 512),
    ("step_forward", "fp32", 300),
    ("step_backward", "fp16", 300),
    ("fused_cell_forward", "bf16", 256),
    ("fused_cell_backward", "fp32", 256),
]


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(("name", "storage", "hidden"), KERNELS)
def test_compiles(capability: int, name: str, storage: str, hidden: int) -> None:
    binary = compile_for(capability, name, storage, hidden)
    assert binary.asm["cubin"]
    assert binary.metadata.shared <= SHARED_BYTES[capability]


@compiled
@pytest.mark.parametrize(
    ("name", "everything"),
    [("persistent_backward", True), ("persistent_forward", False), ("step_forward", False), ("step_backward", False)],
)
def test_compiles_for_hopper(name: str, everything: bool) -> None:
    assert compile_for(90, name, "bf16", 32, everything).asm["cubin"]
