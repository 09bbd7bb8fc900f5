"""A line on stderr for each trial that ends, with the time that is left."""

import sys
from collections.abc import Callable, Mapping, Sequence

from penstock.engine.study.families import FAMILIES
from penstock.engine.study.trials import Trial, TrialResult
from penstock.engine.training.recipe import most_epochs


class StudyProgress:
    """Silent unless `shown`. The time left is what finished trials of the family took, in proportion to the size times
    the epochs."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._left: set[Trial] = set()
        self._total = 0
        self._jobs = 1
        self._seconds: dict[str, tuple[float, int]] = {}  # family -> (seconds, work) of its longest finished trial
        self._expected: Mapping[str, float] = {}
        self._budget: Callable[[], float] | None = None

    def start(
        self,
        trials: Sequence[Trial],
        finished: Mapping[Trial, TrialResult],
        jobs: int,
        expected: Mapping[str, float] | None = None,
        budget: Callable[[], float] | None = None,
    ) -> None:
        """
        Args:
            expected: {trial: seconds} by the study's plan, which count until the family has a finished trial.
            budget: the seconds that are left, where not all trials need be run.
        """
        self._total, self._left, self._jobs = len(trials), set(trials) - set(finished), jobs
        self._expected, self._budget = expected or {}, budget
        if finished:
            self._print(f"{len(finished)} of {len(trials)} trials are done already")

    def finished(self, result: TrialResult, seconds: float) -> None:
        """`seconds` since the result before it."""
        trial = result.trial
        self._left.discard(trial)
        self._seconds[trial.family] = max(
            self._seconds.get(trial.family, (0.0, 0)), (seconds * self._jobs, _work(trial))
        )
        outcome = (
            f"accuracy {result.accuracy:.1%}" if result.accuracy is not None else f"{result.status}: {result.error}"
        )
        self._print(
            f"[{self._total - len(self._left)}/{self._total}] {FAMILIES[trial.family].title}, {trial.size:,} examples, "
            f"seed {trial.seed}: {outcome} in {_duration(seconds)}{self._remaining()}"
        )

    def _remaining(self) -> str:
        if self._budget is not None:
            return f"; {_duration(max(self._budget(), 0.0))} of the budget left"
        known = [self._seconds_of(trial) for trial in self._left]
        if not known or None in known:
            return ""
        return f"; about {_duration(sum(filter(None, known)) / self._jobs)} left"

    def _seconds_of(self, trial: Trial) -> float | None:
        if trial.family not in self._seconds:
            return self._expected.get(trial.name)
        seconds, work = self._seconds[trial.family]
        return seconds / work * _work(trial)

    def note(self, line: str) -> None:
        """What the user should know besides the trials."""
        self._print(line)

    def _print(self, line: str) -> None:
        if self._shown:
            print(line, file=sys.stderr, flush=True)


def _work(trial: Trial) -> int:
    """Examples that it trains on, each as often as there are epochs."""
    kind = FAMILIES[trial.family].kind
    if trial.teacher is not None:
        return 1  # all of the training texts, whatever the size
    return trial.size if kind is None else trial.size * most_epochs(kind, trial.size)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
