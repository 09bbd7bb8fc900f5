"""How long a trial takes: what it has to read, by how fast its family reads here.

Where a training may stop before its last epoch there are two figures: at most, and expected (early_stopping.py).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.engine.study.early_stopping import Stoppings
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.trials import Trial, TrialResult

if TYPE_CHECKING:
    from penstock.engine.data.store import Store
    from penstock.engine.study.run_trial import TrialTask

FAR = 8  # times as large: a small trial's speed, with its small batches and first calls, says little of such a one
_FORWARD = 1 / 3  # of a training step's time, of trials that did not note how long their other parts took


@dataclass(frozen=True)
class Load:
    """What a trial reads.

    Attributes:
        trained: tokens of its training rows, as often as they are read.
        predicted: tokens of the validation rows, for each evaluation, and of the test rows.
    """

    trained: float
    predicted: float


@dataclass(frozen=True)
class Limits:
    """What ends a training of the loop, in tokens that are trained on.

    Attributes:
        trained: at most. epoch: in one pass over the training rows. every: from one evaluation to the next.
        patience: evaluations without a better one before it stops; 0 for never.
    """

    trained: float
    epoch: float
    every: float
    patience: int

    @property
    def evaluations(self) -> int:
        """At most."""
        return math.ceil(self.trained / self.every - 1e-9)


@dataclass(frozen=True)
class Speed:
    """How fast a family is.

    Attributes:
        start: seconds of a trial whatever its size.
        train, predict: seconds for each token that is trained on or predicted.
        parameters: of the model that was measured; None where that is not known.
        finished: the finished trial that it is taken from; None where it was measured.
    """

    start: float
    train: float
    predict: float
    parameters: int | None = None
    finished: str | None = None

    def seconds(self, load: Load) -> float:
        return self.start + load.trained * self.train + load.predicted * self.predict


class Loads:
    """The loads of a study's trials, by its stores."""

    def __init__(self, train: "Store", test: "Store") -> None:
        self._stores = train, test
        self._mean_lengths: dict[tuple, tuple[float, float]] = {}

    def __call__(self, task: "TrialTask", share: float = 1.0) -> Load:
        """
        Args:
            share: of what the training may run at most.
        """
        mean, test_tokens = self._lengths(task)
        limits = self.limits(task)
        if limits is None:
            return Load(task.examples * mean, test_tokens)
        trained = share * limits.trained
        evaluations = math.ceil(trained / limits.every - 1e-9)
        return Load(trained, evaluations * self._validation(task) * mean + test_tokens)

    def limits(self, task: "TrialTask") -> Limits | None:
        """None of a baseline, which no loop trains."""
        from penstock.engine.training.settings import Settings

        settings = task.settings
        if not isinstance(settings, Settings):
            return None
        data, training = settings.data, settings.training
        epoch = max((task.examples - self._validation(task)) * self._lengths(task)[0], 1.0)
        step = min(data.tokens * data.batches_per_step, epoch)
        limits = [] if training.epochs is None else [training.epochs * epoch]
        limits += [] if training.max_steps is None else [training.max_steps * step]
        every = training.evaluate_every_steps * step or epoch
        return Limits(min(limits), epoch, every, training.patience or 0)

    def _validation(self, task: "TrialTask") -> int:
        """Rows that are held out of a training of the loop."""
        from penstock.engine.training.settings import Settings

        assert isinstance(task.settings, Settings)
        data = task.settings.data
        assert data.validation_fraction is not None
        return min(round(data.validation_fraction * task.examples), data.validation_max)

    def of_result(self, task: "TrialTask", result: TrialResult) -> Load:
        """What a finished trial did read."""
        planned = self(task)
        mean, test_tokens = self._lengths(task)
        if FAMILIES[task.trial.family].baseline is not None:
            return planned
        trained = result.tokens_per_second * result.train_seconds
        validation = self._validation(task) if result.taught is not None else result.validation_examples
        return Load(trained, math.ceil(result.epochs) * validation * mean + test_tokens)

    def of_reading(self, task: "TrialTask") -> Load:
        """What the teacher of a trial reads for it, as that predicts."""
        return Load(0.0, 0.0 if task.teacher is None else task.examples * self._lengths(task.teacher)[0])

    def _lengths(self, task: "TrialTask") -> tuple[float, float]:
        """Tokens that are read of a training text on average, and of all the test rows."""
        from penstock.engine.training.reading import read_alike, read_by

        key = task.settings.reading
        if key not in self._mean_lengths:
            own = read_by(task.settings, self._stores[0])
            read = own, read_alike(own, self._stores[1])
            train, test = (store.num_tokens / max(store.num_examples, 1) for store in read)
            self._mean_lengths[key] = train, test
        train, test = self._mean_lengths[key]
        return train, test * (task.max_test or self._stores[1].num_examples)


class Estimates:
    """The seconds of each trial by the clock, with the machine as it was when the speeds were measured: at most, and
    expected where trainings may stop early.

    Where trials of the family and size are finished, the longest of them is the most, their mean the expected; else
    the family's largest finished trial tells, but of trials that are far larger the measurement does, if there is one.

    Args:
        tasks: of all trials. measured: {family: its speed here}.
    """

    def __init__(self, tasks: Iterable["TrialTask"], loads: Loads, measured: Mapping[str, Speed]) -> None:
        self._tasks, self._loads, self._measured = {task.trial: task for task in tasks}, loads, measured

    def speeds(self, finished: Mapping[Trial, TrialResult]) -> dict[str, Speed]:
        """By the largest finished trial of each family, or as measured."""
        return {**self._measured, **{family: speed for family, (_, speed) in self._told(finished).items()}}

    def seconds(self, finished: Mapping[Trial, TrialResult]) -> dict[Trial, float]:
        """{trial: its seconds at most}, of the finished ones too.

        Raises:
            KeyError: a family has neither a finished trial nor a measurement.
        """
        return self._seconds(finished, max, lambda task: 1.0)

    def expected(self, finished: Mapping[Trial, TrialResult]) -> dict[Trial, float]:
        """{trial: its seconds, as trainings of its family end}; as `seconds`."""
        shares = self.stoppings(finished)
        return self._seconds(finished, lambda own: sum(own) / len(own), lambda task: shares.of(task).share)

    def stoppings(self, finished: Mapping[Trial, TrialResult]) -> Stoppings:
        """When trainings end."""
        return Stoppings(self._tasks.values(), self._loads, finished)

    def _seconds(
        self,
        finished: Mapping[Trial, TrialResult],
        of_finished: Callable[[list[float]], float],
        share: Callable[["TrialTask"], float],
    ) -> dict[Trial, float]:
        """
        Args:
            of_finished: from the times of finished trials of one family and size. share: of the epochs of a trial.
        """
        told = self._told(finished)
        took: dict[tuple[str, int], list[float]] = {}
        for trial, result in finished.items():
            if result.status == "done" and result.wall_seconds is not None:
                again = 0.0 if result.taught is None else result.taught.again_seconds or 0.0
                took.setdefault((trial.family, trial.size), []).append(result.wall_seconds - again)

        def speed(trial: Trial) -> Speed:
            measured = self._measured.get(trial.family)
            if trial.family not in told or (measured is not None and trial.size > FAR * told[trial.family][0]):
                return self._measured[trial.family]
            return told[trial.family][1]

        found = {}
        for trial, task in self._tasks.items():
            own = took.get((trial.family, trial.size))
            found[trial] = of_finished(own) if own else speed(trial).seconds(self._loads(task, share(task)))
            if (teacher := task.teacher) is None:
                continue
            if not own:
                found[trial] += speed(teacher.trial).predict * self._loads.of_reading(task).predicted
            # it was not kept: it is trained again
            if trial not in finished and teacher.trial in finished and not teacher.run.exists():
                found[trial] += speed(teacher.trial).seconds(self._loads(teacher, share(teacher)))
        return found

    def _told(self, finished: Mapping[Trial, TrialResult]) -> dict[str, tuple[int, Speed]]:
        """{family: (the size of its largest finished trial, the speed of that)}"""
        told = {}
        for result in sorted(finished.values(), key=lambda one: one.trial):
            task = self._tasks.get(result.trial)
            if task is None or not tells_speed(result):
                continue
            measured = self._measured.get(result.trial.family)
            parameters = None if measured is None else measured.parameters
            speed = speed_of(result, self._loads.of_result(task, result), parameters)
            told[result.trial.family] = result.trial.size, speed
        return told


def tells_speed(result: TrialResult) -> bool:
    """Whether a trial says how fast its family is."""
    return result.status == "done" and result.train_seconds > 0 and result.tokens_per_second > 0


def speed_of(result: TrialResult, load: Load, parameters: int | None = None) -> Speed:
    """The speed that a finished trial had.

    Args:
        load: what it did read.
    """
    train = result.train_seconds / max(load.trained, 1.0)
    # what its teacher did in it is counted by the teacher's speed
    taught, theirs = result.taught, 0.0
    if taught is not None and taught.again_seconds is not None:
        theirs = taught.reading_seconds + taught.again_seconds
    if result.wall_seconds is None or (taught is not None and taught.again_seconds is None):
        predict = train * _FORWARD
    else:
        predict = max(result.wall_seconds - result.train_seconds - theirs, 0.0) / max(load.predicted, 1.0)
    return Speed(0.0, train, predict, parameters, result.trial.name)
