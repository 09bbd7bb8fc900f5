"""The trials of a study and their results on the disk: one JSON file each, written when the trial is over, after its
predictions."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penstock.engine.checked import read_checked, write_checked
from penstock.engine.errors import RunError
from penstock.engine.records import check_range, read_record
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.fingerprints import MadeFrom
from penstock.engine.study.predictions import PredictionsEntry, predictions_path

AT_THE_END = "is at the end of the range that was tried"  # in notes of a choice: a better value may lie beyond
_MANY = (1 << 63) - 1  # of anything that is counted


@dataclass(frozen=True, order=True)
class Trial:
    """One training run: a family on a number of examples, the `seed`-th time."""

    size: int
    seed: int
    family: str

    @property
    def name(self) -> str:
        return f"{self.family}-{self.size}-{self.seed}"

    @property
    def teacher(self) -> "Trial | None":
        """The trial whose model it learns from."""
        family = FAMILIES[self.family].teacher if self.family in FAMILIES else None
        return None if family is None else Trial(self.size, self.seed, family)


@dataclass(frozen=True)
class Taught:
    """What a trial's teacher gave it, and took.

    Attributes:
        texts: unlabelled ones that were learned from, those for validation among them. left_out: texts of the training
            data that were not, because they are test texts.
        teacher_seconds, teacher_cpu_seconds: of the teacher's training; the second is None where that is not known.
        reading_seconds, reading_cpu_seconds: in which the teacher read the texts.
        again_seconds: by the clock, in which the teacher was trained again, as its model was not kept; None in trials
            of an earlier penstock.
        teacher_jobs: trials that ran at a time when the teacher was trained; None in trials of an earlier penstock.
    """

    texts: int
    left_out: int
    teacher_seconds: float
    teacher_cpu_seconds: float | None
    reading_seconds: float
    reading_cpu_seconds: float
    again_seconds: float | None = None
    teacher_jobs: int | None = None


@dataclass(frozen=True)
class Pretrained:
    """What the pretraining took that trials begin with.

    Attributes:
        texts, tokens: that it read, texts without their labels, each counted once, tokens in all its passes.
        seconds, cpu_seconds: in steps by the clock, and in all of all threads; the second is None where it was
            interrupted.
    """

    texts: int
    tokens: int
    seconds: float
    cpu_seconds: float | None


@dataclass(frozen=True)
class TrialResult:
    """What a trial measured.

    Attributes:
        status: "done"; "diverged", its loss became non-finite; "failed", it ended in another error.
        error: one line, where it is not done.
        accuracy, macro_f1, loss: on the test set, shares and nats.
        validation_accuracy: of the chosen model, on the split carved from the trial's examples.
        train_examples, validation_examples, test_examples: the sizes of the three.
        steps, epochs: run before the training ended.
        train_seconds: by the clock. Of what the loop trains in training steps alone, waiting for data included, without
            validation and checkpoints; of a baseline in all of its fit, with the search for its settings.
        tokens_per_second: real ones, in `train_seconds`.
        evaluation: everything that `penstock evaluate` reports of the test set, see `Evaluation.to_json`; None in those
            of an earlier penstock.
        made_from: fingerprints of its data, settings and encoder; None in trials of an earlier penstock.
        predictions: the file beside it with what it predicted of each test row; None in trials of an earlier penstock.
        train_cpu_seconds: of all threads, in all of the training, with validation and checkpoints: what a busy machine
            does not change. None in trials of an earlier penstock, and where the training was interrupted.
        wall_seconds: of the whole trial by the clock: training, validation, the evaluation of the test rows and the
            model's way to the disk and back; of one that is not done, until it ended. None where it went on with an
            interrupted one, and in trials of an earlier penstock.
        chosen: {setting: value} that a baseline chose by validation.
        taught: of a trial that learns from a teacher's; its validation rows are then the teacher's to label.
        pretrained: of a trial that begins with the study's pretraining: what that took, once for all of them.
        notes: lines that a reader of its figures should know: limits that were met, choices at the end of their range.
        jobs: trials that ran at a time, this one among them; None in trials of an earlier penstock.
    """

    trial: Trial
    status: Literal["done", "diverged", "failed"]
    error: str = ""
    accuracy: float | None = None
    macro_f1: float | None = None
    loss: float | None = None
    validation_accuracy: float | None = None
    train_examples: int = 0
    validation_examples: int = 0
    test_examples: int = 0
    steps: int = 0
    epochs: float = 0.0
    train_seconds: float = 0.0
    tokens_per_second: float = 0.0
    evaluation: dict[str, Any] | None = None
    made_from: MadeFrom | None = None
    predictions: PredictionsEntry | None = None
    train_cpu_seconds: float | None = None
    chosen: dict[str, float] | None = None
    notes: tuple[str, ...] = ()
    wall_seconds: float | None = None
    taught: Taught | None = None
    pretrained: Pretrained | None = None
    jobs: int | None = None

    @property
    def all_seconds(self) -> float:
        """What its model takes to make: `train_seconds`, with those of its teacher and of its pretraining."""
        before = 0.0 if self.pretrained is None else self.pretrained.seconds
        if self.taught is not None:
            before += self.taught.teacher_seconds + self.taught.reading_seconds
        return self.train_seconds + before

    @property
    def machine_seconds(self) -> float:
        """The same of the machine: trials that ran side by side share it, each with those of its own time, and the
        pretraining had it to itself."""
        alone = 0.0 if self.pretrained is None else self.pretrained.seconds
        teacher = 0.0 if self.taught is None else self.taught.teacher_seconds
        together = self.jobs or 1
        of_teacher = together if self.taught is None else self.taught.teacher_jobs or together
        return alone + teacher / of_teacher + (self.all_seconds - alone - teacher) / together

    @property
    def spent_seconds(self) -> float:
        """By the clock, in this trial alone: not in what others did for it."""
        if self.wall_seconds is not None:
            return self.wall_seconds
        return self.train_seconds + (0.0 if self.taught is None else self.taught.reading_seconds)

    @property
    def all_cpu_seconds(self) -> float | None:
        """As `all_seconds`, of `train_cpu_seconds`; None where one of them is not known."""
        parts = [self.train_cpu_seconds]
        if self.pretrained is not None:
            parts.append(self.pretrained.cpu_seconds)
        if self.taught is not None:
            parts += [self.taught.teacher_cpu_seconds, self.taught.reading_cpu_seconds]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None


def plan_trials(sizes: Mapping[str, Sequence[int]], seeds: Mapping[int, int]) -> list[Trial]:
    """All trials, small ones first: {family: its sizes} by {size: its number of seeds}."""
    return sorted(
        Trial(size, seed, family) for family, own in sizes.items() for size in own for seed in range(seeds[size])
    )


def trial_named(name: str) -> Trial | None:
    """The trial of that name; None if no family has such a trial."""
    rest, _, seed = name.rpartition("-")
    family, _, size = rest.rpartition("-")
    if family not in FAMILIES or not size.isdecimal() or not seed.isdecimal():
        return None
    return Trial(int(size), int(seed), family)


def result_path(folder: Path, trial: Trial) -> Path:
    return folder / f"{trial.name}.json"


def write_result(folder: Path, result: TrialResult) -> None:
    """
    Raises:
        DiskError: it cannot be written.
    """
    write_checked(result_path(folder, result.trial), dataclasses.asdict(result))


def read_result(path: Path) -> TrialResult:
    """
    Raises:
        RunError: the file is not a trial's result.
    """
    try:
        document = read_checked(path)
        if isinstance(document, dict) and "cell" in document:  # what an earlier penstock called them
            document = {**document, "trial": document["cell"]}
            del document["cell"]
        result = read_record(TrialResult, document)
        check_result(result, path.stem)
        return result
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a trial's result ({error}); remove it to run the trial again") from None


def check_result(result: TrialResult, name: str) -> None:
    """What a trial measured can have been measured, by the trial that the file is named after.

    Raises:
        ValueError: it says what cannot be.
    """
    trial = result.trial
    check_range("trial.size", trial.size, 1, _MANY)
    check_range("trial.seed", trial.seed, 0, _MANY)
    if trial.name != name:
        raise ValueError(f"it is of the trial {trial.name}, the file's name is of {name}")
    for share in ("accuracy", "macro_f1", "validation_accuracy"):
        if (value := getattr(result, share)) is not None:
            check_range(share, value, 0, 1)
    for amount in ("train_examples", "validation_examples", "test_examples", "steps", "epochs", "train_seconds"):
        check_range(amount, getattr(result, amount), 0, _MANY)
    for amount in ("wall_seconds", "train_cpu_seconds"):
        if (value := getattr(result, amount)) is not None:
            check_range(amount, value, 0, _MANY)
    if result.jobs is not None:
        check_range("jobs", result.jobs, 1, _MANY)
    check_range("tokens_per_second", result.tokens_per_second, 0, _MANY)
    check_range(
        "train_examples + validation_examples", result.train_examples + result.validation_examples, 0, trial.size
    )
    if result.loss is not None:
        check_range("loss", result.loss, 0, _MANY)
    if result.status == "done" and None in (result.accuracy, result.macro_f1, result.loss):
        raise ValueError("it is done and lacks accuracy, macro_f1 or loss")
    for before, part in (("taught", result.taught), ("pretrained", result.pretrained)):
        for what, taken in ({} if part is None else dataclasses.asdict(part)).items():
            if taken is not None:
                check_range(f"{before}.{what}", taken, 0, _MANY)
    if (entry := result.predictions) is not None:
        if entry.name != predictions_path(Path(), name).name:
            raise ValueError(f"predictions.name is {entry.name!r}, not {predictions_path(Path(), name).name!r}")
        check_range("predictions.bytes", entry.bytes, 0, _MANY)
        check_range("predictions.crc32", entry.crc32, 0, (1 << 32) - 1)


def read_results(folder: Path) -> list[TrialResult]:
    """The results of all trials in the folder, small trials first."""
    return sorted((read_result(path) for path in folder.glob("*.json")), key=lambda result: result.trial)
