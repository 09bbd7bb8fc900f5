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

    def __init__(self, parameters: Iterable[Any], lr: float, initial_sum: float = 1e-6, eps: float = 1e-10) -> None:
        """
        Args:
            initial_sum: of the squares, which shortens the first steps: what stands in one text alone is learnt by
                heart more slowly. A bag's gradient is over the number of a text's n-grams, hence so small a number.
        """
        super().__init__(parameters, {"lr": lr, "initial_sum": initial_sum, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group["lr"], group["initial_sum"], group["eps"])

    def _step(self, parameter: Tensor, gradient: Tensor, lr: float, initial_sum: float, eps: float) -> None:
        state = self.state[parameter]
        if not state:
            shape = parameter.shape[:1] if gradient.is_sparse else parameter.shape
            state["sum"] = parameter.new_full(shape, initial_sum)
        if gradient.is_sparse:
            adagrad_rows(parameter, state["sum"], gradient, rate=lr, eps=eps)
        else:
            state["sum"].addcmul_(gradient, gradient)
            parameter.addcdiv_(gradient, state["sum"].sqrt().add_(eps), value=-lr)
