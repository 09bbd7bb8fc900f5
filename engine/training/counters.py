"""Where a run stands, and how fast it goes."""

import math
from dataclasses import dataclass
from typing import Any

from penstock.engine.training.metrics import Metrics
from penstock.engine.training.multi_label import read_metrics
from penstock.engine.training.pretraining_metrics import PretrainingMetrics
from penstock.engine.training.settings import Settings
from penstock.engine.training.state import StateError, check_counters
from penstock.engine.training.timers import read_times


@dataclass
class Counters:
    """Where a run stands; part of every checkpoint.

    Attributes:
        epoch, step: finished ones. examples, tokens: trained on so far.
        seconds: spent in steps, waiting for data included.
        best: figures of the best model so far, found at `best_step`; `since_best` evaluations ago.
        stopped_by: why the run is over: "epochs", "max_steps", "tokens", "patience"; empty while it is not.
        checkpoint_seconds: that training stood still for checkpoints.
        interval_*: of the steps since the last line of metrics.jsonl; `interval_examples` are in pretraining the tokens
            to tell.
        unfinished: a signal came while the model was evaluated after the last step: what else that step has to log. The
            run goes on with that evaluation.
        time: seconds of all that the run did, by phase, see `timers`.
    """

    epoch: int = 0
    step: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: Metrics | PretrainingMetrics | None = None
    best_step: int = 0
    since_best: int = 0
    stopped_by: str = ""
    checkpoint_seconds: float = 0.0
    interval_loss: float = 0.0
    interval_correct: int = 0
    interval_examples: int = 0
    unfinished: dict[str, float] | None = None
    time: dict[str, float] | None = None

    @classmethod
    def from_state(cls, state: Any) -> "Counters":
        """Raises StateError: they are not counters."""
        state = check_counters(state, cls)
        if (left := state.get("unfinished")) is not None:
            numbers = {key: value for key, value in left.items() if type(value) in (int, float)}
            if left.keys() != {"grad_norm", "learning_rate"} or numbers.keys() != left.keys():
                raise StateError(f"what its last step has to log is {left!r:.60}")
        spent = read_times(state.get("time"))
        try:
            best = read_metrics(state["best"]) if state.get("best") else None
            return cls(**{**state, "best": best, "time": spent})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise StateError(f"its figures of the best model cannot be read ({error})") from None

    def over(self, settings: Settings) -> str:
        """Why a run with these settings is over here; empty if it is not."""
        training, tokens = settings.training, settings.pretraining.tokens
        if training.max_steps is not None and self.step >= training.max_steps:
            return "max_steps"
        if training.epochs is not None and self.epoch >= training.epochs:
            return "epochs"
        if tokens is not None and self.tokens >= tokens:
            return "tokens"
        return "patience" if training.patience and self.since_best >= training.patience else ""


class Interval:
    """Speed since the last line of metrics.jsonl: time in steps only, evaluation and checkpoints not counted."""

    def __init__(self) -> None:
        self._examples, self._tokens, self._seconds, self._waited = 0, 0, 0.0, 0.0

    def add(self, *, examples: int, tokens: int, seconds: float, waited: float) -> None:
        """A step: what it trained on, the seconds it took, and how many of these it waited for data."""
        self._examples += examples
        self._tokens += tokens
        self._seconds += seconds
        self._waited += waited

    def speed(self, flops_per_token: float, peak: float | None, devices: int) -> dict[str, float | None]:
        """Real tokens and examples a second, the share of time that was waited for data, and of the peak in use.

        Args:
            peak: FLOP/s that a device can do; None where that is not known. A share above 1 tells that it is wrong,
                measured while others had the cores, and is left out.
        """
        seconds = max(self._seconds, 1e-9)
        tokens_per_second = self._tokens / seconds
        of_peak = tokens_per_second * flops_per_token / (peak * devices) if peak else math.inf
        return {
            "tokens_per_second": round(tokens_per_second, 1),
            "examples_per_second": round(self._examples / seconds, 2),
            "data_wait": round(self._waited / seconds, 5),
            "mfu": round(of_peak, 5) if of_peak <= 1 else None,
        }
