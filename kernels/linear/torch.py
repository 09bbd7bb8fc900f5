"""The weight's gradient by torch's own product, rounded to the dtype of x."""

from torch import Tensor

from penstock.kernels.precision import accumulate_dtype


def weight_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    return (grad_out.t() @ x).to(accumulate_dtype(x.dtype))


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
