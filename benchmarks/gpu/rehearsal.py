"""The benchmark without a GPU: its GPU backends are stood in for by torch's operations on the processor, which the
timing measures instead, and a rehearsal plants faults in them, to see what each of them costs the rest.

The processes of a run hand it on in the variable PENSTOCK_REHEARSAL, JSON: {"part": name, "faults": [...]}.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

VARIABLE = "PENSTOCK_REHEARSAL"
GPU_BACKENDS = ("cuda", "triton")  # kernels of ours that run on a GPU; `torch` is the library's own
HANG, WRONG, ABORT = "hang", "wrong", "abort"


@dataclass(frozen=True)
class Fault:
    """In one part of the run, what one backend of one operation does instead of its work."""

    part: str
    operation: str
    backend: str
    kind: str

    @property
    def switches_off(self) -> str:
        """What the run does without from there on: in the training of a model, that variant of it."""
        models = {"train-lstm": "lstm-4-256", "train-encoder": "roberta-base"}
        return f"{models.get(self.part, self.operation)}/{self.backend}"


# what the tests must find, what only shows at the shapes that are timed, and what only the last tests find
FAULTS = (
    Fault("quick", "lstm_cell", "triton", HANG),
    Fault("quick", "geglu", "triton", WRONG),
    Fault("quick", "segment_pool", "triton", ABORT),
    Fault("lstm", "lstm", "cuda", HANG),
    Fault("attention", "varlen_attention", "triton", WRONG),
    Fault("train-lstm", "lstm", "triton", ABORT),
    Fault("rowwise", "rotary", "triton", ABORT),
    Fault("tests", "bias_gelu", "triton", WRONG),
)


def environment(part: str, faults: tuple[Fault, ...]) -> dict[str, str]:
    """For the process of a part."""
    return {VARIABLE: json.dumps({"part": part, "faults": [asdict(fault) for fault in faults]})}


def begin() -> None:
    """Stands in for the GPU backends, if the environment says that this is a rehearsal."""
    if VARIABLE not in os.environ:
        return
    import penstock.kernels  # noqa: F401  (registers the operations)
    from penstock.kernels import dispatch

    content = json.loads(os.environ[VARIABLE])
    faults = [Fault(**fault) for fault in content["faults"]]
    planted = {astuple(fault)[1:3]: fault.kind for fault in faults if fault.part == content["part"]}
    for operation, backends in dispatch._registry.items():
        for name in GPU_BACKENDS:
            if name in backends:
                stand_in = _StandIn(operation, planted.get((operation, name)))
                changes: dict[str, Any] = {"implementation": stand_in, "available": _nothing, "why_not": _nothing}
                backends[name] = replace(backends[name], **changes)


def _nothing(**_: object) -> None:
    return None


class _StandIn:
    """torch's implementation of an operation, with a fault."""

    def __init__(self, operation: str, fault: str | None) -> None:
        self._operation, self._fault = operation, fault

    def __getattr__(self, name: str) -> Any:
        from penstock.kernels import dispatch

        found = getattr(dispatch.implementation(self._operation, "torch"), name)
        if self._fault is None or not callable(found) or name == "saved_like":
            return found
        return self._spoiled(found)

    def _spoiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        from torch import Tensor

        def spoiled(*arguments: Any) -> Any:
            if self._fault == HANG:
                time.sleep(3600)
            if self._fault == ABORT:
                os.abort()
            out = function(*arguments)
            first = next(each for each in ([out] if isinstance(out, Tensor) else out) if isinstance(each, Tensor))
            first.detach().mul_(1.5)
            return out

        return spoiled
