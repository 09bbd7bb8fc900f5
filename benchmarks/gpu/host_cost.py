"""What the host pays for each operation, whatever device works for it: checks, dispatch, the custom op, autograd.

    python -m penstock.benchmarks.gpu.host_cost          a table, in microseconds; no GPU needed

The backend does nothing: it returns uninitialised results of the right shapes. A GPU whose kernels are shorter than
this waits for Python. Allocations are in the figures, a kernel's launch is not. The least of many rounds counts, in
seconds of the processor: other work on the machine only adds.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from penstock import kernels
from penstock.kernels import dispatch
from penstock.kernels.lstm.protocol import LayerWeights

LIMIT = 20.0  # microseconds of one direction
_CALLS, _ROUNDS = 40, 60
_LENGTHS = [5, 1, 12, 14]
_TOKENS, _WIDTH, _HEADS, _HEAD_DIM, _HIDDEN = sum(_LENGTHS), 32, 2, 16, 16

Case = tuple[Callable[..., Any], list[Tensor]]


class Nothing:
    """A backend of one operation: its functions return, uninitialised, what torch's returned the first time."""

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._functions: dict[str, Callable[..., Any]] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(dispatch.implementation(self._operation, "torch"), name)
        return self._functions.setdefault(name, _replayed(found)) if callable(found) else found

    def forget(self) -> None:
        """The next call is of other shapes."""
        for function in self._functions.values():
            function.results = None  # type: ignore[attr-defined]


def _replayed(function: Callable[..., Any]) -> Callable[..., Any]:
    def replay(*arguments: Any) -> Any:
        if replay.results is None:  # type: ignore[attr-defined]
            replay.results = (function(*arguments),)  # type: ignore[attr-defined]
        return _empty(replay.results[0])  # type: ignore[attr-defined]

    replay.results = None  # type: ignore[attr-defined]
    return replay


def _empty(results: Any) -> Any:
    if isinstance(results, Tensor):
        return torch.empty_like(results)
    if isinstance(results, tuple | list):
        made = [_empty(each) for each in results]
        return made if isinstance(results, list) else tuple.__new__(type(results), made)
    return results


def cases() -> dict[str, Case]:
    """{operation: a call and its inputs, all of which want a gradient}."""
    bounds = torch.tensor([0, 5, 6, 18, 32], dtype=torch.int32)
    seed, ids = torch.tensor(1), torch.arange(len(_LENGTHS))
    drop: dict[str, Any] = {"dropout_p": 0.1, "cu_seqlens": bounds, "ids": ids, "seed": seed}
    angles = torch.randn(_TOKENS, _HEAD_DIM)
    module = kernels.LSTM(_WIDTH, _HIDDEN, bidirectional=True)
    longest = max(_LENGTHS)

    def rows(*shape: int) -> Tensor:
        return torch.randn(_TOKENS, *shape, requires_grad=True)

    def vector(width: int) -> Tensor:
        return torch.randn(width, requires_grad=True)

    def lstm(x: Tensor, *weights: Tensor) -> Any:
        kinds = [[weights[kind], weights[kind + 4]] for kind in range(4)]  # both directions of each
        return kernels.lstm(x, bounds, longest, [LayerWeights(*kinds, [])])

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.varlen_attention(q, k, v, bounds, bounds, longest, longest, dropout_p=0.1, seed=seed, ids=ids)

    def norm(x: Tensor, residual: Tensor, x_bias: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return kernels.residual_norm(x, residual, weight, bias, x_bias=x_bias, **drop)

    qkv = [rows(_HEADS, _HEAD_DIM) for _ in range(3)]
    return {
        "lstm": (lstm, [rows(_WIDTH), *module.parameters()]),
        "lstm_cell": (kernels.lstm_cell, [rows(4 * _HIDDEN), rows(_HIDDEN)]),
        "varlen_attention": (attention, qkv),
        "residual_norm": (norm, [rows(_WIDTH), rows(_WIDTH), *(vector(_WIDTH) for _ in range(3))]),
        "bias_gelu": (kernels.bias_gelu, [rows(_WIDTH), vector(_WIDTH)]),
        "geglu": (kernels.geglu, [rows(_WIDTH), vector(_WIDTH)]),
        "rotary": (lambda q, k: kernels.rotary(q, k, angles, angles), qkv[:2]),
        "segment_pool": (lambda values: kernels.segment_pool(values, bounds, "max"), [rows(_WIDTH)]),
    }


def measure(
    function: Callable[..., Any],
    inputs: list[Tensor],
    rounds: int = _ROUNDS,
    forget: Callable[[], None] = lambda: None,
) -> tuple[float, float, float]:
    """Microseconds of one call without gradient, of one that is recorded, and of its backward.

    Args:
        forget: called before results have other shapes.
    """

    def results(given: list[Tensor]) -> list[Tensor]:
        out = function(*given)
        return [each for each in (out if isinstance(out, tuple) else (out,)) if each.requires_grad or not recorded]

    def forward() -> float:
        times = []
        for _ in range(rounds):
            start = time.thread_time()
            for _ in range(_CALLS):
                results(inputs)
            times.append((time.thread_time() - start) / _CALLS)
        return 1e6 * min(times)

    def backward() -> float:
        """Many calls in one graph, as in a model: the engine's own start is shared."""
        times = []
        for _ in range(rounds):
            leaves = [[each.detach().requires_grad_() for each in inputs] for _ in range(_CALLS)]
            outs = [out for each in leaves for out in results(each)]
            directions = list(map(torch.ones_like, outs))
            start = time.thread_time()
            torch.autograd.grad(outs, [leaf for each in leaves for leaf in each], directions)
            times.append((time.thread_time() - start) / _CALLS)
        return 1e6 * min(times)

    recorded = False
    with torch.no_grad():
        inference = forward()
    recorded = True
    forget()
    return inference, forward(), backward()


def _as_on_a_gpu() -> None:
    """Sequence bounds are read on the CPU alone; elsewhere it is only asked whether PENSTOCK_DEBUG wants it."""

    def check_cu_seqlens(name: str, cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> None:
        os.environ.get("PENSTOCK_DEBUG", "0")

    for name, module in list(sys.modules.items()):
        if name.startswith("penstock.kernels") and hasattr(module, "check_cu_seqlens"):
            module.check_cu_seqlens = check_cu_seqlens  # type: ignore[attr-defined]


def table(rounds: int = _ROUNDS) -> dict[str, tuple[float, float, float]]:
    """{operation: `measure`}, by a backend that does nothing in the place of each operation's Triton.

    Operations remember what serves them, and bounds are not checked any more: for a process of its own.
    """
    _as_on_a_gpu()
    before = {operation: dict(backends) for operation, backends in dispatch._registry.items()}
    found = {}
    try:
        for operation, case in cases().items():
            served: dict[str, Any] = {"available": lambda: None, "why_not": lambda **_: None, "on_request": None}
            nothing = Nothing(operation)
            backend = replace(before[operation]["triton"], implementation=nothing, **served)
            # first in line, as on a GPU: what stands behind it is not asked
            dispatch._registry[operation] = {"triton": backend} | {**before[operation], "triton": backend}
            found[operation] = measure(*case, rounds, nothing.forget)
    finally:
        dispatch._registry.update(before)
    return found


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    rounds = int(arguments[0]) if arguments else _ROUNDS
    one = torch.randn(_TOKENS, _WIDTH, requires_grad=True)
    found = table(rounds) | {"torch's own gelu": measure(torch.nn.functional.gelu, [one], rounds)}
    print("| operation | inference | recorded | backward |\n|---|---:|---:|---:|")
    for operation, times in found.items():
        print(f"| `{operation}` | " + " | ".join(f"{each:.1f}" for each in times) + " |")
    over = [operation for operation, times in found.items() if max(times) > LIMIT]
    print(f"over {LIMIT:.0f} us: {', '.join(over) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
