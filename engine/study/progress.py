"""A line on stderr for each trial that ends, with the time that is left."""

import sys
from collections.abc import Mapping, Sequence

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

    def start(self, trials: Sequence[Trial], finished: Mapping[Trial, TrialResult], jobs: int) -> None:
        self._total, self._left, self._jobs = len(trials), set(trials) - set(finished), jobs
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
        if not self._left or any(trial.family not in self._seconds for trial in self._left):
            return ""
        rates = {family: seconds / work for family, (seconds, work) in self._seconds.items()}
        return f"; about {_duration(sum(rates[trial.family] * _work(trial) for trial in self._left) / self._jobs)} left"

    def note(self, line: str) -> None:
        """What the user should know besides the trials."""
        self._print(line)

    def _print(self, line: str) -> None:
        if self._shown:
            print(line, file=sys.stderr, flush=True)


def _work(trial: Trial) -> int:
    """Examples that it trains on, each as often as there are epochs."""
    kind = FAMILIES[trial.family].kind
    return trial.size if kind is None else trial.size * most_epochs(kind, trial.size)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
