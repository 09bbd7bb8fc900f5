"""Adagrad whose sparse gradients touch their rows alone."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from penstock.kernels import adagrad_rows


class RowAdagrad(torch.optim.Optimizer):
    """Duchi et al. 2011: each weight's step is over the root of the sum of its squared gradients.

    A parameter with sparse gradients has one sum for each of its rows, so that a rare n-gram still takes large steps
    when a frequent one has settled. There is no weight decay: it would touch every row.
    """

    def __init__(self, parameters: Iterable[Any], lr: float, eps: float = 1e-10) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group["lr"], group["eps"])

    def _step(self, parameter: Tensor, gradient: Tensor, rate: float, eps: float) -> None:
        state = self.state[parameter]
        if not state:
            state["sum"] = parameter.new_zeros(parameter.shape[:1] if gradient.is_sparse else parameter.shape)
        if gradient.is_sparse:
            adagrad_rows(parameter, state["sum"], gradient, rate=rate, eps=eps)
        else:
            state["sum"].addcmul_(gradient, gradient)
            parameter.addcdiv_(gradient, state["sum"].sqrt().add_(eps), value=-rate)
