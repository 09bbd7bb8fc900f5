"""`_native.lstm_cuda` on an emulated machine: the CUDA kernels' own source, run by tests/native/emulated_cuda."""

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
SOURCES = CSRC / "lstm" / "cuda"
MACHINE = ROOT / "tests" / "native" / "emulated_cuda"


def build(tiers: bool = False) -> ctypes.CDLL:
    """Compiles the kernels of small shapes, or of the tiers themselves, for the emulated machine.

    What is built stays in build/, named for the content of all that it is made from.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror"]
    flags += ["-DPENSTOCK_TIERS"] if tiers else []
    sources = sorted(MACHINE.glob("*.cpp"))
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    content = hashlib.sha256(repr([compiler, version, flags]).encode())
    for path in sorted([*MACHINE.rglob("*.h"), *CSRC.glob("*.h"), *SOURCES.glob("*.h"), *sources]):
        content.update(path.name.encode() + path.read_bytes())
    directory = ROOT / "build" / "emulated_cuda"
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / f"{content.hexdigest()[:16]}.so"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            for old in sorted(directory.glob("*.so"), key=os.path.getmtime)[:-3]:
                old.unlink()
            building = library.with_suffix(".building")
            # the machine's own device.h comes before the GPU's
            command = [compiler, *flags, f"-I{MACHINE}", f"-I{CSRC}", *map(str, sources), "-o", str(building)]
            subprocess.run(command, check=True)
            building.replace(library)
    loaded = ctypes.CDLL(str(library))
    for function in (loaded.forward, loaded.backward, loaded.needs):
        function.restype = ctypes.c_char_p
    return loaded


_POINTER = ctypes.c_void_p
_PROBLEM = [
    ("ranked", _POINTER),
    *((name, ctypes.c_int32) for name in ("batch", "directions", "tiles", "groups")),
    ("biases", _POINTER),
    ("exchange", _POINTER),
]


class _Forward(ctypes.Structure):  # ForwardProblem of problem.h
    _fields_ = (
        *_PROBLEM,
        *((name, _POINTER) for name in ("projections", "ids", "gates")),
        *((name, _POINTER) for name in ("w_hh", "h0", "c0", "y", "cells", "h_n", "c_n")),
        *((name, _POINTER) for name in ("pooled", "shares", "maximum")),
    )


class _Backward(ctypes.Structure):  # BackwardProblem of problem.h
    _fields_ = (
        *_PROBLEM,
        *((name, _POINTER) for name in ("dgates", "gates", "transposed", "cells", "c0", "dy")),
        ("pooled", ctypes.c_bool),
        *((name, _POINTER) for name in ("maximum", "dh_n", "dc_n", "dc0")),
    )


@dataclass
class Plan:
    key: Any
    tiles: int
    groups: int
    exchange_words: int


@dataclass
class EmulatedCuda:
    """A drop-in for `_native.lstm_cuda` with one shape of kernel, given tiles and groups, and a random schedule."""

    library: ctypes.CDLL
    blocks: int
    parts: int
    lanes: int
    cluster: bool
    tiles: int = 1
    groups: int | None = None
    seed: int = 0
    launches: list[str] = field(default_factory=list)

    def plan(self, *, hidden_size: int, directions: int, backward: bool, **_: int) -> Plan:
        groups = self.groups or self.tiles * directions
        words, _ = self.needs(hidden_size)
        return Plan(self._key(hidden_size), self.tiles, groups, groups * words[backward])

    def needs(self, hidden_size: int) -> tuple[list[int], list[int]]:
        """Forward and backward: exchange words of a group, and bytes of shared memory of a block."""
        words, shared_bytes = (ctypes.c_int64 * 2)(), (ctypes.c_int64 * 2)()
        _check(self.library.needs(self._key(hidden_size), words, shared_bytes))
        return list(words), list(shared_bytes)

    def _key(self, hidden_size: int) -> Any:
        return (ctypes.c_int * 5)(hidden_size, self.blocks, self.parts, self.lanes, self.cluster)

    def rank(self, stream: int, cu_seqlens: int, batch: int, tokens: int, ranked: int) -> None:
        self.library.rank_sequences(_POINTER(cu_seqlens), batch, tokens, _POINTER(ranked))

    def forward(self, plan: Plan, stream: int, **arguments: int) -> None:
        self._launch(self.library.forward, _Forward, plan, arguments)

    def backward(self, plan: Plan, stream: int, **arguments: int) -> None:
        self._launch(self.library.backward, _Backward, plan, arguments)

    def _launch(self, function: Any, problem: Any, plan: Plan, arguments: dict[str, int]) -> None:
        arguments = {"tiles": plan.tiles, "groups": plan.groups, **arguments}
        _check(function(plan.key, ctypes.byref(problem(**arguments)), ctypes.c_uint64(self.seed)))
        self.launches.append(function.__name__)


def _check(error: bytes | None) -> None:
    if error is not None:
        raise RuntimeError(error.decode())


GUARD = 77.0


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the backend asks for uninitialised holds NaN."""
    _replace_empty(monkeypatch, lambda tensor: tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor)


def guard(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Whatever the backend asks for uninitialised lies between guards, GUARD when nobody wrote there."""
    guards: list[torch.Tensor] = []
    margin = 4096

    def between(tensor: torch.Tensor) -> torch.Tensor:
        around = tensor.new_full((tensor.numel() + 2 * margin,), GUARD)
        guards.extend([around[:margin], around[-margin:]])
        return around[margin:-margin].view(tensor.shape)

    _replace_empty(monkeypatch, between)
    return guards


def watch(monkeypatch: pytest.MonkeyPatch, shapes: list[torch.Size]) -> None:
    """Adds to `shapes` those of whatever the backend asks for uninitialised."""

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        shapes.append(tensor.shape)
        return tensor

    _replace_empty(monkeypatch, seen)


def _replace_empty(monkeypatch: pytest.MonkeyPatch, replace: Callable[[torch.Tensor], torch.Tensor]) -> None:
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: replace(empty_like(*args, **kwargs)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: replace(new_empty(*args, **kwargs)))
