"""Which of penstock's backends take part, and how a whole model is made to use them."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import penstock.kernels  # noqa: F401  (registers the operations)
from penstock.benchmarks.gpu.context import Context, key
from penstock.benchmarks.gpu.rehearsal import GPU_BACKENDS
from penstock.kernels import dispatch


def contestants(operation: str, context: Context) -> dict[str, str | None]:
    """{backend: None, or why it is not timed} of one operation, the float64 reference left out."""
    out: dict[str, str | None] = {}
    for name, backend in dispatch._registry[operation].items():
        if name == "reference" or (name == "cpu" and not context.smoke):
            continue
        out[name] = backend.available() or untimed(operation, name, context)
    return out


def untimed(operation: str, name: str, context: Context) -> str | None:
    """Why a backend that could run is not timed: it was left out or switched off, or no test of it has passed."""
    if name in context.without:
        return "left out by --without"
    if key(operation, name) in context.off:
        return context.off[key(operation, name)]
    if name in GPU_BACKENDS and key(operation, name) not in context.tested:
        return "none of its correctness tests has passed in this run"
    return None


GRAPHS = ", CUDA graphs"  # ends the name of a variant that is trained with `training.cuda_graphs`


@contextlib.contextmanager
def trusted(names: tuple[str, ...], context: Context) -> Iterator[None]:
    """Inside, every operation takes its fastest backend as usual, and of our GPU kernels all of `names` and no other.

    A backend that is off until it has been seen to work counts as on if its tests have passed in this run.
    """
    before = {operation: dict(backends) for operation, backends in dispatch._registry.items()}
    try:
        for operation, backends in dispatch._registry.items():
            for name, backend in list(backends.items()):
                if name not in GPU_BACKENDS:
                    continue
                if name in names and untimed(operation, name, context) is None:
                    backends[name] = replace(backend, on_request=None)
                else:
                    del backends[name]
        yield
    finally:
        dispatch._registry.update(before)


def model_variants(operations: tuple[str, ...], context: Context) -> dict[str, tuple[str, ...]]:
    """The variants of a whole model to train: {label: GPU backends that it may use}.

    torch's own operations alone, then each GPU backend that serves one of the model's operations, on top of those
    slower than it, and with all of them from CUDA graphs (GRAPHS).
    """
    out: dict[str, tuple[str, ...]] = {"penstock torch": ()}
    for name in reversed(GPU_BACKENDS):
        if any(contestants(operation, context).get(name, "none") is None for operation in operations):
            out[f"penstock {name}"] = GPU_BACKENDS[GPU_BACKENDS.index(name) :]
    if len(out) > 1 and not context.smoke:
        label, names = list(out.items())[-1]
        out[f"{label}{GRAPHS}"] = names
    return out
