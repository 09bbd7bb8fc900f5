"""The pretraining of a study: once, on its training texts without their labels; each trial of a family that begins with
it fine-tunes what came of it.

pretraining/run        the run, which resumes
pretraining/rows.json  which training rows it does not read, settled before its first step
pretraining/cost.json  what it was made from and took, once it is over
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penstock.engine.checked import read_checked, write_checked
from penstock.engine.data.overlap import shared_rows
from penstock.engine.errors import RunError
from penstock.engine.records import read_record
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.fingerprints import digest, result_settings
from penstock.engine.study.trials import Pretrained

if TYPE_CHECKING:
    from penstock.engine.data.store import Store
    from penstock.engine.study.run_trial import TrialTask
    from penstock.engine.training.result import TrainResult
    from penstock.engine.training.settings import Settings


@dataclass(frozen=True)
class _Rows:
    """The contents of rows.json.

    Attributes:
        train, test: fingerprints of the stores.
        tests: training rows that are test texts too. validation: those that trials choose their best model by.
    """

    train: str
    test: str
    tests: list[int]
    validation: list[int]


@dataclass(frozen=True)
class _Cost(Pretrained):
    """The contents of cost.json.

    Attributes:
        made_from: of `Pretraining`; None where an earlier penstock wrote it.
    """

    made_from: str | None = None


@dataclass(frozen=True)
class Pretraining:
    """
    Attributes:
        settings: of the run, resolved. run: its directory. cost: the file of what it took.
        rows: int64, the training rows that it reads, those that it validates with among them.
        tests, validation: how many it does not read: test texts, and validation rows of trials. later: validation rows
            of trials that were planned since it began, which it does read, without their labels.
        tokens: that it reads in all its passes, at most.
        made_from: identifies what the run comes to.
    """

    settings: "Settings"
    run: Path
    cost: Path
    rows: np.ndarray
    tests: int
    validation: int
    later: int
    tokens: float
    made_from: str

    def __str__(self) -> str:
        left = [
            f"{count:,} {what}" for count, what in ((self.tests, "test texts"), (self.validation, "validation rows"))
        ]
        return (
            f"pretraining, once: {len(self.rows):,} training texts without their labels, about {self.tokens:,.0f} "
            f"tokens; left out: {' and '.join(left)}"
        )

    def taken(self) -> Pretrained | None:
        """What the run took; None while it is not over.

        Raises:
            RunError: the file is damaged, or the run was another.
        """
        try:
            done = read_record(_Cost, read_checked(self.cost))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.cost}: damaged: {error}; remove {self.cost.parent} to pretrain again") from None
        if done.made_from not in (None, self.made_from):
            raise RunError(
                f"{self.cost.parent} was made from other settings, texts or rows than there are now: put back what was "
                "there, give another --out, or remove it to pretrain again"
            )
        return Pretrained(done.texts, done.tokens, done.seconds, done.cpu_seconds)


def planned_pretraining(
    folder: Path, settings: "Settings", tasks: Sequence["TrialTask"], train: "Store", test: "Store"
) -> Pretraining:
    """What the study's pretraining is. Once it has begun, it keeps to the rows that it began with.

    Args:
        folder: of the pretraining. settings: see `pretraining_settings`. tasks: of all trials of the study.

    Raises:
        RunError: it was begun with other data.
    """
    from penstock.engine.training.reading import read_by
    from penstock.engine.training.settings import Settings

    own = [task for task in tasks if FAMILIES[task.trial.family].pretrains]
    validation = _validation_rows(own, train)
    kept = _read_rows(folder, train, test) if (folder / "run" / "run.json").exists() else None
    if kept is None:
        kept = _Rows(train.fingerprint, test.fingerprint, shared_rows(train, test).tolist(), validation.tolist())
        folder.mkdir(exist_ok=True)
        write_checked(folder / "rows.json", asdict(kept))
    left_out = np.union1d(np.array(kept.tests, np.int64), np.array(kept.validation, np.int64))
    rows = np.setdiff1d(np.arange(train.num_examples), left_out)
    tokens, training = int(read_by(settings, train).lengths[rows].sum(dtype=np.int64)), settings.training
    assert training.epochs is not None
    usual = Settings().flat()
    stated = {key: value for key, value in result_settings(settings).items() if value != usual.get(key)}
    made_from = {"settings": stated, "train": train.fingerprint, "rows": digest(rows.tolist())}
    return Pretraining(
        settings=settings,
        run=folder / "run",
        cost=folder / "cost.json",
        rows=rows,
        tests=len(kept.tests),
        validation=len(np.setdiff1d(kept.validation, kept.tests)),
        later=len(np.setdiff1d(validation, left_out)),
        tokens=min(training.epochs * tokens, settings.pretraining.tokens or np.inf),
        made_from=digest(made_from),
    )


def pretrain(pretraining: Pretraining, train: "Store", progress: bool) -> Pretrained:
    """Lets the model learn, or go on, unless it is over; what it took.

    Raises:
        RunError: its directory holds something else, or something in it is damaged.
        Interrupted: a signal came; the next start goes on.
    """
    from penstock.engine.training.train import train as run_training

    if (done := pretraining.taken()) is not None:
        return done
    goes_on, started = pretraining.run.exists(), time.process_time()
    try:
        result = run_training(
            pretraining.settings,
            train,
            pretraining.run,
            rows=pretraining.rows,
            progress="auto" if progress else "none",
        )
    except RunError as error:
        raise RunError(f"{error}; or remove {pretraining.run.parent} to pretrain again") from error
    done = Pretrained(
        texts=texts_read(result, len(pretraining.rows)),
        tokens=result.tokens,
        seconds=result.seconds,
        cpu_seconds=None if goes_on else time.process_time() - started,
    )
    write_checked(pretraining.cost, asdict(_Cost(**asdict(done), made_from=pretraining.made_from)))
    return done


def texts_read(result: "TrainResult", rows: int) -> int:
    """How many of its rows the run read, where it may have ended within its first pass; those that it validated with
    are among both."""
    held_out = 0 if result.validation is None else result.validation.num_examples
    return min(result.examples + held_out, rows)


def _validation_rows(tasks: Sequence["TrialTask"], train: "Store") -> np.ndarray:
    """int64, ascending: training rows by which any of the trials chooses its best model. Not those of trials that have
    a teacher: it labels theirs, which are texts without labels like others."""
    from penstock.engine.study.subsets import subset
    from penstock.engine.training.settings import Settings
    from penstock.engine.training.split import split_rows

    found = [np.empty(0, np.int64)]
    for task in tasks:
        assert isinstance(task.settings, Settings)
        if task.trial.teacher is not None:
            continue
        found.append(split_rows(task.settings, train, subset(train.labels, task.trial.size, task.subset_seed), None)[1])
    return np.unique(np.concatenate(found))


def _read_rows(folder: Path, train: "Store", test: "Store") -> _Rows:
    path = folder / "rows.json"
    try:
        kept = read_record(_Rows, read_checked(path))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}; remove {folder} to pretrain again") from None
    if (kept.train, kept.test) != (train.fingerprint, test.fingerprint):
        raise RunError(f"{folder} was made from other data than is there now: put that back, or give another --out")
    return kept
