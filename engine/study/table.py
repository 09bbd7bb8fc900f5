"""The figures of a study: accuracy and gap by family and size, from the results of its trials."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.engine.study.families import FAMILIES, REFERENCE
from penstock.engine.study.intervals import Estimate, t_interval
from penstock.engine.study.paired import GapTest, Paired
from penstock.engine.study.trials import TrialResult


def training_time(table: "Table") -> tuple[str, Callable[[TrialResult], float]]:
    """What training time is called and how to take it of a trial, its teacher's included: the processor's where all
    trials noted it."""
    done = [result for result in table.results if result.status == "done"]
    if all(result.all_cpu_seconds is not None for result in done):
        return "processor time of training", lambda result: result.all_cpu_seconds or 0.0
    return "time of training", lambda result: result.all_seconds


@dataclass(frozen=True)
class Point:
    """One family at one size.

    Attributes:
        accuracies: {seed: share of test examples}, of the trials that are done.
        unfinished: trials that diverged or failed.
        accuracy: their mean, or None if no trial is done.
        gap: the reference family's accuracy minus this one's over the seeds that both have, on the same subsets; None
            where there is no such pair. gaps: {seed: gap}.
        macro_f1: None where the trials did not keep their predictions. test: of the gap; likewise.
    """

    family: str
    size: int
    accuracies: dict[int, float]
    unfinished: int
    accuracy: Estimate | None
    gap: Estimate | None
    gaps: dict[int, float]
    macro_f1: Estimate | None = None
    test: GapTest | None = None


class Table:
    """All points of a study, by family and size.

    Args:
        paired: what the trials' predictions say; without them intervals are over seeds alone.
    """

    def __init__(self, results: Sequence[TrialResult], paired: Paired | None = None) -> None:
        self.results = list(results)
        self.paired = paired or Paired({}, {}, {}, {}, 0, 0, None, 0)
        present = {result.trial.family for result in results}
        self.families = [name for name in FAMILIES if name in present]
        self.sizes = sorted({result.trial.size for result in results})
        self._points = {
            (family, size): self._point(family, size)
            for family in self.families
            for size in self.sizes
            if any(result.trial.family == family and result.trial.size == size for result in results)
        }

    def get(self, family: str, size: int) -> Point | None:
        return self._points.get((family, size))

    def points(self, family: str) -> list[Point]:
        """The family's points by size, those without a finished trial left out."""
        found = (self.get(family, size) for size in self.sizes)
        return [point for point in found if point is not None and point.accuracy is not None]

    def trials(self, family: str, size: int) -> list[TrialResult]:
        return [result for result in self.results if (result.trial.family, result.trial.size) == (family, size)]

    def _accuracies(self, family: str, size: int) -> dict[int, float]:
        return {
            result.trial.seed: result.accuracy
            for result in self.trials(family, size)
            if result.status == "done" and result.accuracy is not None
        }

    def _point(self, family: str, size: int) -> Point:
        own = self._accuracies(family, size)
        reference = self._accuracies(REFERENCE, size) if family != REFERENCE else {}
        gaps = {seed: reference[seed] - own[seed] for seed in own if seed in reference}
        key = (family, size)
        accuracy = t_interval(list(own.values())).within(0, 1) if own else None
        gap = t_interval(list(gaps.values())).within(-1, 1) if gaps else None
        paired = self.paired
        return Point(
            family=family,
            size=size,
            accuracies=own,
            unfinished=sum(result.status != "done" for result in self.trials(family, size)),
            accuracy=Estimate.of(paired.accuracies[key]) if key in paired.accuracies else accuracy,
            gap=Estimate.of(paired.gaps[key]) if key in paired.gaps else gap,
            gaps=gaps,
            macro_f1=Estimate.of(paired.macro_f1[key]) if key in paired.macro_f1 else None,
            test=paired.tests.get(key),
        )
