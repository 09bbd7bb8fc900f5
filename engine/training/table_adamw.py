"""AdamW of a model that looks up rows of a table, which is most of its parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from penstock.kernels.adamw import adamw_rows, decay_rows

_MOST_BEHIND = 1024  # steps; then the cost of catching up is still small beside that of taking them
_STEPS_BETWEEN_LOOKS = 64


class TableAdamW(torch.optim.AdamW):
    """torch's fused AdamW. Of a table whose gradient is zero but for rows that a batch looks up, it takes no step of
    rows that no batch has looked up yet: these only decay, all alike, which is made up for once.

    A small training set names a fraction of a vocabulary, and every step would go through all of it. The state is
    torch's own. Between `look_up` and `settle` the rows that were not looked up are not what they should be, and
    nobody may write to the table. Should a row have a gradient that was not said to be looked up, which is checked now
    and then, all rows take their steps from then on.
    """

    _table: Tensor | None = None
    _takes_all = False

    def look_up(self, table: Tensor, rows: Tensor) -> None:
        """To be called before a step's forward pass.

        Args:
            table: a parameter of this optimizer, (rows, width), float32, on the CPU, contiguous.
            rows: int64, ascending: those that have a gradient in this step.
        """
        if self._table is not table or len(self._behind) >= _MOST_BEHIND:
            self.settle()
            self._table = table
            self._behind: list[float] = []  # what the rows that were not looked up are still to be multiplied by
            self._steps = 0
            self._seen = torch.full((table.shape[0],), self._takes_all)
            if state := self.state.get(table):  # a row without either takes a step by decaying
                self._seen |= state["exp_avg_sq"].any(1) | state["exp_avg"].any(1)
            self._rows = self._seen.nonzero()[:, 0]
        self._see(rows[~self._seen[rows]])

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        table = self._table
        gradient = None if table is None else table.grad
        if table is None or gradient is None:
            self._step_others()
            return
        if self._steps % _STEPS_BETWEEN_LOOKS == 0 and bool((gradient.any(1) & ~self._seen).any()):
            self._see((~self._seen).nonzero()[:, 0])
            self._takes_all = True
        self._steps += 1
        table.grad = None
        try:
            self._step_others()
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

    def _step_others(self) -> None:
        step = torch.optim.AdamW.step
        if getattr(step, "hooked", False):  # by torch: whoever watches this optimizer's steps would see two
            step = step.__wrapped__  # type: ignore[attr-defined]
        step(self)

    def _see(self, new: Tensor) -> None:
        if new.numel():
            self._catch_up(new)
            self._seen[new] = True
            self._rows = self._seen.nonzero()[:, 0]

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

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return super().__getstate__()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._table = None
