"""The compiled module behind the cpu backends that take one dict of addresses: one answer for every operation."""

import os
from typing import Any

import torch

try:
    from penstock import _native as native
except ImportError as error:  # penstock.kernels works without its compiled module
    native, _missing = None, str(error)  # type: ignore[assignment]
_FASTEST = "" if native is None else native.available_isas()[-1]


def isa() -> str:
    """The instruction set that functions of csrc/ run with: that of PENSTOCK_ISA, the fastest by default."""
    return os.environ.get("PENSTOCK_ISA") or _FASTEST


def call(function: Any, arguments: dict[str, Any]) -> None:
    """Runs a function of csrc/ with the instruction set of `isa`, on torch's threads."""
    function(arguments, isa(), torch.get_num_threads())


def available() -> str | None:
    """None if the compiled module is there, else the reason."""
    return _missing if native is None else None


def why_not(*, device_type: str, dtype: torch.dtype, **_: object) -> str | None:
    if device_type != "cpu":
        return f"it runs on the CPU, the tensors are on {device_type}"
    if dtype not in (torch.bfloat16, torch.float32):
        return f"it computes in bfloat16 and float32, not {dtype}"
    return None
