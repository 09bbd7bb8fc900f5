"""The trials of a study and their results on the disk: one JSON file each, written when the trial is over, after its
predictions."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penstock.engine.errors import RunError
from penstock.engine.files import write_json
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.fingerprints import MadeFrom
from penstock.engine.study.predictions import PredictionsEntry


@dataclass(frozen=True, order=True)
class Trial:
    """One training run: a family on a number of examples, the `seed`-th time."""

    size: int
    seed: int
    family: str

    @property
    def name(self) -> str:
        return f"{self.family}-{self.size}-{self.seed}"


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
        train_seconds: in training steps and validation. tokens_per_second: real ones, in training steps.
        evaluation: everything that `penstock evaluate` reports of the test set, see `Evaluation.to_json`; None in those
            of an earlier penstock.
        made_from: fingerprints of its data, settings and encoder; None in trials of an earlier penstock.
        predictions: the file beside it with what it predicted of each test row; None in trials of an earlier penstock.
        train_cpu_seconds: of all threads, in training and validation: what a busy machine does not change. None in
            trials of an earlier penstock, and where the training was interrupted.
        chosen: {setting: value} that a baseline chose by validation.
        notes: lines that a reader of its figures should know: limits that were met, choices at the end of their range.
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
    write_json(result_path(folder, result.trial), dataclasses.asdict(result))


def read_result(path: Path) -> TrialResult:
    """
    Raises:
        RunError: the file is not a trial's result.
    """
    try:
        document = json.loads(path.read_text())
        made_from = MadeFrom(**document["made_from"]) if document.get("made_from") else None
        predictions = PredictionsEntry(**document["predictions"]) if document.get("predictions") else None
        trial = document.pop("cell" if "cell" in document else "trial")  # an earlier penstock wrote cells
        notes = tuple(document.get("notes", ()))
        read = {"trial": Trial(**trial), "made_from": made_from, "predictions": predictions, "notes": notes}
        return TrialResult(**{**document, **read})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path}: not a trial's result ({error}); remove it to run the trial again") from None


def read_results(folder: Path) -> list[TrialResult]:
    """The results of all trials in the folder, small trials first."""
    return sorted((read_result(path) for path in folder.glob("*.json")), key=lambda result: result.trial)
