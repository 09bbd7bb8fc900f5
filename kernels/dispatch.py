"""Which implementation serves a call, and why.

Every operation registers its backends here, each with a `why_not`: given the call's facts it returns None if the
backend can serve them, else the reason in one line. The choice, the fastest that can, is made once, in forward, and
handed to the operation as a string argument, so that backward (which runs on autograd's threads) uses the same backend.
"""

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from penstock.kernels import compiled, triton_support

BACKENDS = ("cuda", "triton", "cpu", "torch", "reference")


class _Forced(threading.local):
    """What `use_backend` forces on this thread; unlike a ContextVar, torch.compile can read and guard it."""

    name: str | None = None


_forced = _Forced()


@dataclass(frozen=True)
class Backend:
    """One implementation of one operation."""

    name: str
    implementation: Any
    why_not: Callable[..., str | None]
    available: Callable[[], str | None]
    on_request: str | None


_registry: dict[str, dict[str, Backend]] = {}


def _always(**_: object) -> str | None:
    return None


# what register takes where it is told nothing else: (why_not, available, on_request)
_DEFAULTS: dict[str, tuple[Callable[..., str | None], Callable[[], str | None], str | None]] = {
    "triton": (triton_support.why_not, triton_support.available, triton_support.UNVERIFIED),
    "cpu": (compiled.why_not, compiled.available, None),
}


def register(
    operation: str,
    name: str,
    implementation: Any,
    why_not: Callable[..., str | None] | None = None,
    available: Callable[[], str | None] | None = None,
    on_request: str | None = None,
) -> None:
    """Adds a backend to an operation.

    Args:
        implementation: what has the backend's functions, a module or an object; or its name, "package.module" or
            "package.module:attribute", which is imported when a call first needs it.
        why_not: takes the facts of a call as keywords, returns None or one line saying why it cannot serve them.
        available: returns None or one line saying why this backend cannot run here at all.
        on_request: None, or one line saying why only `use_backend` chooses this backend.

        The last three have defaults for "triton" and "cpu", which `triton_support` and `compiled` answer for; other
        backends are there and can serve everything by default.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}, expected one of {', '.join(BACKENDS)}")
    default_why_not, default_available, default_on_request = _DEFAULTS.get(name, (_always, _always, None))
    backend = Backend(
        name,
        implementation,
        why_not or default_why_not,
        available or default_available,
        on_request or default_on_request,
    )
    backends = {**_registry.get(operation, {}), name: backend}
    _registry[operation] = {each: backends[each] for each in BACKENDS if each in backends}


def implementation(operation: str, name: str) -> Any:
    """The implementation that `choose` named."""
    found = _registry[operation][name].implementation
    if not isinstance(found, str):
        return found
    module, _, attribute = found.partition(":")
    imported = importlib.import_module(module)
    return getattr(imported, attribute) if attribute else imported


def choose(operation: str, **facts: Any) -> str:
    """The name of the fastest backend that can serve a call with these facts, or the one that `use_backend` forces.

    Raises:
        RuntimeError: the forced backend cannot serve the call; the message gives its reason.
    """
    backends = _registry[operation]
    forced = _forced.name
    if forced is not None:
        check(operation, forced, **facts)
        return forced
    for name, backend in backends.items():
        if backend.on_request is None and backend.available() is None and backend.why_not(**facts) is None:
            return name
    raise RuntimeError(f"no backend can serve {operation} with {facts}")


def check(operation: str, name: str, **facts: Any) -> None:
    """Raises RuntimeError, with the reason, if the backend of this name cannot serve a call with these facts."""
    backends = _registry[operation]
    backend = backends.get(name)
    if backend is None:
        raise RuntimeError(f"{operation} has no {name!r} backend; it has {', '.join(backends)}")
    reason = backend.available() or backend.why_not(**facts)
    if reason:
        raise RuntimeError(f"backend {name!r} cannot serve {operation}: {reason}")


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Forces one backend for every penstock operation called inside the `with` block; None restores the default.

    Raises:
        ValueError: no backend has this name.
    """
    if name is not None and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}, expected one of {', '.join(BACKENDS)}")
    before, _forced.name = _forced.name, name
    try:
        yield
    finally:
        _forced.name = before


def status() -> list[tuple[str, str, str | None]]:
    """(operation, backend, None or why it is not chosen by itself here) of everything registered, for the doctor."""
    return [
        (operation, backend.name, backend.available() or backend.on_request)
        for operation, backends in sorted(_registry.items())
        for backend in backends.values()
    ]
