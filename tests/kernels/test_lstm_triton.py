"""The Triton LSTM compiled for GPUs that need not be there; interpreted_lstm.py runs it."""

import pytest
import torch

from penstock.kernels import dispatch

triton = pytest.importorskip("triton")
backend = pytest.importorskip("penstock.kernels.lstm.triton")


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


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(("name", "storage", "hidden"), KERNELS)
def test_compiles(capability: int, name: str, storage: str, hidden: int) -> None:
    binary = compile_for(capability, name, storage, hidden)
    assert binary.asm["cubin"]
    assert binary.metadata.shared <= SHARED_BYTES[capability]


@pytest.mark.parametrize(
    ("name", "everything"),
    [("persistent_backward", True), ("persistent_forward", False), ("step_forward", False), ("step_backward", False)],
)
def test_compiles_for_hopper(name: str, everything: bool) -> None:
    assert compile_for(90, name, "bf16", 32, everything).asm["cubin"]
