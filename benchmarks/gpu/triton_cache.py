"""Compiles Triton's kernels for a GPU that is not here, into a cache that is carried to where it is.

    TRITON_CACHE_DIR=build/gpu/triton python -m penstock.benchmarks.gpu.triton_cache 90        makes it
    TRITON_CACHE_DIR=build/gpu/triton python -m penstock.benchmarks.gpu.triton_cache adopt     where it has been carried

The same Triton and the same Python as there, for the cache's keys are made of both; with TRITON_STORE_BINARY_ONLY=1
it takes less than half of the room. What the quick tests and the
timed shapes launch is called with tensors on the processor, and compiled instead of launched; so are the launchers,
Triton's little C modules, which else cost gcc a second each.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    if arguments == ["adopt"]:
        adopt(folder)
        return 0
    from penstock.benchmarks.gpu.context import reason

    compiled = _Compiler(int(arguments[0]))
    began = time.monotonic()
    for name, call in calls():
        try:
            call()
        except Exception as failure:  # what is not in the cache is compiled there
            print(f"{name}: {reason(failure)}", flush=True)
    print(f"{len(compiled.kernels)} kernels and {compiled.launchers} launchers in {time.monotonic() - began:.0f} s")
    return 0 if compiled.kernels else 1


def adopt(folder: Path) -> None:
    """Makes the cache's files name the folder in which they lie now."""
    for group in folder.glob("*/__grp__*.json"):
        names = json.loads(group.read_text())["child_paths"]
        group.write_text(json.dumps({"child_paths": {name: str(group.parent.resolve() / name) for name in names}}))


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """What launches the kernels: the quick tests' cases, and the parts' problems with few tokens."""
    import torch

    from penstock.benchmarks.gpu import attention, lstm, rowwise
    from penstock.benchmarks.gpu.context import Context
    from penstock.benchmarks.gpu.lstm_layer import Layer
    from penstock.kernels import use_backend

    cpu = torch.device("cpu")
    quick = _module(ROOT / "tests" / "kernels" / "test_quick_gpu.py")
    for operation, cases in quick.CASES.items():
        for (case, given), dtype in ((each, dtype) for each in cases for dtype in quick.BOUND):

            def gradients(case: Any = case, given: Any = given, dtype: torch.dtype = dtype) -> None:
                def draw(*shape: int, at_least: torch.dtype = dtype) -> torch.Tensor:
                    return torch.randn(shape).to(torch.promote_types(dtype, at_least)).requires_grad_()

                with use_backend("triton"):
                    outs, leaves = case(draw, *given)
                torch.autograd.grad(outs, leaves, list(map(torch.ones_like, outs)))

            yield f"{operation} {dtype} {given}", gradients
    for hidden in sorted({hidden for hidden, _ in lstm.FIRST + lstm.MORE}):
        layer = Layer([5, 3], hidden, hidden, 2, cpu)
        for name, call in layer.penstock("triton", torch.bfloat16).calls().items():
            yield f"lstm H={hidden} {name}", call
    for mean, dropout in itertools.product(attention.MEANS, attention.DROPOUTS):
        # as few tokens as take the kernels of the timed shapes, which depend on the number of sequences and their mean
        lengths = attention.draw_lengths(mean, 15 * mean)
        problem = attention.Problem.draw(lengths, dropout, attention.HEADS, cpu)
        for name, call in (problem.penstock("triton") | {"two kernels": problem.two_kernels()["training"]}).items():
            yield f"attention mean={mean} dropout={dropout} {name}", call
    context = Context(smoke=True, deadline=time.monotonic() + 3600, scratch="")
    for problem in rowwise.cases(replace(context, smoke=False), tokens=300, device=cpu):
        function = problem.penstock("triton")
        yield f"{problem.operation} inference", partial(_twice, problem.calls, function, "inference")
        yield f"{problem.operation} training", partial(_twice, problem.calls, function, "training")


def _twice(calls: Callable[[Any], dict[str, Any]], function: Any, phase: str) -> None:
    calls(function)[phase]()


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Compiler:
    """From now on Triton's kernels are compiled for sm_`capability` and not launched, wherever tensors are."""

    def __init__(self, capability: int) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.runtime import build
        from triton.runtime.driver import driver

        from penstock.kernels import dispatch

        self.kernels: set[str] = set()
        self.launchers = 0
        driver.set_active(_Driver(GPUTarget("cuda", capability, 32)))
        self._launch = _launcher(tempfile.mkdtemp())
        for backends in dispatch._registry.values():
            if "triton" in backends:
                served: dict[str, Any] = {"available": lambda: None, "why_not": lambda **_: None}
                backends["triton"] = replace(backends["triton"], **served)
        build._load_module_from_path = lambda name, path: None  # built, not loaded: there is no libcuda here
        original = triton.JITFunction.run

        def run(function: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            kernel = original(function, *arguments, grid=grid, warmup=True, **options)
            if kernel is not None and kernel.hash not in self.kernels:
                self.kernels.add(kernel.hash)
                self.launchers += self._launch(kernel)
            return kernel

        triton.JITFunction.run = run


class _Driver:
    """What Triton's runtime asks of a driver in order to compile."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _launcher(folder: str) -> Callable[[Any], bool]:
    """Builds a kernel's launcher, against a library of no content that has libcuda's name."""
    source = Path(folder) / "nothing.c"
    source.write_text("")
    subprocess.run(["gcc", "-shared", "-o", f"{folder}/libcuda.so.1", str(source)], check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = folder
    from triton.backends.nvidia import driver

    from penstock.benchmarks.gpu.context import reason

    def launcher(kernel: Any) -> bool:
        try:
            driver.CudaLauncher(kernel.src, kernel.metadata)
        except AttributeError:  # `launch` of what was not loaded: by then it is built
            return True
        except Exception as failure:
            print(f"launcher: {reason(failure)}", flush=True)
            return False
        return True

    return launcher


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
