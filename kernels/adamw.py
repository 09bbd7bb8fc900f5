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
        rows: int64, (count,), distinct. step: from 1. rate: the learning rate. betas: in [0, 1). divisor: of the
            gradient, before all else; more than 0.
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. IndexError: a row is not the table's.
    """
    _check_table(parameter, rows)
    for name, tensor in (("mean", mean), ("square", square), ("gradient", gradient)):
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            wanted, found = tuple(parameter.shape), tuple(tensor.shape)
            raise ValueError(f"{name} must be {parameter.dtype} {wanted}, got {tensor.dtype} {found}")
    checks.dense_and_apart(parameter.device, parameter=parameter, mean=mean, square=square, gradient=gradient)
    step, rate, eps = checks.integer("step", step, 1), checks.real("rate", rate, 0), checks.real("eps", eps, 0)
    weight_decay, divisor = checks.real("weight_decay", weight_decay, 0), checks.real("divisor", divisor, 0)
    if divisor == 0:
        raise ValueError("divisor must be more than 0, got 0")
    beta1, beta2 = _check_betas(betas)
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
    checks.dense_and_apart(parameter.device, parameter=parameter, factors=factors)
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
    checks.table("parameter", parameter)
    if parameter.device.type != "cpu":
        raise ValueError(f"parameter must be on the CPU, got {parameter.device}")
    if rows.dtype != torch.int64 or rows.ndim != 1 or rows.device.type != "cpu":
        raise ValueError(f"rows must be int64 of one dimension on the CPU, got {rows.dtype} {tuple(rows.shape)}")
    checks.rows("rows", rows, parameter.shape[0])


def _check_betas(betas: tuple[float, float]) -> list[float]:
    numbers = [checks.real("betas", beta) for beta in betas] if isinstance(betas, tuple | list) else []
    if len(numbers) != 2 or not all(0 <= beta < 1 for beta in numbers):
        raise ValueError(f"betas must be two numbers from 0 to below 1, got {betas}")
    return numbers


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
