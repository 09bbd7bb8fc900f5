"""The training loop, one for every model."""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.engine.data.label_lists import counts_of
from penstock.engine.data.loader import Loader, Step
from penstock.engine.data.manifest import TOKENIZER_NAME
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.store import Store
from penstock.engine.errors import RunError
from penstock.engine.files import copy_tree
from penstock.engine.models import build_model, load_model
from penstock.engine.models.build import check_pair_types
from penstock.engine.models.loading import quiet
from penstock.engine.models.start import Say, start_model
from penstock.engine.training.calibrate import Calibration, fit_temperature
from penstock.engine.training.checkpoint import read_state, write_checkpoint
from penstock.engine.training.class_weights import resolve_class_weights, resolve_positive_weights
from penstock.engine.training.distributed import World
from penstock.engine.training.evaluate import class_probabilities, evaluate, run, store_batches
from penstock.engine.training.flops import peak_flops, training_flops_per_token
from penstock.engine.training.metrics import Metrics
from penstock.engine.training.multi_label import Thresholds, choose_thresholds, read_metrics
from penstock.engine.training.optimizer import learning_rate_factor
from penstock.engine.training.precision import resolve_precision
from penstock.engine.training.progress import Mode, open_display
from penstock.engine.training.run_directory import MetricsLog, RunDirectory
from penstock.engine.training.settings import Settings, TrainingSettings
from penstock.engine.training.signals import Interrupted, StopSignal
from penstock.engine.training.step import Stepper, StepReport, derive_seed
from penstock.engine.training.trackers import open_trackers
from penstock.kernels.philox import DROPOUT_RULE

_SECONDS_BETWEEN_CHECKPOINTS = 300.0


@dataclass
class Counters:
    """Where a run stands; part of every checkpoint.

    Attributes:
        epoch, step: finished ones. examples, tokens: trained on so far.
        seconds: spent in steps, waiting for data included.
        best: figures of the best model so far, found at `best_step`; `since_best` evaluations ago.
        stopped_by: why the run is over: "epochs", "max_steps", "patience"; empty while it is not.
        interval_*: of the steps since the last line of metrics.jsonl.
    """

    epoch: int = 0
    step: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: Metrics | None = None
    best_step: int = 0
    since_best: int = 0
    stopped_by: str = ""
    interval_loss: float = 0.0
    interval_correct: int = 0
    interval_examples: int = 0

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Counters":
        return cls(**{**state, "best": read_metrics(state["best"]) if state["best"] else None})

    def over(self, settings: TrainingSettings) -> str:
        """Why a run with these settings is over here; empty if it is not."""
        if settings.max_steps is not None and self.step >= settings.max_steps:
            return "max_steps"
        if settings.epochs is not None and self.epoch >= settings.epochs:
            return "epochs"
        return "patience" if settings.patience and self.since_best >= settings.patience else ""


class Loop:
    """A run in progress: opened from its directory's last checkpoint, or from new weights."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        rows: np.ndarray,
        validation_rows: np.ndarray,
        world: World,
        directory: RunDirectory,
        say: Say,
    ) -> None:
        """
        Args:
            say: prints a line for the user.
        """
        self.settings, self.world, self.directory = settings, world, directory
        self._store, self._validation_rows = store, validation_rows
        self.num_rows = len(rows)
        self._precision = resolve_precision(settings.training.precision, world.device)
        state = read_state(directory.path)
        self.counters = Counters() if state is None else Counters.from_state(state["counters"])
        self.counters.stopped_by = self.counters.over(settings.training)
        self._class_weights = self._resolve_weights(rows)
        torch.manual_seed(derive_seed(settings.training.seed, "weights"))
        last = directory.path / "last" if state is not None else None
        self.model = self._build(last, state["unmerged"] if state and "unmerged" in state else None, say)
        self.model.to(world.device)
        self._log_offset = 0 if state is None else state["log_offset"]
        assert settings.data.mode != "auto"
        weights = None if self._class_weights is None else torch.from_numpy(self._class_weights)
        self._stepper = Stepper(self.model, settings.training, self._precision, world, weights)
        self._loader = Loader(
            store,
            seed=derive_seed(settings.training.seed, "order"),
            parameters=PlanParameters(
                tokens_per_batch=self.tokens_per_batch,
                batches_per_step=settings.data.batches_per_step,
                mode=settings.data.mode,
            ),
            rows=rows,
            rank=world.rank,
            world_size=world.size,
        )
        if state is not None and not self.counters.stopped_by:
            if "stepper" not in state:
                raise RunError(
                    f"{directory.path} was finished by a version of penstock that kept no optimizer state: it cannot "
                    f"go on; start a new run from its weights with --from {directory.path}"
                )
            self._stepper.load_state_dict(state["stepper"])
            self._loader.load_state_dict(state["loader"])
            if (rule := state.get("dropout_rule", 1)) != DROPOUT_RULE:
                say(
                    f"note: {directory.path} drew its dropout by rule {rule}, this version of penstock draws by rule "
                    f"{DROPOUT_RULE}: the run goes on, but not to the same bits as one that was never interrupted"
                )

    def _build(self, last: Path | None, unmerged: dict[str, Any] | None, say: Say) -> Any:
        """The model: new, from an earlier run's weights, or as the last checkpoint has it.

        Args:
            unmerged: the checkpoint's weights with their adapters apart, if it has any.
        """
        store, settings = self._store, self.settings.model
        if settings.start_from is not None:
            folder = last or Path(settings.start_from)
            names, size = store.label_names, store.vocab_size
            model = start_model(
                settings, folder, label_names=names, vocab_size=size, say=say, multi_label=store.multi_label
            )
        else:
            model = build_model(
                settings,
                vocab_size=store.vocab_size,
                num_labels=len(store.label_names),
                label_names=store.label_names,
                tokenizer=store.tokenizer(),
                multi_label=store.multi_label,
            )
            if last is not None and unmerged is None:
                model.load_state_dict(load_model(last).state_dict())
        if store.seconds is not None:
            check_pair_types(model)
        if unmerged is not None:
            model.load_state_dict(unmerged)
        return model

    def _resolve_weights(self, rows: np.ndarray) -> np.ndarray | None:
        store, weights = self._store, self.settings.training.class_weights
        if not store.multi_label:
            return resolve_class_weights(weights, store.label_names, store.labels[rows])
        counts = counts_of(store.label_offsets, store.label_ids, rows, store.num_labels)
        return resolve_positive_weights(weights, store.label_names, counts, len(rows))

    @property
    def tokens_per_batch(self) -> int:
        return self.settings.data.tokens

    @property
    def precision(self) -> str:
        return self._precision

    def steps_of_an_epoch(self) -> int:
        """As the plan of the present one has it; others differ by a few."""
        return self._loader.plan().num_steps

    def next_learning_rate(self) -> float:
        return self._learning_rate(0)

    def run(self, stop: StopSignal, progress: Mode) -> None:
        """Trains until the settings say that it is over.

        Raises:
            NonFiniteError, DiskError, Interrupted: see `train`.
        """
        if self.counters.stopped_by:
            return
        main = self.world.is_main
        self._log = MetricsLog(self.directory.path / "metrics.jsonl", self._log_offset) if main else None
        self._display = open_display(progress if main else "none")
        self._trackers = open_trackers(self.settings, self.directory.path, self.counters.step) if main else []
        self._flops_per_token, self._peak = training_flops_per_token(self.model), peak_flops(self.world.device)
        try:
            self._loop(stop)
        finally:
            self._display.close()
            if self._log:
                self._log.close()
            for _, close in self._trackers:
                close()

    def _loop(self, stop: StopSignal) -> None:
        counters, training = self.counters, self.settings.training
        interval = _Interval()
        saved = time.monotonic()
        for timed in self._steps():
            step = timed.step
            rate = self._learning_rate(step.num_examples)
            wants_save = time.monotonic() - saved >= _SECONDS_BETWEEN_CHECKPOINTS
            report = self._stepper(
                step.batches,
                step=counters.step + 1,
                num_examples=step.num_examples,
                weight=self._weight(step),
                learning_rate=rate,
                votes=(stop.received is not None, wants_save),
            )
            stopping, save_by_time = report.votes
            self._count(timed, report, interval)

            evaluation_due = _due(counters.step, training.evaluate_every_steps, otherwise=timed.ends_epoch)
            best = bool(evaluation_due or counters.stopped_by) and self._evaluate()
            if counters.step % training.log_every_steps == 0 or counters.stopped_by:
                self._log_step(report, rate, interval)
                interval = _Interval()
            resumable = stopping or _due(counters.step, training.checkpoint_every_steps, otherwise=save_by_time)
            if best or resumable or counters.stopped_by:
                self._checkpoint(best=best, last=resumable or bool(counters.stopped_by))
            if resumable:
                saved = time.monotonic()
            if counters.stopped_by:
                return
            if stopping:
                raise Interrupted(stop.received, self.directory.path, counters.step)

    def _steps(self) -> Iterator["_TimedStep"]:
        """The steps left, epoch after epoch."""
        while True:
            began = time.perf_counter()
            plan = self._loader.plan()
            if self._loader.state_dict()["step"] == 0:
                record = {"split": "plan", "step": self.counters.step, "epoch": plan.epoch, **plan.statistics()}
                self._write(record)
            for step in self._loader:
                yield _TimedStep(step, began, time.perf_counter() - began, self._loader.epoch > step.epoch)
                began = time.perf_counter()

    def _weight(self, step: Step) -> float | None:
        """The sum of the class weights of a step's examples, over all processes; those of labels have none."""
        if self._class_weights is None or self._store.multi_label:
            return None
        plan, width = self._loader.plan(step.epoch), self.settings.data.batches_per_step
        rows = plan.order[plan.bounds[step.index * width] : plan.bounds[(step.index + 1) * width]]
        return float(self._class_weights[self._store.labels[rows]].sum())

    def _count(self, timed: "_TimedStep", report: StepReport, interval: "_Interval") -> None:
        counters, settings = self.counters, self.settings.training
        now = time.perf_counter()
        counters.seconds += now - timed.began
        counters.step += 1
        counters.epoch += timed.ends_epoch
        counters.examples += timed.step.num_examples
        counters.tokens += timed.step.num_tokens
        counters.interval_loss += report.loss_sum
        counters.interval_correct += report.correct
        counters.interval_examples += timed.step.num_examples
        interval.add(timed, now)
        counters.stopped_by = counters.over(settings)

    def _done(self, examples: float, steps: float) -> float:
        """The share of the run that these numbers of examples and steps are, 0 to 1."""
        training = self.settings.training
        by_examples = examples / (training.epochs * self.num_rows) if training.epochs else 0.0
        by_steps = steps / training.max_steps if training.max_steps else 0.0
        return min(max(by_examples, by_steps), 1.0)

    def _learning_rate(self, examples: int) -> float:
        """Taken in the middle of the step, so that neither the first nor the last step has a rate of 0."""
        training = self.settings.training
        done = self._done(self.counters.examples + examples / 2, self.counters.step + 0.5)
        factor = learning_rate_factor(done, warmup=training.warmup, schedule=training.schedule)
        assert training.learning_rate is not None
        return training.learning_rate * factor

    def _evaluate(self) -> bool:
        """Evaluates on the validation rows; whether it is the best so far. Without such rows the last one is."""
        counters, training = self.counters, self.settings.training
        if not len(self._validation_rows):
            counters.best_step = counters.step
            return bool(counters.stopped_by)
        metrics = evaluate(
            self.model,
            self._store,
            rows=self._validation_rows,
            tokens_per_batch=self.tokens_per_batch,
            precision=self._precision,
            world=self.world,
        )
        best = metrics.better_than(counters.best, training.metric)
        if best:
            counters.best, counters.best_step, counters.since_best = metrics, counters.step, 0
        else:
            counters.since_best += 1
            counters.stopped_by = counters.stopped_by or counters.over(training)
        record = {"split": "validation", "step": counters.step, **dataclasses.asdict(metrics), "best": best}
        self._write(record)
        self._display.evaluation(record)
        return best

    def _log_step(self, report: StepReport, rate: float, interval: "_Interval") -> None:
        counters = self.counters
        record = {
            "split": "train",
            "step": counters.step,
            "epoch": round(counters.examples / self.num_rows, 3),
            "loss": counters.interval_loss / counters.interval_examples,
            "accuracy": counters.interval_correct / counters.interval_examples,
            "learning_rate": rate,
            "grad_norm": report.grad_norm,
            "examples": counters.examples,
            "tokens": counters.tokens,
            "seconds": round(counters.seconds, 3),
            **interval.speed(self._flops_per_token, self._peak, self.world.size),
        }
        counters.interval_loss, counters.interval_correct, counters.interval_examples = 0.0, 0, 0
        self._write(record)
        self._display.step(record, self._done(counters.examples, counters.step))

    def _write(self, record: dict[str, Any]) -> None:
        if self._log:
            self._log.write(record)
        for log, _ in self._trackers:
            log(record)

    def _checkpoint(self, *, best: bool, last: bool) -> None:
        """Saves the model as the best, the last, or both; with what the run needs to go on if it is the last."""
        counters = self.counters

        def write() -> None:
            state: dict[str, Any] | None = None
            if last:
                assert self._log is not None
                # a finished run keeps its optimizer too: it may be extended
                state = {
                    "counters": dataclasses.asdict(counters),
                    "log_offset": self._log.sync(),
                    "stepper": self._stepper.state_dict(),
                    "loader": self._loader.state_dict(),
                    "dropout_rule": DROPOUT_RULE,
                }
                if unmerged := getattr(self.model, "unmerged_state", lambda: None)():
                    state["unmerged"] = unmerged
            links = [name for name, wanted in (("best", best), ("last", last)) if wanted]
            write_checkpoint(
                self.directory.path, counters.step, lambda folder: self._save(self.model, folder), state, links
            )

        self.world.on_main(write)

    def save_best(self, model: Any) -> None:
        """Makes another model the run's best one."""
        path, step = self.directory.path, self.counters.best_step
        write_checkpoint(path, step, lambda folder: self._save(model, folder), None, ["best"])

    def fit_temperature(self, model: Any) -> Calibration:
        """By the validation rows."""
        return fit_temperature(*self._validation_logits(model))

    def choose_thresholds(self, model: Any) -> Thresholds:
        """By the validation rows."""
        logits, targets = self._validation_logits(model)
        return choose_thresholds(class_probabilities(model, torch.from_numpy(logits)).numpy(), targets)

    @property
    def chooses_thresholds(self) -> bool:
        return self._store.multi_label and len(self._validation_rows) > 0

    def _validation_logits(self, model: Any) -> tuple[np.ndarray, np.ndarray]:
        """(float32 (rows, num_labels); the rows' labels)"""
        model.to(self.world.device)
        alone = World(0, 1, self.world.device)
        batches = store_batches(self._store, self._validation_rows, self.tokens_per_batch, alone)
        logits, labels = [], []
        for batch, scores in run(model, batches, self._precision):
            logits.append(scores.cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
        model.to("cpu")
        return np.concatenate(logits), np.concatenate(labels)

    def _save(self, model: Any, folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)
        copy_tree(self._store.path / TOKENIZER_NAME, folder)


@dataclass(frozen=True)
class _TimedStep:
    """A step of the plan, when it was asked for, how long we waited for it, whether it is its epoch's last."""

    step: Step
    began: float
    waited: float
    ends_epoch: bool


class _Interval:
    """Speed since the last line of metrics.jsonl: time in steps only, evaluation and checkpoints not counted."""

    def __init__(self) -> None:
        self._examples, self._tokens, self._seconds, self._waited = 0, 0, 0.0, 0.0

    def add(self, timed: _TimedStep, now: float) -> None:
        self._examples += timed.step.num_examples
        self._tokens += timed.step.num_tokens
        self._seconds += now - timed.began
        self._waited += timed.waited

    def speed(self, flops_per_token: float, peak: float | None, devices: int) -> dict[str, float | None]:
        seconds = max(self._seconds, 1e-9)
        tokens_per_second = self._tokens / seconds
        return {
            "tokens_per_second": round(tokens_per_second, 1),
            "examples_per_second": round(self._examples / seconds, 2),
            "data_wait": round(self._waited / seconds, 5),
            "mfu": round(tokens_per_second * flops_per_token / (peak * devices), 5) if peak else None,
        }


def _due(step: int, every: int, *, otherwise: bool) -> bool:
    return step % every == 0 if every else otherwise
