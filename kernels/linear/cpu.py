"""The weight's gradient on Intel's matrix unit (csrc/linear/cpu). Without one, torch's own product is as fast."""

import torch
from torch import Tensor

from penstock.kernels import compiled
from penstock.kernels.compiled import call, native


def weight_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    (tokens, rows), columns = grad_out.shape, x.shape[1]
    gradient = torch.empty(rows, columns)
    arguments = {"tokens": tokens, "rows": rows, "columns": columns}
    tensors = {"grad_out": grad_out, "x": x, "grad_weight": gradient}
    call(native.weight_gradient, arguments | {name: tensor.data_ptr() for name, tensor in tensors.items()})
    return gradient


def why_not(*, device_type: str, dtype: torch.dtype, **_: object) -> str | None:
    wrong_dtype = None if dtype == torch.bfloat16 else f"the matrix unit multiplies bfloat16, not {dtype}"
    return compiled.why_not(device_type=device_type, dtype=dtype) or wrong_dtype


def available() -> str | None:
    """None with Intel's matrix unit, else the reason."""
    missing = compiled.available()
    if missing is None and compiled.isa() != "amx_bf16":
        missing = "torch's own product is as fast without Intel's matrix unit (AMX)"
    return missing
