"""What a study was expected to take: OUT/plan.json."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penstock.engine.checked import read_checked, write_checked
from penstock.engine.errors import RunError
from penstock.engine.records import read_record
from penstock.engine.study.early_stopping import Stopping
from penstock.engine.study.estimate import Speed
from penstock.engine.study.resolution import Resolution
from penstock.engine.study.trials import TrialResult

PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class Disk:
    """Bytes that the study's folder takes, about.

    Attributes:
        stores: prepared by the study; they are there already. encoded: texts as vectors of the frozen encoder.
        predictions: of all trials. runs: of the trials in progress, or of all with --keep-runs.
        pretraining: of the run that trials begin with.
    """

    stores: int
    encoded: int
    predictions: int
    runs: int
    pretraining: int = 0

    @property
    def total(self) -> int:
        return self.stores + self.encoded + self.predictions + self.runs + self.pretraining


@dataclass(frozen=True)
class Plan:
    """What a study was expected to do; also the contents of OUT/plan.json.

    Attributes:
        seconds: {trial: seconds by the clock, at most}, of all trials of the grid. expected: the same as trainings end
            that may stop early; empty in the plans of an earlier penstock.
        stopping: {family: when its trainings end, on average over the trials to do}.
        pretraining: seconds of the one that trials begin with, before the first of them; None where there is none to
            do. pretraining_tokens: that it reads.
        done: those of them that were finished already.
        speeds: of each family.
        jobs: trials at a time. keep_runs: whether the trained models are kept.
        test_rows: that each trial predicts. clusters: groups that they belong to by `column`, if one was given.
        others: cores that other processes kept busy while speeds were measured; None where that is not known.
        overrides: the settings that it was made with, as `StudySettings.overrides`; None where that is not known.
    """

    seconds: dict[str, float]
    done: list[str]
    speeds: dict[str, Speed]
    jobs: int
    keep_runs: bool
    disk: Disk
    resolution: list[Resolution]
    test_rows: int
    clusters: int | None = None
    column: str | None = None
    others: float | None = None
    expected: dict[str, float] = field(default_factory=dict)
    stopping: dict[str, Stopping] = field(default_factory=dict)
    pretraining: float | None = None
    pretraining_tokens: float = 0.0
    overrides: list[str] | None = None

    @property
    def likely(self) -> dict[str, float]:
        """{trial: its seconds as they are expected, where that is known}"""
        return self.expected or self.seconds

    @property
    def to_do(self) -> list[str]:
        return [name for name in self.seconds if name not in set(self.done)]

    @property
    def hours(self) -> float:
        """Until all that is to do is done, by the clock, with the jobs side by side, at most."""
        return in_parallel([self.seconds[name] for name in self.to_do], self.jobs) / 3600

    @property
    def likely_seconds(self) -> float:
        """The same as it is expected, with the pretraining before it."""
        return 3600 * self.likely_hours + (self.pretraining or 0.0)

    @property
    def most_seconds(self) -> float:
        """As `likely_seconds`, if no training stops early."""
        return 3600 * self.hours + (self.pretraining or 0.0)

    @property
    def likely_hours(self) -> float:
        """As `hours`, as it is expected."""
        return in_parallel([self.likely[name] for name in self.to_do], self.jobs) / 3600


def in_parallel(seconds: Sequence[float], jobs: int) -> float:
    """The seconds that these take by the clock, about: shared out evenly, but none in parts."""
    return max([sum(seconds) / jobs, *seconds], default=0.0)


def write_plan(folder: Path, plan: Plan) -> None:
    write_checked(folder / PLAN_NAME, {"format": 1, **dataclasses.asdict(plan)})


def plan_for(folder: Path, overrides: Sequence[str]) -> Plan | None:
    """The plan that was made last, if it was made with these settings.

    Raises:
        RunError: it cannot be read.
    """
    plan = read_plan(folder)
    return plan if plan is not None and plan.overrides in (None, list(overrides)) else None


def read_plan(folder: Path) -> Plan | None:
    """The plan that was made last; None if there is none.

    Raises:
        RunError: it cannot be read.
    """
    path = folder / PLAN_NAME
    try:
        document = read_checked(path)
        if not isinstance(document, dict) or document.pop("format", None) != 1:
            raise ValueError("of another version of penstock")
        plan = read_record(Plan, document)
        if plan.expected and plan.expected.keys() != plan.seconds.keys():
            raise ValueError("expected and seconds are not of the same trials")
        return plan
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a study's plan ({error}); remove it") from None


def expected_and_taken(plan: Plan, results: Iterable[TrialResult]) -> tuple[float, float] | None:
    """(seconds that the plan expected of the trials which are done since, seconds that they took); None if there are
    none."""
    to_do = set(plan.to_do)
    both = [
        (plan.likely[result.trial.name], result.wall_seconds)
        for result in results
        if result.trial.name in to_do and result.status == "done" and result.wall_seconds is not None
    ]
    return (sum(one for one, _ in both), sum(other for _, other in both)) if both else None


def duration(seconds: float) -> str:
    """In the unit that says enough: a plan is no measurement."""
    if seconds < 1:
        return "<1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
