"""AdamW on some rows of a table: `adamw_rows`, and `decay_rows` for steps that had no gradient of them."""

import math

import torch
from torch import Tensor

from penstock.kernels import checks, compiled


@torch.no_grad()
def adamw_rows(
    parameter: Tensor,
    mean: Tensor,
    square: Tensor,
    gradient: Tensor,
    rows: Tensor,
    *,
    step: int,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    divisor: float = 1.0,
) -> None:
    """What `torch.optim.AdamW` does to these rows at its step number `step`, in place; the other rows are left alone.

    Args:
        parameter: (table rows, width), float32 or float64, contiguous, on the CPU.
        mean, square: of the gradients and their squares (exp_avg and exp_avg_sq): of that shape, dtype and layout.
        gradient: the same; of other rows it is not read.
        rows: int64, (count,), distinct. rate: the learning rate. divisor: of the gradient, before all else.
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. IndexError: a row is not the table's.
    """
    _check_table(parameter, rows)
    for name, tensor in (("mean", mean), ("square", square), ("gradient", gradient)):
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            wanted, found = tuple(parameter.shape), tuple(tensor.shape)
            raise ValueError(f"{name} must be {parameter.dtype} {wanted}, got {tensor.dtype} {found}")
        _check_dense(name, tensor)
    beta1, beta2 = (checks.real("betas", beta) for beta in betas)
    numbers = {
        "beta1": beta1,
        "beta2": beta2,
        "rest1": 1 - beta1,
        "rest2": 1 - beta2,
        "decay": 1 - rate * weight_decay,
        "rate": rate / (1 - beta1**step),
        "correction": 1 / math.sqrt(1 - beta2**step),
        "eps": eps,
        "divisor": divisor,
    }
    if compiled.available() is not None or parameter.dtype != torch.float32:
        return _plain(parameter, mean, square, gradient, rows, **numbers)
    _run("adamw_rows", parameter, rows, {"mean": mean, "square": square, "gradient": gradient}, numbers)
    torch.autograd.graph.increment_version((parameter, mean, square))  # C++ has written to them


@torch.no_grad()
def decay_rows(parameter: Tensor, rows: Tensor, factors: Tensor) -> None:
    """Multiplies rows of a table by each factor in turn, in place: the bits of as many steps without a gradient.

    Args:
        parameter, rows: as of `adamw_rows`. factors: (count,), of the parameter's dtype, contiguous, on the CPU.
    Raises:
        TypeError, ValueError, IndexError: as of `adamw_rows`.
    """
    _check_table(parameter, rows)
    if factors.dtype != parameter.dtype or factors.ndim != 1:
        raise ValueError(f"factors must be {parameter.dtype} of one dimension, got {factors.dtype} {factors.ndim}")
    _check_dense("factors", factors)
    if compiled.available() is not None or parameter.dtype != torch.float32:
        found = parameter[rows]
        for factor in factors:
            found *= factor
        parameter[rows] = found
        return
    _run("decay_rows", parameter, rows, {"factors": factors}, {"count": factors.shape[0]})
    torch.autograd.graph.increment_version(parameter)


def _run(function: str, parameter: Tensor, rows: Tensor, others: dict[str, Tensor], numbers: dict[str, float]) -> None:
    tensors = {"names": rows.contiguous(), "parameter": parameter, **others}
    sizes = {"rows": rows.shape[0], "width": parameter.shape[1]}
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    compiled.call(getattr(compiled.native, function), {**sizes, **addresses, **numbers})


def _check_table(parameter: Tensor, rows: Tensor) -> None:
    if parameter.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"parameter must be float32 or float64, got {parameter.dtype}")
    if parameter.ndim != 2:
        raise ValueError(f"parameter must have shape (rows, width), got {tuple(parameter.shape)}")
    _check_dense("parameter", parameter)
    if rows.dtype != torch.int64 or rows.ndim != 1 or rows.device.type != "cpu":
        raise ValueError(f"rows must be int64 of one dimension on the CPU, got {rows.dtype} {tuple(rows.shape)}")
    if rows.numel():
        lowest, highest = map(int, rows.aminmax())
        if lowest < 0 or highest >= parameter.shape[0]:
            raise IndexError(f"rows are {lowest} to {highest}, the table has {parameter.shape[0]}")


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.is_neg():
        raise ValueError(f"{name} must be contiguous and on the CPU")


def _plain(
    parameter: Tensor,
    mean: Tensor,
    square: Tensor,
    gradient: Tensor,
    rows: Tensor,
    *,
    beta1: float,
    beta2: float,
    rest1: float,
    rest2: float,
    decay: float,
    rate: float,
    correction: float,
    eps: float,
    divisor: float,
) -> None:
    g = gradient[rows] / divisor
    m = mean[rows].mul_(beta1).add_(g, alpha=rest1)
    v = square[rows].mul_(beta2).addcmul_(g, g, value=rest2)
    mean[rows], square[rows] = m, v
    parameter[rows] = parameter[rows] * decay - rate * m / (v.sqrt() * correction + eps)
