"""Nothing on a GPU path waits for the device or depends on what its tensors hold, so that a step can be captured in a
CUDA graph; and how many kernels each operation launches. Found out without a GPU.

Triton's backends run on fake CUDA tensors, which have no contents: whatever asks for some (`.item()`, `if tensor`,
`nonzero`, a mask as an index) raises. Copies to the host are caught on their way. Launches are counted, not made.
"""

import ast
import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from subtested import as_subtests
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.kernels import attention, dispatch, gelu, norm, pooling
from penstock.kernels.lstm import protocol

KERNELS = Path(norm.__file__).parents[1]
TOKENS, BATCH, HEADS, HEAD_DIM, WIDTH, HIDDEN = 90, 5, 2, 64, 768, 256

# what waits, or gives a tensor whose shape only its contents tell
WAITS = {
    "item",
    "tolist",
    "cpu",
    "numpy",
    "nonzero",
    "masked_select",
    "unique",
    "synchronize",
    "argwhere",
    "repeat_interleave",
}
# Files of a GPU's path, in which nothing may. What ragged.py reads is on the CPU, or PENSTOCK_DEBUG asks for it.
SCANNED = sorted(
    file
    for file in KERNELS.rglob("*.py")
    if file.stem
    in (
        "triton",
        "triton_kernels",
        "triton_backward",
        "cuda",
        "operation",
        "dispatch",
        "autograd",
        "autocast",
        "dropout",
        "__init__",
    )
)


class Watched(TorchDispatchMode):
    """Refuses copies from a device to the host, and counts what torch itself would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in args if isinstance(each, Tensor)]
        out = function(*args, **(kwargs or {}))
        made = [each for each in (out if isinstance(out, tuple | list) else [out]) if isinstance(each, Tensor)]
        if any(x.is_cuda for x in given) and any(not y.is_cuda for y in made):
            raise AssertionError(f"{function} copies to the host")
        name = function._schema.name
        allocates = name.startswith("aten::empty") or name.startswith("aten::new_empty")
        if not allocates and any(x.is_cuda for x in made) and not function.is_view and name != "aten::detach":
            self.launches.append(name)
        return out


@contextlib.contextmanager
def on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    triton = pytest.importorskip("triton")
    watched = Watched()
    jit = type(importlib.import_module("penstock.kernels.norm.triton").forward_kernel)
    if jit is not triton.JITFunction:
        pytest.skip("Triton's interpreter is on")

    def launch(function: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        assert all(isinstance(size, int) for size in grid)
        watched.launches.append(function.fn.__name__)

    with monkeypatch.context() as patch, FakeTensorMode(), watched:
        patch.setattr(jit, "run", launch)
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        yield watched


def half(*shape: int, device: str = "cuda") -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=device)


def single(*shape: int) -> Tensor:
    return torch.empty(shape, device="cuda")


def integers(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def bounds() -> Tensor:
    return integers(BATCH + 1)


def drop() -> dict[str, Any]:
    long = torch.int64
    return {"dropout_p": 0.1, "seed": integers(dtype=long), "ids": integers(BATCH, dtype=long)}


def attention_problem() -> Any:
    qkv = [half(TOKENS, HEADS, HEAD_DIM) for _ in range(3)]
    window = {"window_left": -1, "window_right": -1, "scale": 0.125}
    return attention.Problem(*qkv, bounds(), bounds(), 70, 70, **window, **drop())


def norm_problem(prenorm: bool) -> Any:
    rows, columns = [half(TOKENS, WIDTH) for _ in range(2)], [single(WIDTH) for _ in range(3)]
    return norm.Problem(*rows, *columns, eps=1e-5, cu_seqlens=bounds(), prenorm=prenorm, save=True, **drop())


def pool_problem(mode: str) -> Any:
    scores = half(TOKENS) if mode == "attention" else None
    return pooling.Problem(half(TOKENS, 512), scores, bounds(), mode, mode == "last")


def turn_problem() -> Any:
    problem = importlib.import_module("penstock.kernels.rotary").Problem  # the name is the function's
    return problem(half(TOKENS, 4, 64), half(TOKENS, 4, 64), single(TOKENS, 64), single(TOKENS, 64), False)


# {name: (operation, its problem, its backward's fields)}
CASES: dict[str, tuple[str, Callable[[], Any], Any]] = {
    "varlen_attention": ("varlen_attention", attention_problem, attention.Backward),
    "residual_norm": ("residual_norm", lambda: norm_problem(False), norm.Backward),
    "residual_norm, prenorm": ("residual_norm", lambda: norm_problem(True), norm.Backward),
    "bias_gelu": ("bias_gelu", lambda: gelu.Gelu(half(TOKENS, 3072), single(3072), True), gelu.GeluBackward),
    "geglu": ("geglu", lambda: gelu.Geglu(half(TOKENS, 2304), single(2304)), gelu.GegluBackward),
    "rotary": ("rotary", turn_problem, None),
    **{
        f"segment_pool, {mode}": ("segment_pool", lambda mode=mode: pool_problem(mode), pooling.Backward)
        for mode in pooling.MODES
    },
}
# kernels that one call launches, and its backward; rotary's backward is rotary
LAUNCHES = {
    "varlen_attention": (1, 3),
    "residual_norm": (1, 2),
    "residual_norm, prenorm": (1, 2),
    "bias_gelu": (1, 2),
    "geglu": (1, 2),
    "rotary": (1, 0),
    **{f"segment_pool, {mode}": (1, 1 + (mode == "attention")) for mode in pooling.MODES},
}


@pytest.mark.parametrize("name", CASES)
def test_triton_never_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, make, backward = CASES[name]
    module = dispatch.implementation(operation, "triton")
    with on_a_gpu(monkeypatch) as watched:
        problem = make()
        watched.launches.clear()
        found = getattr(module, operation)(problem)
        forward = list(watched.launches)
        if backward is not None:
            results = {"out": found} if isinstance(found, Tensor) else found._asdict()
            given = {f"grad_{name}": result for name, result in results.items()} | results
            fields = {each: given[each] if each in given else getattr(problem, each) for each in backward._fields}
            watched.launches.clear()
            getattr(module, f"{operation}_backward")(backward(**fields))
        backwards = list(watched.launches) if backward is not None else []
    assert (len(forward), len(backwards)) <= LAUNCHES[name], (forward, backwards)
    assert forward


@pytest.mark.parametrize("hidden", [64, HIDDEN])
def test_the_lstms_triton_never_waits(hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake tensors of the CPU: torch without CUDA slices no others. Copies to the host are the scan's to find."""
    module = dispatch.implementation("lstm", "triton")
    cpu = {"device": "cpu"}
    with on_a_gpu(monkeypatch) as watched:
        w_ih, w_hh = ([half(4 * hidden, width, **cpu) for _ in range(2)] for width in (32, hidden))
        weights = protocol.LayerWeights(
            w_ih, w_hh, *([half(4 * hidden, **cpu) for _ in range(2)] for _ in range(2)), []
        )
        inputs = protocol.LayerInputs(half(TOKENS, 32, **cpu), torch.empty(BATCH + 1, dtype=torch.int32), 70, weights)
        out = module.forward(inputs, False, True)
        grads = protocol.OutputGrads(out.y, out.h_n, out.c_n, None)
        module.backward(grads, inputs, out.y, out.saved, True, True)
    assert watched.launches


def test_the_watch_sees_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: dict[str, Callable[[Tensor], object]] = {
        "item": lambda x: x.sum().item(),
        "bool": lambda x: 1 if x.sum() > 0 else 0,
        "tolist": lambda x: x.tolist(),
        "nonzero": torch.nonzero,
        "mask": lambda x: torch.masked_select(x, x > 0),
        "cpu": lambda x: x.cpu(),
        "to": lambda x: x.to("cpu"),
    }
    for name, fault in faults.items():
        with on_a_gpu(monkeypatch):
            x = single(8)
            try:
                fault(x)
            except (AssertionError, RuntimeError):  # without CUDA torch itself refuses some of them
                continue
        pytest.fail(f"{name} was not seen")


def waits(source: str) -> list[str]:
    """Where a file calls what waits, as "line: name"."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [(call, call.func.attr) for call in calls if isinstance(call.func, ast.Attribute)]
    found = [(call.lineno, name) for call, name in named if name in WAITS or (name == "to" and to_cpu(call))]
    return [f"{line}: {name}" for line, name in sorted(found)]


def to_cpu(call: ast.Call) -> bool:
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(isinstance(each, ast.Constant) and each.value == "cpu" for each in given)


@as_subtests("file", SCANNED)
def test_no_call_that_waits_is_written(file: Path) -> None:
    """Also of the CUDA backend, whose calls into C++ fake tensors cannot follow."""
    assert waits(file.read_text()) == []


def test_the_scan_sees_what_waits() -> None:
    assert len(SCANNED) > 12
    assert waits(
        "def f(x):\n    if x.sum().item():\n        torch.cuda.synchronize()\n    return x.nonzero().to('cpu')"
    ) == [
        "2: item",
        "3: synchronize",
        "4: nonzero",
        "4: to",
    ]
