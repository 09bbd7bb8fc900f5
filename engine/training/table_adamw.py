"""AdamW of a model that looks up rows of a table, which is most of its parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from penstock.kernels.adamw import adamw_rows, decay_rows


class TableAdamW(torch.optim.AdamW):
    """torch's fused AdamW. Of a table whose gradient is zero but for rows that a batch looks up, it takes no step of
    rows that no batch has looked up yet: these only decay, all alike, which is made up for once.

    A small training set names a fraction of a vocabulary, and every step would go through all of it. The state is
    torch's own. Between `look_up` and `settle` the rows that were not looked up are not what they should be.
    """

    _table: Tensor | None = None

    def look_up(self, table: Tensor, rows: Tensor) -> None:
        """To be called before a step's forward pass.

        Args:
            table: a parameter, (rows, width), float32, on the CPU, contiguous; the same from step to step.
            rows: int64, ascending: those that have a gradient in this step.
        """
        if self._table is not table:
            self.settle()
            self._table = table
            self._behind: list[float] = []  # what the rows that were not looked up are still to be multiplied by
            state = self.state.get(table)
            self._seen = state["exp_avg_sq"].any(1) if state else torch.zeros(table.shape[0], dtype=torch.bool)
            self._rows = self._seen.nonzero()[:, 0]
        new = rows[~self._seen[rows]]
        if new.numel():
            self._catch_up(new)
            self._seen[new] = True
            self._rows = self._seen.nonzero()[:, 0]

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        table = self._table
        gradient = None if table is None else table.grad
        if table is None or gradient is None:
            super().step()
            return
        table.grad = None
        try:
            super().step()
        finally:
            table.grad = gradient
        group = next(group for group in self.param_groups if any(each is table for each in group["params"]))
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] += 1
        divisor = getattr(self, "grad_scale", None)
        adamw_rows(
            table.detach(),
            state["exp_avg"],
            state["exp_avg_sq"],
            gradient,
            self._rows,
            step=int(state["step"]),
            rate=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            divisor=1.0 if divisor is None else float(divisor),
        )
        if group["weight_decay"]:
            self._behind.append(1 - group["lr"] * group["weight_decay"])

    def settle(self) -> None:
        """Makes up for what the rows that were not looked up are behind.

        Step by step: the bits do not depend on when this is called.
        """
        if self._table is not None:
            self._catch_up((~self._seen).nonzero()[:, 0])
        self._table = None

    def _catch_up(self, rows: Tensor) -> None:
        assert self._table is not None
        if self._behind:
            decay_rows(self._table.detach(), rows, torch.tensor(self._behind, dtype=self._table.dtype))

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._table = None
