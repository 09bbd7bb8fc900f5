"""The truth about the weight's gradient: summed in float32 or float64."""

from torch import Tensor

from penstock.kernels.precision import accumulate_dtype


def weight_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    wide = accumulate_dtype(x.dtype)
    return grad_out.to(wide).t() @ x.to(wide)


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
