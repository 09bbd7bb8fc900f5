"""`--budget 3h`: which trial a study runs next where the time may not suffice for its whole grid.

1. Every family's first seed, from small sizes to large ones, at one size the cheap ones first. A trial that would not
   end in time is passed over. No further seed is run while a first one fits, so none takes the time of the largest.
2. Further seeds where they decide most per second: at the gaps to the encoder whose distance from the threshold is
   smallest by the half-width of their interval, which are those beside the break-even. A gap whose interval lies above
   or below the threshold as a whole is decided and gets none. An interval of one seed over test rows alone leaves out
   what other seeds would change: it has to clear the threshold with twice its width.

A pretraining is made when the first trial that begins with it has its turn, and counts as a part of that.
"""

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from penstock.engine.errors import ConfigError
from penstock.engine.study.break_even import THRESHOLD
from penstock.engine.study.estimate import Estimates
from penstock.engine.study.families import FAMILIES, REFERENCE, learns
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.paired import Key
from penstock.engine.study.plan import duration
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.trials import Trial, TrialResult

_UNITS = {"s": 1, "m": 60, "h": 3600}
_ONE_SEED = 2.0  # times as wide


def parse_budget(text: str) -> float:
    """The seconds of `3h`, `30m`, `90s` or `1.5h`.

    Raises:
        ConfigError: it is none of these, or no time at all.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not seconds:
        raise ConfigError(
            f"--budget {text!r} is no time: write hours, minutes or seconds, such as 3h, 1.5h, 30m or 90s"
        )
    return seconds


@dataclass(frozen=True)
class State:
    """What a choice depends on.

    Attributes:
        planned: all trials of the grid.
        over: those with a result. lost: those of them that diverged or failed.
        running: those that were begun and are not over.
        seconds: {trial: how long it takes, about}.
        gaps: {(family, size): the encoder's lead}, of the finished trials.
        left: seconds of the budget.
        pretraining: seconds of the one that some trials begin with; 0 where there is none, or none to do.
    """

    planned: Collection[Trial]
    over: frozenset[Trial] = frozenset()
    lost: frozenset[Trial] = frozenset()
    running: frozenset[Trial] = frozenset()
    seconds: Mapping[Trial, float] = field(default_factory=dict)
    gaps: Mapping[Key, Estimate] = field(default_factory=dict)
    left: float = 0.0
    pretraining: float = 0.0

    @property
    def waiting(self) -> list[Trial]:
        return [trial for trial in self.planned if trial not in self.over and trial not in self.running]

    def is_ready(self, trial: Trial) -> bool:
        """Whether what it learns from is over."""
        return trial.teacher is None or trial.teacher in self.over

    def needs_pretraining(self, trial: Trial) -> bool:
        """Whether it begins with what is still to be pretrained."""
        return self.pretraining > 0 and FAMILIES[trial.family].pretrains

    def takes(self, *trials: Trial) -> float:
        """Seconds of these, one after the other, with the pretraining where one of them waits for it."""
        before = self.pretraining if any(map(self.needs_pretraining, trials)) else 0.0
        return before + sum(self.seconds[trial] for trial in trials)

    def fits(self, *trials: Trial) -> bool:
        return self.takes(*trials) <= self.left

    @property
    def compared(self) -> set[Key]:
        """Families and sizes whose gap the grid measures."""
        keys = {(trial.family, trial.size) for trial in self.planned}
        return {
            (family, size)
            for family, size in keys
            if family != REFERENCE and learns(family) and (REFERENCE, size) in keys
        }


def choose_next(state: State, with_gaps: Callable[[State], State] = lambda state: state) -> Trial | None:
    """The trial to run next; None if none is worth it, or fits, as things stand, which each result changes.

    Args:
        with_gaps: gives the state its gaps, which only further seeds are chosen by.
    """
    return first_seed(state) or further_seed(with_gaps(state))


def first_seed(state: State) -> Trial | None:
    return min(
        (trial for trial in state.waiting if trial.seed == 0 and state.is_ready(trial) and state.fits(trial)),
        key=lambda trial: (trial.size, state.takes(trial), trial.family),
        default=None,
    )


def further_seed(state: State) -> Trial | None:
    if not state.compared:  # nothing tells where a seed would help
        return min(
            (trial for trial in state.waiting if trial.seed > 0 and state.is_ready(trial) and state.fits(trial)),
            key=lambda trial: (trial.seed, trial.size, state.takes(trial), trial.family),
            default=None,
        )
    best: tuple[tuple, Trial] | None = None
    for family, size in state.compared:
        missing = _missing(state, family, size)
        if not missing or not state.fits(*missing):
            continue
        worth = undecided(state.gaps.get((family, size))) / max(state.takes(*missing), 1e-9)
        rank = (-worth, size, family)
        ready = [trial for trial in missing if state.is_ready(trial)]
        if worth > 0 and ready and (best is None or rank < best[0]):
            best = rank, ready[0]
    return None if best is None else best[1]


def undecided(gap: Estimate | None, threshold: float = THRESHOLD) -> float:
    """From 0, where the gap is surely on one side of the threshold, to 1, where it lies on it or nothing tells."""
    if gap is None or gap.low is None or gap.high is None:
        return 1.0
    wider = 1.0 if gap.over_seeds else _ONE_SEED
    low, high = gap.mean - wider * (gap.mean - gap.low), gap.mean + wider * (gap.high - gap.mean)
    if low > threshold or high < threshold or high == low:
        return float(high == low == threshold)
    # an interval need not be symmetric: within it there is always something left to decide
    return max(1 - abs(gap.mean - threshold) / ((high - low) / 2), 1e-3)


def _missing(state: State, family: str, size: int) -> list[Trial]:
    """What the gap's next seed lacks, the encoder's trial first, which serves other families too; empty while that or
    the first seed is running, and where the grid has no more seeds."""
    planned = set(state.planned)
    if not state.over.issuperset([Trial(size, 0, REFERENCE), Trial(size, 0, family)]):
        return []
    seed = 1
    while True:
        pair = [Trial(size, seed, REFERENCE), Trial(size, seed, family)]
        if not planned.issuperset(pair):
            return []
        if not state.over.issuperset(pair) and state.lost.isdisjoint(pair):
            return [trial for trial in pair if trial not in state.over and trial not in state.running]
        seed += 1


class Scheduler:
    """Hands out the trials of a study while its budget lasts.

    Args:
        tasks: of the whole grid.
        finished: {trial: its result}; whoever runs the trials adds to it.
        gaps: the gaps by these results.
        budget: seconds from now on.
        clock: seconds that pass.
        pretraining: see `State`; whoever is handed the first trial that begins with it makes it then.
    """

    def __init__(
        self,
        tasks: Iterable[TrialTask],
        finished: Mapping[Trial, TrialResult],
        estimates: Estimates,
        gaps: Callable[[Iterable[TrialResult]], Mapping[Key, Estimate]],
        budget: float,
        clock: Callable[[], float] = time.monotonic,
        pretraining: float = 0.0,
    ) -> None:
        self._tasks = {task.trial: task for task in tasks}
        self._finished, self._estimates, self._gaps = finished, estimates, gaps
        self._budget, self._clock, self._end = budget, clock, clock() + budget
        self._pretraining = pretraining
        self._begun: set[Trial] = set()
        self._known: tuple[int, Mapping[Key, Estimate]] = (-1, {})

    def __call__(self) -> TrialTask | None:
        """The next one; None if there is none as things stand."""
        state = self._state()
        trial = choose_next(state, self._with_gaps)
        if trial is None:
            return None
        if state.needs_pretraining(trial):
            if state.running:
                return None  # the pretraining has the machine to itself
            self._pretraining = 0.0
        self._begun.add(trial)
        return self._tasks[trial]

    def left(self) -> float:
        """Seconds of the budget."""
        return self._end - self._clock()

    def lines(self) -> list[str]:
        """What was not run, why, and how long it would take."""
        return left_out_lines(self._with_gaps(self._state()))

    def too_short(self) -> str:
        """Why nothing was run."""
        state = self._state()
        trial = min(state.waiting, key=state.takes)
        return (
            f"--budget: the shortest trial, {trial.name}, takes about {duration(state.takes(trial))}, longer than "
            f"{duration(self._budget)}: give more"
        )

    def _state(self) -> State:
        over = self._finished.keys() & self._tasks.keys()
        return State(
            planned=tuple(self._tasks),
            over=frozenset(over),
            lost=frozenset(trial for trial in over if self._finished[trial].status != "done"),
            running=frozenset(self._begun - over),
            seconds=self._estimates.seconds(self._finished),
            left=self.left(),
            pretraining=self._pretraining,
        )

    def _with_gaps(self, state: State) -> State:
        if self._known[0] != len(state.over):  # draws of a bootstrap: seconds, where there are many rows
            self._known = len(state.over), self._gaps([self._finished[trial] for trial in sorted(state.over)])
        return replace(state, gaps=self._known[1])


def left_out_lines(state: State) -> list[str]:
    """A line for each reason why trials were left out, with the time that they would take one after the other."""
    reasons: dict[str, list[Trial]] = {}
    for trial in state.waiting:
        reasons.setdefault(_reason(state, trial), []).append(trial)
    lines = []
    for reason, trials in sorted(reasons.items()):
        spent = duration(state.takes(*trials))
        named = ", ".join(trial.name for trial in trials[:3]) + (f" and {len(trials) - 3:,} more" if trials[3:] else "")
        lines.append(f"left out: {named}: {reason}; about {spent}")
    if lines:
        lines.append("the same command with another --budget, or without one, goes on from here")
    return lines


def _reason(state: State, trial: Trial) -> str:
    families = [family for family, size in state.compared if size == trial.size]
    if state.needs_pretraining(trial):
        return "the budget does not suffice with the pretraining that comes first"
    if trial.seed == 0 or not state.compared:
        return "the budget does not suffice"
    if trial.family != REFERENCE and trial.family not in families:
        return "another seed settles no gap to the encoder"
    own = families if trial.family == REFERENCE else [trial.family]
    gaps = [state.gaps.get((family, trial.size)) for family in own]
    if all(undecided(gap) == 0 for gap in gaps):
        return "the gap to the encoder is decided"
    return "the budget does not suffice"
