"""Triton kernels compiled for a GPU that need not be there, from the launches that a backend makes.

`compiled_for(90)` compiles what a backend launches instead of running it, with the argument types, alignments and
options of that launch. `CASES` names one call for each kernel; `python tests/compiled_triton.py [WORD ...]` prints how
large and how wide the machine code is of those whose names contain one of the words.
"""

import contextlib
import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SHARED_BYTES = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}  # sm_86 runs what is built for sm_80, and has 99 KiB


class _Driver:
    """What Triton asks of the driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


class _Elsewhere:
    """A tensor at an address that nothing divides."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype

    def data_ptr(self) -> int:
        return 1


@contextlib.contextmanager
def compiled_for(capability: int, aligned: bool = True) -> Iterator[list[tuple[str, Any]]]:
    """Within, launches compile only; gives the list of (kernel's name, compiled kernel) that they are added to.

    Args:
        aligned: with tensors where they are, as torch's allocator aligns them; else anywhere.
    """
    found: list[tuple[str, Any]] = []
    run, active = JITFunction.run, driver._active

    @functools.wraps(run)
    def compile_only(kernel: Any, *args: Any, warmup: bool, **options: Any) -> Any:
        if not aligned:
            args = tuple(_Elsewhere(x) if isinstance(x, Tensor) else x for x in args)
        found.append((kernel.__name__, run(kernel, *args, warmup=True, **options)))

    JITFunction.run = compile_only  # type: ignore[method-assign]
    driver.set_active(_Driver(capability))  # type: ignore[arg-type]
    try:
        yield found
    finally:
        driver._active = active  # not `reset_active`, which looks for a GPU
        JITFunction.run = run  # type: ignore[method-assign]


class Code(NamedTuple):
    """What a kernel's machine code takes.

    Attributes:
        registers: of a thread. stack: bytes a thread spills or indexes. shared: bytes of a block.
        instructions: in all. loops: in each innermost loop, in order. barriers: in the largest of those.
        load, store: bits that one access moves between a thread and global memory, at most and at least.
    """

    registers: int
    stack: int
    shared: int
    instructions: int
    loops: list[int]
    barriers: int
    load: tuple[int, int]
    store: tuple[int, int]


_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def code(compiled: Any) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = lambda *args: subprocess.run(args, capture_output=True, text=True, check=True).stdout  # noqa: E731
        usage = tool(_TOOLS / "cuobjdump", "-res-usage", file.name)
        lines = tool(_TOOLS / "nvdisasm", "-c", file.name).splitlines()
    labels: dict[str, int] = {}
    listing: list[str] = []
    for line in lines:
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(listing)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            listing.append(instruction[1])
    loops = []
    for end, instruction in enumerate(listing):
        branch = re.search(r"\bBRA\b.*(\.L_x_\d+)", instruction)
        if branch and labels[branch[1]] < end:  # a jump to itself only keeps what lies behind the end out
            loops.append((labels[branch[1]], end + 1))
    inner = [loop for loop in loops if not any(loop != o and loop[0] <= o[0] and o[1] <= loop[1] for o in loops)]
    largest = max(inner, key=lambda loop: loop[1] - loop[0], default=(0, len(listing)))
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    return Code(
        registers=numbers["REG"],
        stack=numbers["STACK"],
        shared=compiled.metadata.shared,
        instructions=len(listing),
        loops=[end - start for start, end in inner],
        barriers=sum("BAR.SYNC" in instruction for instruction in listing[slice(*largest)]),
        load=_range(widths(compiled, "ld")),
        store=_range(widths(compiled, "st")),
    )


def _range(found: list[int]) -> tuple[int, int]:
    return (max(found), min(found)) if found else (0, 0)


def widths(compiled: Any, kind: str) -> list[int]:
    """The bits that each load ("ld") or store ("st") of global memory moves for a thread, as the PTX has them."""
    ptx = compiled.asm["ptx"]
    found = [int(count or 1) * int(bits) for count, bits in re.findall(_ACCESS.format(kind), ptx)]
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global\s+.*?, (?:0x)?([0-9a-f]+)[,;]", ptx) if kind == "ld" else []
    return found + [8 * int(size, 16) for size in copies]


_ACCESS = r"\b{}\.global(?:\.[a-zA-Z_:0-9]+)*?(?:\.v(\d))?\.[bufs](\d+)\s"


# --- one call for each kernel ---------------------------------------------------------------------------------------

LENGTHS = [512, 150, 1, 90]
TOKENS = sum(LENGTHS)


def _bounds() -> Tensor:
    return torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32)


def _drop(p: float) -> dict[str, Any]:
    return {"dropout_p": p, "seed": torch.tensor(1) if p else None, "ids": torch.arange(len(LENGTHS)) if p else None}


def attention(
    dtype: torch.dtype, head_dim: int = 64, p: float = 0.0, window: tuple[int, int] = (-1, -1), copies: int = 1
) -> None:
    """With more `copies` of the sequences there are enough of them for one backward kernel."""
    from penstock.kernels.attention import Backward, Problem
    from penstock.kernels.attention import triton as backend

    lengths = LENGTHS * copies
    q, k, v, grad_out = (torch.empty(sum(lengths), 12, head_dim, dtype=dtype) for _ in range(4))
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    fields = bounds, bounds, max(lengths), max(lengths), head_dim**-0.5, *window
    made = backend.varlen_attention(Problem(q, k, v, *fields, **_drop(p)))
    backend.varlen_attention_backward(Backward(grad_out, q, k, v, *made, *fields, **_drop(p)))


def residual_norm(dtype: torch.dtype, width: int = 768, p: float = 0.1, prenorm: bool = False) -> None:
    from penstock.kernels.norm import Backward, Problem
    from penstock.kernels.norm import triton as backend

    stream = torch.float32 if prenorm else dtype
    given: dict[str, Any] = {
        "x": torch.empty(TOKENS, width, dtype=dtype),
        "residual": torch.empty(TOKENS, width, dtype=stream),
        "grad_out": torch.empty(TOKENS, width, dtype=dtype),
        "normal": torch.empty(TOKENS, width, dtype=dtype),
        "grad_z": torch.empty(TOKENS, width, dtype=stream) if prenorm else None,
        "rstd": torch.empty(TOKENS),
        "x_bias": torch.empty(width),
        "weight": torch.empty(width),
        "bias": torch.empty(width),
        "cu_seqlens": _bounds(),
        "eps": 1e-5,
        "prenorm": prenorm,
        "save": True,
        **_drop(p),
    }
    backend.residual_norm(_from(Problem, given))
    backend.residual_norm_backward(_from(Backward, given))


def _from(kind: Any, given: dict[str, Any]) -> Any:
    return kind(**{name: given[name] for name in kind._fields})


def gelu(dtype: torch.dtype, width: int = 3072) -> None:
    from penstock.kernels.gelu import Gelu, GeluBackward
    from penstock.kernels.gelu import triton as backend

    x = torch.empty(TOKENS, width, dtype=dtype)
    backend.bias_gelu(Gelu(x, torch.empty(width), True))
    backend.bias_gelu_backward(GeluBackward(x, x, True))


def geglu(dtype: torch.dtype, width: int = 1152) -> None:
    from penstock.kernels.gelu import Geglu, GegluBackward
    from penstock.kernels.gelu import triton as backend

    x, bias = torch.empty(TOKENS, 2 * width, dtype=dtype), torch.empty(2 * width)
    backend.geglu(Geglu(x, bias))
    backend.geglu_backward(GegluBackward(x[:, :width].contiguous(), x, bias))


def rotary(dtype: torch.dtype, head_dim: int = 64) -> None:
    from penstock.kernels.rotary import Problem
    from penstock.kernels.rotary import triton as backend

    q, k, _ = torch.empty(TOKENS, 3, 12, head_dim, dtype=dtype).unbind(1)
    angles = torch.empty(TOKENS, head_dim)
    backend.rotary(Problem(q, k, angles, angles, False))


def pooling(dtype: torch.dtype, mode: str, features: int = 512) -> None:
    from penstock.kernels.pooling import Backward, Problem, empty_saved
    from penstock.kernels.pooling import triton as backend

    values = torch.empty(TOKENS, features, dtype=dtype)
    scores = torch.empty(TOKENS, dtype=dtype) if mode == "attention" else None
    backend.segment_pool(Problem(values, scores, _bounds(), mode, True))
    saved = empty_saved(values, len(LENGTHS), mode)
    given = values if mode == "attention" else None, scores, saved, _bounds(), TOKENS, mode, True
    backend.segment_pool_backward(Backward(values[: len(LENGTHS)], *given))


def lstm(dtype: torch.dtype, hidden: int, everything: bool = True) -> None:
    """With all that is optional, or nothing of it."""
    from penstock.kernels.lstm import triton as backend
    from penstock.kernels.lstm.protocol import LayerInputs, LayerWeights, OutputGrads

    wide = [[torch.zeros(4 * hidden, hidden, dtype=dtype) for _ in range(2)] for _ in range(2)]
    narrow = [[torch.zeros(4 * hidden, dtype=dtype) for _ in range(2)] for _ in range(2)]
    bounds = torch.tensor([0, 2, 3, 3], dtype=torch.int32)
    state = torch.zeros(2, 3, hidden)
    h0, c0 = (state.to(dtype), state) if everything else (None, None)
    inputs = LayerInputs(torch.zeros(3, hidden, dtype=dtype), bounds, 2, LayerWeights(*wide, *narrow, []), h0, c0)
    y, h_n, c_n, cells, saved, _ = backend.forward(inputs, everything, True)
    grads = OutputGrads(y, h_n if everything else None, c_n if everything else None, cells if everything else None)
    backend.backward(grads, inputs, y, saved, True, True)
    if not everything:
        backend.forward(inputs, False, False)


def lstm_cell(dtype: torch.dtype, hidden: int = 256) -> None:
    from penstock.kernels.lstm.triton import Cell

    gates, c = torch.zeros(3, 4 * hidden, dtype=dtype), torch.zeros(3, hidden)
    Cell.forward(gates, c)
    Cell.backward(c.to(dtype), c, gates, c)


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES: dict[str, Callable[[], None]] = {
    "attention bf16": lambda: attention(BF16),
    "attention bf16 dropout": lambda: attention(BF16, p=0.1),
    "attention bf16 many": lambda: attention(BF16, copies=8),
    "attention bf16 many dropout": lambda: attention(BF16, p=0.1, copies=8),
    "attention fp16 many window dropout": lambda: attention(FP16, 64, 0.1, (1, 1), 8),
    "attention bf16 many head_dim 32 dropout": lambda: attention(BF16, 32, 0.1, copies=8),
    "attention bf16 head_dim 32 dropout": lambda: attention(BF16, 32, 0.1),
    "attention fp16 window dropout": lambda: attention(FP16, 64, 0.1, (1, 1)),
    "attention bf16 head_dim 80 dropout": lambda: attention(BF16, 80, 0.1),
    "attention bf16 head_dim 128 dropout": lambda: attention(BF16, 128, 0.1),
    "attention bf16 head_dim 256 dropout": lambda: attention(BF16, 256, 0.1),
    "attention fp32 dropout": lambda: attention(FP32, 64, 0.1),
    "residual_norm bf16 768 dropout": lambda: residual_norm(BF16),
    "residual_norm bf16 384": lambda: residual_norm(BF16, 384, 0.0),
    "residual_norm bf16 1024 prenorm dropout": lambda: residual_norm(BF16, 1024, 0.1, True),
    "bias_gelu bf16": lambda: gelu(BF16),
    "bias_gelu fp32": lambda: gelu(FP32),
    "geglu bf16": lambda: geglu(BF16),
    "rotary bf16": lambda: rotary(BF16),
    "rotary bf16 head_dim 48": lambda: rotary(BF16, 48),
    **{
        f"segment_pool bf16 {mode}": functools.partial(pooling, BF16, mode)
        for mode in ("max", "mean", "last", "attention")
    },
    "lstm bf16 H 128": lambda: lstm(BF16, 128),
    "lstm fp32 H 64": lambda: lstm(FP32, 64),
    "lstm fp32 H 64 bare": lambda: lstm(FP32, 64, False),
    "lstm bf16 H 32 bare": lambda: lstm(BF16, 32, False),
    "lstm bf16 H 512": lambda: lstm(BF16, 512),
    "lstm fp32 H 300": lambda: lstm(FP32, 300),
    "lstm fp16 H 300 bare": lambda: lstm(FP16, 300, False),
    "lstm_cell bf16": lambda: lstm_cell(BF16),
    "lstm_cell fp32": lambda: lstm_cell(FP32),
}


def compile_case(name: str, capability: int, aligned: bool = True) -> dict[str, Any]:
    """The kernels that one of CASES launches, by name."""
    with compiled_for(capability, aligned) as found:
        CASES[name]()
    return dict(found)


def main() -> None:
    words, capability = sys.argv[1:], 90
    print(f"| sm_{capability}, Triton {triton.__version__} | {' | '.join(Code._fields)} |")
    print("|---" * (1 + len(Code._fields)) + "|")
    for name in CASES:
        if not words or any(word in name for word in words):
            for kernel, compiled in compile_case(name, capability).items():
                print(f"| {name}: {kernel} | {' | '.join(map(str, code(compiled)))} |", flush=True)


if __name__ == "__main__":
    main()
