"""What the tests of kernels share: backends and bounds, and cases in which any two values of two parameters meet."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock import _native
from penstock.kernels import dispatch, use_backend

CSRC = Path(__file__).resolve().parents[1] / "csrc"

# of ||y - r|| / ||r|| against float64, of values; gradients may have twice that
BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

# of the fixture `backend`, where what a test tries lies in Python and no instruction set matters
BACKENDS = ["reference", "torch", "cpu"]


def bounds(lengths: Sequence[int], device: str | torch.device = "cpu") -> Tensor:
    """cu_seqlens of sequences of these lengths."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def on_threads(counts: Sequence[int], work: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    """What `work` returns with each number of torch threads."""
    before, results = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(work())
    finally:
        torch.set_num_threads(before)
    return results


def isas(folder: str) -> list[str]:
    """The instruction sets of this machine that have code of their own in csrc/FOLDER/cpu.

    One that has none runs the code of the one before it: a test of both would test the same code twice.
    """
    return [isa for isa in _native.available_isas() if (CSRC / folder / "cpu" / f"{isa}.cpp").is_file()]


def codes(folder: str) -> list[tuple[str, torch.dtype]]:
    """Instruction sets and dtypes with code of their own: what multiplies bfloat16 leaves float32 as it was.

    That this is so is a test of its own (test_native_calls.py).
    """
    bfloat16 = [(isa, torch.bfloat16) for isa in isas(folder)]
    return [(isa, torch.float32) for isa in isas(folder) if "bf16" not in isa] + bfloat16


def has_code(folder: str) -> Callable[..., bool]:
    """Whether parameters `isa` and `dtype` are among `codes`, for `pairwise`."""
    known = codes(folder)
    return lambda isa, dtype, **_: (isa, dtype) in known


def cpu_backends(folder: str) -> list[str]:
    """Values of the fixture `backend`: what runs on every CPU, and C++ by each instruction set, as "cpu avx2"."""
    return ["reference", "torch", *(f"cpu {isa}" for isa in isas(folder))]


def serves(operation: str, backend: str, **facts: Any) -> bool:
    """Whether the backend can serve such a call here, by what it says itself."""
    with use_backend(backend.partition(" ")[0]):
        try:
            dispatch.choose(operation, **{"device_type": "cpu", **facts})
        except RuntimeError:
            return False
    return True


def implementations(
    operation: str, backends: Sequence[str], dtypes: Sequence[torch.dtype] = tuple(BOUND), **facts: Any
) -> list[tuple[str, torch.dtype]]:
    """The pairs of a backend and a dtype that serve an operation; each backend is in some, or this fails.

    Of C++ by an instruction set that multiplies bfloat16, bfloat16 alone: see `codes`.
    """
    found = [
        (backend, dtype)
        for backend in backends
        for dtype in dtypes
        if (dtype == torch.bfloat16 or "bf16" not in backend) and serves(operation, backend, dtype=dtype, **facts)
    ]
    assert {backend for backend, _ in found} == set(backends), f"some of {backends} serve no {operation}"
    return found


def is_implemented(
    operation: str, backends: Sequence[str], dtypes: Sequence[torch.dtype] = tuple(BOUND), **facts: Any
) -> Callable[..., bool]:
    """Whether parameters `backend` and `dtype` are among `implementations`, for `pairwise`."""
    known = implementations(operation, backends, dtypes, **facts)
    return lambda backend, dtype, **_: (backend, dtype) in known


def pairs_of(
    parameters: Mapping[str, Sequence[Any]], valid: Callable[..., bool] = lambda **_: True
) -> list[dict[str, Any]]:
    """Few valid combinations of the parameters' values, in which every two values that any valid one joins meet.

    Greedy and deterministic: next comes the first combination with the most pairs that have not met.
    """
    names = list(parameters)
    combinations: list[tuple[int, ...]] = []
    for places in itertools.product(*(range(len(values)) for values in parameters.values())):
        chosen = {name: parameters[name][place] for name, place in zip(names, places, strict=True)}
        if valid(**separate(chosen)):
            combinations.append(places)
    pairs = {each: set(itertools.combinations(enumerate(each), 2)) or {each} for each in combinations}
    missing = set().union(*pairs.values())
    found = []
    while missing:
        best = max(combinations, key=lambda each: len(pairs[each] & missing))
        missing -= pairs[best]
        found.append({name: parameters[name][place] for name, place in zip(names, best, strict=True)})
    return found


def separate(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """{"a, b": (1, 2)} as {"a": 1, "b": 2}."""
    found: dict[str, Any] = {}
    for names, value in chosen.items():
        several = names.split(", ")
        found |= zip(several, value if len(several) > 1 else [value], strict=True)
    return found


def pairwise(
    parameters: Mapping[str, Sequence[Any]], valid: Callable[..., bool] = lambda **_: True
) -> pytest.MarkDecorator:
    """Parametrises a test by `pairs_of`; a key "a, b" holds tuples, whose values always come together.

    The parameters `backend` and `isa` go through the fixtures of those names.
    """
    names = [name for key in parameters for name in key.split(", ")]
    cases = [separate(case) for case in pairs_of(parameters, valid)]
    values = [tuple(case[name] for name in names) for case in cases]
    through_fixtures = [name for name in names if name in ("backend", "isa")]
    return pytest.mark.parametrize(names, values, indirect=through_fixtures, ids=described)


def described(value: Any) -> str | None:
    """A parameter's value in the name of a test; None leaves it to pytest."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, dict | tuple | list):
        return str(value)
    return None
