"""The training loop, one for every model."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.engine.data.label_lists import counts_of
from penstock.engine.data.loader import Loader, Step
from penstock.engine.data.manifest import TOKENIZER_NAME
from penstock.engine.data.plan import Plan, PlanParameters
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizers import save_tokenizer
from penstock.engine.errors import RunError
from penstock.engine.files import CommittedFile
from penstock.engine.models import build_model, load_model
from penstock.engine.models.build import check_pair_types
from penstock.engine.models.loading import quiet
from penstock.engine.models.start import Say, start_model
from penstock.engine.models.tensor_file import own_tensor_files
from penstock.engine.training.calibrate import Calibration, fit_temperature
from penstock.engine.training.checkpoint import STATE_NAME, read_state, write_checkpoint
from penstock.engine.training.class_weights import resolve_class_weights, resolve_positive_weights
from penstock.engine.training.distributed import Stopped, World
from penstock.engine.training.evaluate import class_probabilities, evaluate, run, store_batches
from penstock.engine.training.flops import peak_flops, training_flops_per_token
from penstock.engine.training.metrics import Metrics
from penstock.engine.training.multi_label import Thresholds, choose_thresholds, read_metrics
from penstock.engine.training.optimizer import learning_rate_factor
from penstock.engine.training.progress import Mode, open_display
from penstock.engine.training.resume import Found
from penstock.engine.training.run_directory import METRICS_NAME, MetricsLog, RunDirectory
from penstock.engine.training.settings import Settings, TrainingSettings
from penstock.engine.training.signals import Interrupted, StopSignal
from penstock.engine.training.state import (
    StateError,
    check_counters,
    check_stored,
    check_weights,
    checked_loader_state,
)
from penstock.engine.training.step import Stepper, StepReport, derive_seed
from penstock.engine.training.timers import Timers, read_times, timers_for
from penstock.engine.training.trackers import open_trackers
from penstock.engine.training.writer import HostCopy, Writer
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
        checkpoint_seconds: that training stood still for checkpoints.
        interval_*: of the steps since the last line of metrics.jsonl.
        unfinished: a signal came while the model was evaluated after the last step: what else that step has to log. The
            run goes on with that evaluation.
        time: seconds of all that the run did, by phase, see `timers`.
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
        *,
        found: Found | None,
        precision: str,
        timers: Timers | None = None,
    ) -> None:
        """
        Args:
            say: prints a line for the user.
            found: the checkpoint to go on from; None for new weights.
            precision: "fp32", "bf16" or "fp16".
            timers: those of the whole run; by default they begin here.

        Raises:
            RunError: the checkpoint is not of this model.
        """
        self.timers = timers or timers_for(world.device)
        self.settings, self.world, self.directory = settings, world, directory
        self._store, self._validation_rows = store, validation_rows
        self.num_rows = len(rows)
        self._precision = precision
        state = None if found is None else read_state(directory.path, found.folder)
        with _as_run_error(found):
            self.counters = Counters() if state is None else Counters.from_state(state.get("counters"))
        self.timers.go_on_from(self.counters.time or {})
        self._tokenizer = self._read_tokenizer(found)
        self._copy, self._writer = HostCopy(), Writer()
        self.counters.stopped_by = self.counters.over(settings.training)
        self._class_weights = self._resolve_weights(rows)
        torch.manual_seed(derive_seed(settings.training.seed, "weights"))
        with _as_run_error(found):
            last = None if found is None else found.folder
            self.model = self._build(last, state["unmerged"] if state and "unmerged" in state else None, say)
        self.model.to(world.device)
        self._log_offset = 0 if found is None else found.log_size
        weights = None if self._class_weights is None else torch.from_numpy(self._class_weights)
        self._stepper = Stepper(self.model, settings.training, self._precision, world, weights, self.timers)
        self._rows = rows
        self.plan_with(settings.data.tokens)
        if state is not None and not self.is_over:
            if "stepper" not in state:
                raise RunError(
                    f"{directory.path} was finished by a version of penstock that kept no optimizer state: it cannot "
                    f"go on; start a new run from its weights with --from {directory.path}"
                )
            with _as_run_error(found):
                assert found is not None
                self._stepper.load_state_dict(state["stepper"], found.folder / STATE_NAME)
                self._loader.load_state_dict(checked_loader_state(state.get("loader"), self.counters))
                if (step := state["loader"]["step"]) > (steps := self._loader.plan().num_steps):
                    raise StateError(f"its loader stands at step {step:,} of an epoch of {steps:,}")
            rule = state.get("dropout_rule", 1)
            if settings.model.kind != "bag" and rule != DROPOUT_RULE:
                say(
                    f"note: {directory.path} drew its dropout by rule {rule}, this version of penstock "
                    f"draws by rule {DROPOUT_RULE}: the run goes on, but not to the same bits as one that was never "
                    "interrupted"
                )

    def plan_with(self, tokens_per_batch: int) -> None:
        """Begins from the first step, with batches of this many tokens."""
        data = self.settings.data
        assert data.mode != "auto"
        self._loader = Loader(
            self._store,
            seed=derive_seed(self.settings.training.seed, "order"),
            parameters=PlanParameters(
                tokens_per_batch=tokens_per_batch, batches_per_step=data.batches_per_step, mode=data.mode
            ),
            rows=self._rows,
            rank=self.world.rank,
            world_size=self.world.size,
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
                weights = load_model(last).state_dict()
                check_weights(weights, model.state_dict())
                model.load_state_dict(weights)
        if store.seconds is not None:
            check_pair_types(model)
        if unmerged is not None:
            check_weights(unmerged, model.state_dict())
            model.load_state_dict(unmerged)
        if last is not None:
            check_stored(last, model.saved_state(), store.label_names)
        return model

    def _read_tokenizer(self, found: Found | None) -> dict[str, bytes]:
        """{name: content} of the tokenizer's files, once: the store need not be there to the end.

        A run that goes on has those that it began with.
        """
        store, manifest = self._store, self._store.manifest
        names = store.path / TOKENIZER_NAME
        begun = found is not None and found.sealed
        folder = found.folder if found is not None and begun else names
        try:
            files = {file.name: (folder / file.name).read_bytes() for file in sorted(names.iterdir()) if file.is_file()}
        except OSError as error:
            raise RunError(f"the tokenizer in {folder} cannot be read: {error.strerror} ({error.filename})") from None
        if not begun and (store.max_length, store.truncation) != (manifest.max_length, manifest.truncation):
            # whoever serves the model without penstock cuts texts as it was trained
            files |= save_tokenizer(store.tokenizer(), store.max_length, store.truncation)
        return files

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

    @property
    def plan(self) -> Plan:
        """The present epoch's."""
        return self._loader.plan()

    def rehearse_step(self, index: int) -> None:
        """Takes a step of the first epoch at a learning rate of 0 and counts nothing.

        Raises:
            OutOfMemoryError, NonFiniteError: as a step of the run would.
        """
        self._loader.seek(0, index)
        step = next(iter(self._loader))
        weight = self._weight(step)
        self._stepper(step.batches, step=1, num_examples=step.num_examples, weight=weight, learning_rate=0.0)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)

    def rehearse_checkpoint(self) -> None:
        """Makes the copy of all tensors that is made for a checkpoint, and keeps it as a run does."""
        if self.world.is_main:
            self._copy.of({"model": self.model.saved_state(), "state": {"stepper": self._stepper.state_dict()}})

    def steps_of_an_epoch(self) -> int:
        """As the plan of the present one has it; others differ by a few."""
        return self._loader.plan().num_steps

    @property
    def is_over(self) -> bool:
        """Nothing is left to train or evaluate."""
        return bool(self.counters.stopped_by) and self.counters.unfinished is None

    def next_learning_rate(self) -> float:
        return self._learning_rate(0)

    def run(self, stop: StopSignal, progress: Mode) -> None:
        """Trains until the settings say that it is over.

        Raises:
            NonFiniteError, DiskError, Interrupted: see `train`.
        """
        if self.is_over:
            return
        self._stop = stop
        main = self.world.is_main
        self._log = MetricsLog(self.directory.path / METRICS_NAME, self._log_offset) if main else None
        self._display = open_display(progress if main else "none")
        self._trackers = open_trackers(self.settings, self.directory.path, self.counters.step) if main else []
        self._flops_per_token = training_flops_per_token(self.model)
        self._peak = peak_flops(self.world.device, self._precision) if main else None
        try:
            self._loop(stop)
        finally:
            self._display.close()
            self._writer.close()
            if self._log:
                self._log.close()
            for _, close in self._trackers:
                close()

    def _loop(self, stop: StopSignal) -> None:
        counters, training = self.counters, self.settings.training
        interval = _Interval()
        if (left := counters.unfinished) is not None:
            counters.unfinished = None
            stop.step = counters.step
            report = StepReport(loss_sum=0.0, correct=0, grad_norm=left["grad_norm"], votes=())
            self._finish_step(report, left["learning_rate"], interval, evaluation_due=True, save=False)
            interval = _Interval()
            if counters.stopped_by:
                self._wait_for_writer()
                return
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
                votes=(stop.received is not None, wants_save, self._writer.has_failed),
            )
            stopping, save_by_time, has_failed = report.votes
            if has_failed:
                self._wait_for_writer()
            self._count(timed, report, interval)

            stop.step = counters.step
            evaluation_due = _due(counters.step, training.evaluate_every_steps, otherwise=timed.ends_epoch)
            resumable = stopping or _due(counters.step, training.checkpoint_every_steps, otherwise=save_by_time)
            if self._finish_step(report, rate, interval, evaluation_due=evaluation_due, save=resumable):
                interval = _Interval()
            if resumable:
                saved = time.monotonic()
            if counters.stopped_by or stopping:
                self._wait_for_writer()
            if counters.stopped_by:
                return
            if stopping:
                raise Interrupted(stop.received, self.directory.path, counters.step)

    def _finish_step(
        self, report: StepReport, rate: float, interval: "_Interval", *, evaluation_due: bool, save: bool
    ) -> bool:
        """What follows a step: evaluation, log and checkpoint. Returns whether a line of the log was written.

        Raises:
            Interrupted: a signal ended the evaluation; the checkpoint says that it is still to be made.
        """
        counters, best = self.counters, False
        try:
            if evaluation_due or counters.stopped_by:
                best = self._evaluate()
        except Stopped:
            counters.unfinished = {"grad_norm": float(report.grad_norm), "learning_rate": rate}
            self._checkpoint(best=False, last=True)
            self._wait_for_writer()
            raise Interrupted(self._stop.received, self.directory.path, counters.step) from None
        logs = counters.step % self.settings.training.log_every_steps == 0 or bool(counters.stopped_by)
        if logs:
            self._log_step(report, rate, interval)
        if best or save or counters.stopped_by:
            self._checkpoint(best=best, last=save or bool(counters.stopped_by))
        return logs

    def _steps(self) -> Iterator["_TimedStep"]:
        """The steps left, epoch after epoch."""
        while True:
            began = time.perf_counter()
            before = self.timers.to("data")
            plan = self._loader.plan()
            if self._loader.state_dict()["step"] == 0:
                record = {"split": "plan", "step": self.counters.step, "epoch": plan.epoch, **plan.statistics()}
                self._write(record)
            for step in self._loader:
                self.timers.to(before)
                yield _TimedStep(step, began, time.perf_counter() - began, self._loader.epoch > step.epoch)
                began = time.perf_counter()
                self.timers.to("data")
            self.timers.to(before)

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
        with self.timers.during("evaluation"):
            metrics = evaluate(
                self.model,
                self._store,
                rows=self._validation_rows,
                tokens_per_batch=self.tokens_per_batch,
                precision=self._precision,
                world=self.world,
                watch=self._stop.watch,
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
            "time": {phase: round(seconds, 5) for phase, seconds in self.timers.lap().items()},
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
        """Saves the model as the best, the last, or both; with what the run needs to go on if it is the last.

        Training waits while it is copied, and for the checkpoint before it if that is still being written.
        """
        with self.timers.during("checkpoint"):
            self.world.on_main(lambda: self._hand_over(best=best, last=last))

    def _wait_for_writer(self) -> None:
        """Until the checkpoint under way is written, in all processes."""
        with self.timers.during("checkpoint"):
            self.world.on_main(self._writer.wait)

    def _hand_over(self, *, best: bool, last: bool) -> None:
        assert self._log is not None
        began, counters, log = time.perf_counter(), self.counters, self._log
        self._writer.wait()
        tensors: dict[str, Any] = {"model": self.model.saved_state()}
        if last:
            # a finished run keeps its optimizer too: it may be extended
            tensors["state"] = {"stepper": self._stepper.state_dict()}
            if unmerged := getattr(self.model, "unmerged_state", lambda: None)():
                tensors["state"]["unmerged"] = unmerged
        copy = self._copy.of(tensors)
        stood_still = time.perf_counter() - began
        counters.checkpoint_seconds += stood_still
        self._write({"split": "checkpoint", "step": counters.step, "seconds": round(stood_still, 4)})
        state: dict[str, Any] | None = None
        if last:
            counters.time = self.timers.read()
            state = {"counters": dataclasses.asdict(counters), "loader": self._loader.state_dict(), **copy["state"]}
            state |= {"log_offset": log.mark()[0], "dropout_rule": DROPOUT_RULE}
        step, mark = counters.step, log.mark()
        links = [name for name, wanted in (("best", best), ("last", last)) if wanted]

        def write() -> None:
            log.sync()
            write_checkpoint(
                self.directory.path,
                step,
                lambda folder: self._save(self.model, folder, copy["model"]),
                state,
                links,
                keep=self.settings.training.keep_checkpoints,
                log=list(mark),
            )

        self._writer.start(write)

    def save_best(self, model: Any) -> None:
        """Makes another model the run's best one."""
        write_checkpoint(
            self.directory.path,
            self.counters.best_step,
            lambda folder: self._save(model, folder, model.saved_state()),
            None,
            ["best"],
            keep=self.settings.training.keep_checkpoints,
        )

    def fit_temperature(self, model: Any, stop: StopSignal) -> Calibration:
        """By the validation rows."""
        return fit_temperature(*self._validation_logits(model, stop))

    def choose_thresholds(self, model: Any, stop: StopSignal) -> Thresholds:
        """By the validation rows."""
        logits, targets = self._validation_logits(model, stop)
        return choose_thresholds(class_probabilities(model, torch.from_numpy(logits)).numpy(), targets)

    @property
    def chooses_thresholds(self) -> bool:
        return self._store.multi_label and len(self._validation_rows) > 0

    def _validation_logits(self, model: Any, stop: StopSignal) -> tuple[np.ndarray, np.ndarray]:
        """(float32 (rows, num_labels); the rows' labels)"""
        model.to(self.world.device)
        alone = World(0, 1, self.world.device)
        batches = stop.watch(store_batches(self._store, self._validation_rows, self.tokens_per_batch, alone), alone)
        logits, labels = [], []
        for batch, scores in run(model, batches, self._precision):
            logits.append(scores.cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
        model.to("cpu")
        return np.concatenate(logits), np.concatenate(labels)

    def _save(self, model: Any, folder: Path, weights: dict[str, Any]) -> Mapping[str, CommittedFile]:
        with quiet(), own_tensor_files() as written:
            model.save_pretrained(folder, state_dict=weights)
        for name, content in self._tokenizer.items():
            (folder / name).write_bytes(content)
        return written


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


@contextlib.contextmanager
def _as_run_error(found: Found | None) -> Iterator[None]:
    """What does not fit in a checkpoint, in one line that names it."""
    try:
        yield
    except StateError as error:
        assert found is not None
        raise RunError(
            f"{found.folder} is no checkpoint of this run: {error}; put it back from a copy, or train into "
            "another --out"
        ) from error


def _due(step: int, every: int, *, otherwise: bool) -> bool:
    return step % every == 0 if every else otherwise
