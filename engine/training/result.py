"""What a run came to."""

from dataclasses import dataclass
from typing import Any

from penstock.engine.errors import RunError
from penstock.engine.training.calibrate import Calibration
from penstock.engine.training.metrics import Metrics
from penstock.engine.training.multi_label import Thresholds, read_metrics
from penstock.engine.training.pretraining_metrics import PretrainingMetrics
from penstock.engine.training.run_directory import RunDirectory


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run; also the entry `result` of run.json.

    Attributes:
        validation: figures of the best model, found at `best_step`, before any calibration; None without a validation
            split.
        test: figures of the best model on the test store, if one was given.
        stopped_by: "epochs", "max_steps", "patience" or, in pretraining, "tokens".
        seconds: time in training steps, waiting for data included, evaluation and checkpoints not.
        parameters: of the model; trainable_parameters: those that were not frozen.
        checkpoint_seconds: that training stood still for checkpoints, not in `seconds`.
        calibration: the temperature that the best model's logits were divided by, if one was asked for.
        thresholds: of a model for lists of labels, where its validation rows draw the line; `validation` is at 0.5.
        time: seconds of the whole run by phase: data, forward, backward, optimizer, communication, checkpoint,
            evaluation, other. They add up to the time from its beginning to its end; of a run that was interrupted,
            without what was done after the checkpoint that it went on from. None of an earlier version's run.
    """

    validation: Metrics | PretrainingMetrics | None
    test: Metrics | None
    best_step: int
    stopped_by: str
    steps: int
    epochs: float
    examples: int
    tokens: int
    seconds: float
    tokens_per_second: float
    examples_per_second: float
    parameters: int
    trainable_parameters: int
    calibration: Calibration | None = None
    thresholds: Thresholds | None = None
    checkpoint_seconds: float = 0.0
    time: dict[str, float] | None = None

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "TrainResult":
        kinds = {
            "validation": read_metrics,
            "test": read_metrics,
            "calibration": lambda found: Calibration(**found),
            "thresholds": lambda found: Thresholds(**found),
        }
        return cls(**{**record, **{key: read(record[key]) for key, read in kinds.items() if record.get(key)}})


def recorded_result(directory: RunDirectory) -> TrainResult:
    """The result of a complete run.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return TrainResult.from_json(directory.record["result"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RunError(f"{directory.path / 'run.json'} is damaged: its result cannot be read ({error})") from None
