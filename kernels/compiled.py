"""The compiled module behind the cpu backends: one answer for every operation, and one way to call it.

Functions of csrc/ take named arguments only, and all of them: an address for each tensor, None where there is none. An
unknown, missing or wrongly typed one is a TypeError. `PENSTOCK_ISA` is read at each call.
"""

import os
from typing import Any

import torch
from torch import Tensor

try:
    from penstock import _native as native
except ImportError as error:  # penstock.kernels works without its compiled module
    native, _missing = None, str(error)  # type: ignore[assignment]
_ISAS: list[str] = [""] if native is None else native.available_isas()
_FASTEST = _ISAS[-1]


def isa() -> str:
    """The instruction set that a call of csrc/ runs with: that of PENSTOCK_ISA, the fastest by default.

    Raises:
        ValueError: PENSTOCK_ISA names none that this machine has.
    """
    named = os.environ.get("PENSTOCK_ISA") or _FASTEST
    if named not in _ISAS:
        raise ValueError(f"PENSTOCK_ISA: no instruction set {named!r} here, there is {', '.join(_ISAS)}")
    return named


def call(function: Any, arguments: dict[str, Any]) -> Any:
    """Runs a function of csrc/ with the instruction set of `isa`, on torch's threads; what it returns."""
    return function(isa=isa(), threads=torch.get_num_threads(), **arguments)


def address(tensor: Tensor | None) -> int | None:
    """What csrc/ takes for a tensor, which must outlive the call."""
    return None if tensor is None else tensor.data_ptr()


def available() -> str | None:
    """None if the compiled module is there, else the reason."""
    return _missing if native is None else None


def why_not(*, device_type: str, dtype: torch.dtype, **_: object) -> str | None:
    if device_type != "cpu":
        return f"it runs on the CPU, the tensors are on {device_type}"
    if dtype not in (torch.bfloat16, torch.float32):
        return f"it computes in bfloat16 and float32, not {dtype}"
    return None


def why_not_float32(*, device_type: str, dtype: torch.dtype, **_: object) -> str | None:
    """What computes in float32 alone."""
    wrong_dtype = None if dtype == torch.float32 else f"it computes in float32, not {dtype}"
    return why_not(device_type=device_type, dtype=dtype) or wrong_dtype
