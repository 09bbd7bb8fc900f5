"""How much of its epochs a training runs that may stop early: as finished trials of its family did, else by a rule.

The rule: the best evaluation is any of those in the last two thirds of the run, each as likely, and the training ends
`patience` evaluations after it. The LSTM trials of benchmarks/recipes ran so (docs/log.md).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.engine.study.trials import Trial, TrialResult

if TYPE_CHECKING:
    from penstock.engine.study.estimate import Loads
    from penstock.engine.study.run_trial import TrialTask

EARLIEST = 1 / 3  # of a run: before it the rule puts no best evaluation


@dataclass(frozen=True)
class Stopping:
    """
    Attributes:
        share: of what a training may run at most, expected.
        trials: finished ones that it is by; 0 where it is by the rule; None of what never stops early.
    """

    share: float
    trials: int | None


NEVER = Stopping(1.0, None)


def expected_share(evaluations: int, patience: int) -> float:
    """By the rule.

    Args:
        evaluations: that a training makes at most. patience: as `training.patience`; 0 for never.
    """
    if not 0 < patience < evaluations:
        return 1.0
    best = np.arange(max(1, math.ceil(EARLIEST * evaluations)), evaluations + 1)
    return float(np.minimum(best + patience, evaluations).mean() / evaluations)


class Stoppings:
    """What to expect of trials, by those that are over.

    Args:
        loads: of the study's trials.
    """

    def __init__(self, tasks: Iterable["TrialTask"], loads: "Loads", finished: Mapping[Trial, TrialResult]) -> None:
        self._loads = loads
        self._ran: dict[str, dict[int, list[float]]] = {}
        for task in tasks:
            result = finished.get(task.trial)
            limits = loads.limits(task)
            if result is None or result.status != "done" or limits is None or result.epochs <= 0:
                continue
            if 0 < limits.patience < limits.evaluations:
                share = min(1.0, result.epochs * limits.epoch / limits.trained)
                self._ran.setdefault(task.trial.family, {}).setdefault(task.trial.size, []).append(share)

    def of(self, task: "TrialTask") -> Stopping:
        """A trial ends as those of its family at the nearest size did on average."""
        limits = self._loads.limits(task)
        if limits is None or not 0 < limits.patience < limits.evaluations:
            return NEVER
        own = self._ran.get(task.trial.family)
        if own is None:
            return Stopping(expected_share(limits.evaluations, limits.patience), 0)
        nearest = min(own, key=lambda size: (abs(math.log(size / task.trial.size)), size))
        return Stopping(float(np.mean(own[nearest])), len(own[nearest]))
