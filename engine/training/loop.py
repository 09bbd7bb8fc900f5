"""The training loop, one for every model."""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from penstock.engine.data.loader import Loader, Step
from penstock.engine.data.plan import Plan, PlanParameters
from penstock.engine.errors import RunError
from penstock.engine.models.start import Say
from penstock.engine.training.checkpoint import STATE_NAME, read_state
from penstock.engine.training.class_weights import class_weights
from penstock.engine.training.counters import Counters, Interval
from penstock.engine.training.distributed import Stopped, World
from penstock.engine.training.evaluate import evaluate
from penstock.engine.training.flops import peak_flops, training_flops_per_token
from penstock.engine.training.journal import Journal
from penstock.engine.training.optimizer import learning_rate_factor
from penstock.engine.training.pretraining import build_pretraining_run_model, evaluate_pretraining
from penstock.engine.training.progress import Mode
from penstock.engine.training.resume import Found, as_run_error
from penstock.engine.training.run_data import RunData
from penstock.engine.training.run_directory import RunDirectory
from penstock.engine.training.run_model import build_run_model, tokenizer_files
from penstock.engine.training.saver import Saver
from penstock.engine.training.settings import Settings
from penstock.engine.training.shard import is_sharded, place
from penstock.engine.training.signals import Interrupted, StopSignal
from penstock.engine.training.state import StateError, checked_loader_state
from penstock.engine.training.step import Stepper, StepReport, derive_seed
from penstock.engine.training.timers import Timers, timers_for
from penstock.kernels.philox import DROPOUT_RULE

_SECONDS_BETWEEN_CHECKPOINTS = 300.0


class Loop:
    """A run in progress: opened from its directory's last checkpoint, or from new weights."""

    def __init__(
        self,
        settings: Settings,
        data: RunData,
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
        self.settings, self.world, self.directory, self.precision = settings, world, directory, precision
        self.data, store, rows = data, data.train, data.rows
        state = None if found is None else read_state(directory.path, found.folder)
        with as_run_error(found):
            self.counters = Counters() if state is None else Counters.from_state(state.get("counters"))
        self.timers.go_on_from(self.counters.time or {})
        self.saver = Saver(directory.path, tokenizer_files(store, found), settings.training.keep_checkpoints)
        self.counters.stopped_by = self.counters.over(settings)
        weighs = None if settings.pretrains else settings.training.class_weights
        self._class_weights = class_weights(weighs, store, rows)
        torch.manual_seed(derive_seed(settings.training.seed, "weights"))
        with as_run_error(found):
            last, unmerged = None if found is None else found.folder, state and state.get("unmerged")
            if settings.pretrains:
                self.model = build_pretraining_run_model(settings, store, rows, last)
            else:
                self.model = build_run_model(settings.model, store, last, unmerged, say)
        place(self.model, settings.training, world)
        self._log_offset = 0 if found is None else found.log_size
        weights = None if self._class_weights is None else torch.from_numpy(self._class_weights)
        self._stepper = Stepper(
            self.model, settings.training, self.precision, world, weights, self.timers, settings.distillation
        )
        self.plan_with(settings.data.tokens)
        if state is not None and not self.is_over:
            if "stepper" not in state:
                raise RunError(
                    f"{directory.path} was finished by a version of penstock that kept no optimizer state: it cannot "
                    f"go on; start a new run from its weights with --from {directory.path}"
                )
            with as_run_error(found):
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
            self.data.train,
            seed=derive_seed(self.settings.training.seed, "order"),
            parameters=PlanParameters(
                tokens_per_batch=tokens_per_batch, batches_per_step=data.batches_per_step, mode=data.mode
            ),
            rows=self.data.rows,
            rank=self.world.rank,
            world_size=self.world.size,
        )

    @property
    def tokens_per_batch(self) -> int:
        return self.settings.data.tokens

    @property
    def num_rows(self) -> int:
        """Rows that are trained on."""
        return len(self.data.rows)

    @property
    def plan(self) -> Plan:
        """The present epoch's."""
        return self._loader.plan(self.counters.epoch)

    def rehearse_step(self, index: int) -> None:
        """Takes a step of the present epoch at a learning rate of 0 and counts nothing.

        Raises:
            OutOfMemoryError, NonFiniteError: as a step of the run would.
        """
        self._loader.seek(self.counters.epoch, index)
        step = next(iter(self._loader))
        weight = self._weight(step)
        self._stepper(step.batches, step=1, num_examples=step.num_examples, weight=weight, learning_rate=0.0)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)

    def rehearse_checkpoint(self) -> None:
        """Makes the copy of all tensors that is made for a checkpoint, and keeps it as a run does."""
        if self.world.is_main:
            self.saver.copy_of({"model": self.model.saved_state(), "state": {"stepper": self._stepper.state_dict()}})

    def steps_of_an_epoch(self) -> int:
        """As the plan of the present one has it; others differ by a few."""
        return self._loader.plan().num_steps

    @property
    def is_over(self) -> bool:
        """Nothing is left to train or evaluate."""
        return bool(self.counters.stopped_by) and self.counters.unfinished is None

    def next_learning_rate(self) -> float:
        return self._learning_rate(0, 0)

    def run(self, stop: StopSignal, progress: Mode) -> None:
        """Trains until the settings say that it is over.

        Raises:
            NonFiniteError, DiskError, Interrupted: see `train`.
        """
        if self.is_over:
            return
        self._stop = stop
        main = self.world.is_main
        self._journal = Journal(
            self.settings,
            self.directory.path,
            progress,
            step=self.counters.step,
            offset=self._log_offset,
            is_main=main,
        )
        self._flops_per_token = training_flops_per_token(self.model)
        self._peak = peak_flops(self.world.device, self.precision) if main else None
        try:
            self._loop(stop)
        finally:
            self.saver.close()  # what it still writes reads the journal's log
            self._journal.close()

    def _loop(self, stop: StopSignal) -> None:
        counters, training = self.counters, self.settings.training
        interval = Interval()
        if (left := counters.unfinished) is not None:
            counters.unfinished = None
            stop.step = counters.step
            report = StepReport(loss_sum=0.0, correct=0, count=0, grad_norm=left["grad_norm"], votes=())
            self._finish_step(report, left["learning_rate"], interval, evaluation_due=True, save=False)
            interval = Interval()
            if counters.stopped_by:
                self._wait_for_writer()
                return
        saved = time.monotonic()
        for timed in self._steps():
            step = timed.step
            rate = self._learning_rate(step.num_examples, step.num_tokens)
            wants_save = time.monotonic() - saved >= _SECONDS_BETWEEN_CHECKPOINTS
            report = self._stepper(
                step.batches,
                step=counters.step + 1,
                num_examples=step.num_examples,
                weight=self._weight(step),
                learning_rate=rate,
                votes=(stop.received is not None, wants_save, self.saver.has_failed),
            )
            stopping, save_by_time, has_failed = report.votes
            if has_failed:
                self._wait_for_writer()
            self._count(timed, report, interval)

            stop.step = counters.step
            evaluation_due = _due(counters.step, training.evaluate_every_steps, otherwise=timed.ends_epoch)
            resumable = stopping or _due(counters.step, training.checkpoint_every_steps, otherwise=save_by_time)
            if self._finish_step(report, rate, interval, evaluation_due=evaluation_due, save=resumable):
                interval = Interval()
            if resumable:
                saved = time.monotonic()
            if counters.stopped_by or stopping:
                self._wait_for_writer()
            if counters.stopped_by:
                return
            if stopping:
                raise Interrupted(stop.received, self.directory.path, counters.step)

    def _finish_step(
        self, report: StepReport, rate: float, interval: Interval, *, evaluation_due: bool, save: bool
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
                self._journal.write(record)
            for step in self._loader:
                self.timers.to(before)
                yield _TimedStep(step, began, time.perf_counter() - began, self._loader.epoch > step.epoch)
                began = time.perf_counter()
                self.timers.to("data")
            self.timers.to(before)

    def _weight(self, step: Step) -> float | None:
        """The sum of the class weights of a step's examples, over all processes; those of labels have none. In
        pretraining, how many tokens there are to tell on average."""
        if self.settings.pretrains:
            return self.model.expected_count(step.num_tokens)
        if self._class_weights is None or self.data.train.multi_label:
            return None
        plan, width = self._loader.plan(step.epoch), self.settings.data.batches_per_step
        rows = plan.order[plan.bounds[step.index * width] : plan.bounds[(step.index + 1) * width]]
        return float(self._class_weights[self.data.train.labels[rows]].sum())

    def _count(self, timed: "_TimedStep", report: StepReport, interval: Interval) -> None:
        counters = self.counters
        now = time.perf_counter()
        counters.seconds += now - timed.began
        counters.step += 1
        counters.epoch += timed.ends_epoch
        counters.examples += timed.step.num_examples
        counters.tokens += timed.step.num_tokens
        counters.interval_loss += report.loss_sum
        counters.interval_correct += report.correct
        counters.interval_examples += report.count
        interval.add(
            examples=timed.step.num_examples,
            tokens=timed.step.num_tokens,
            seconds=now - timed.began,
            waited=timed.waited,
        )
        counters.stopped_by = counters.over(self.settings)

    def _done(self, examples: float, steps: float, tokens: float) -> float:
        """The share of the run that these numbers of examples, steps and tokens are, 0 to 1."""
        training, limit = self.settings.training, self.settings.pretraining.tokens
        by_examples = examples / (training.epochs * self.num_rows) if training.epochs else 0.0
        by_steps = steps / training.max_steps if training.max_steps else 0.0
        by_tokens = tokens / limit if limit else 0.0
        return min(max(by_examples, by_steps, by_tokens), 1.0)

    def _learning_rate(self, examples: int, tokens: int) -> float:
        """Taken in the middle of the step, so that neither the first nor the last step has a rate of 0."""
        training, counters = self.settings.training, self.counters
        done = self._done(counters.examples + examples / 2, counters.step + 0.5, counters.tokens + tokens / 2)
        factor = learning_rate_factor(done, warmup=training.warmup, schedule=training.schedule)
        assert training.learning_rate is not None
        return training.learning_rate * factor

    def _evaluate(self) -> bool:
        """Evaluates on the validation rows; whether it is the best so far. Without such rows the last one is."""
        counters, training = self.counters, self.settings.training
        if not len(self.data.validation_rows):
            counters.best_step = counters.step
            return bool(counters.stopped_by)
        with self.timers.during("evaluation"):
            self._stepper.settle()
            metrics: Any = (evaluate_pretraining if self.settings.pretrains else evaluate)(
                self.model,
                self.data.train,
                rows=self.data.validation_rows,
                tokens_per_batch=self.tokens_per_batch,
                precision=self.precision,
                world=self.world,
                watch=self._stop.watch,
            )
        best = metrics.better_than(counters.best, training.metric)
        if best:
            counters.best, counters.best_step, counters.since_best = metrics, counters.step, 0
        else:
            counters.since_best += 1
            counters.stopped_by = counters.stopped_by or counters.over(self.settings)
        record = {"split": "validation", "step": counters.step, **dataclasses.asdict(metrics), "best": best}
        self._journal.evaluation(record)
        return best

    def _log_step(self, report: StepReport, rate: float, interval: Interval) -> None:
        counters = self.counters
        record = {
            "split": "train",
            "step": counters.step,
            "epoch": round(counters.examples / self.num_rows, 3),
            "loss": counters.interval_loss / max(counters.interval_examples, 1),
            "accuracy": counters.interval_correct / max(counters.interval_examples, 1),
            "learning_rate": rate,
            "grad_norm": report.grad_norm,
            "examples": counters.examples,
            "tokens": counters.tokens,
            "seconds": round(counters.seconds, 3),
            **interval.speed(self._flops_per_token, self._peak, self.world.size),
            "time": {phase: round(seconds, 5) for phase, seconds in self.timers.lap().items()},
        }
        counters.interval_loss, counters.interval_correct, counters.interval_examples = 0.0, 0, 0
        self._journal.step(record, self._done(counters.examples, counters.step, counters.tokens))

    def _checkpoint(self, *, best: bool, last: bool) -> None:
        """Saves the model as the best, the last, or both; with what the run needs to go on if it is the last.

        Training waits while it is copied, and for the checkpoint before it if that is still being written.
        """
        with self.timers.during("checkpoint"):
            began = time.perf_counter()
            self.world.on_main(self.saver.wait)
            copy = self._copied(last) if is_sharded(self.model) else None
            self.world.on_main(lambda: self._hand_over(copy or self._copied(last), began, best=best, last=last))

    def _wait_for_writer(self) -> None:
        """Until the checkpoint under way is written, in all processes."""
        with self.timers.during("checkpoint"):
            self.world.on_main(self.saver.wait)

    def _copied(self, last: bool) -> dict[str, Any]:
        """What a checkpoint has of tensors; under several processes, of the main one alone."""
        self._stepper.settle()
        tensors: dict[str, Any] = {"model": self.model.saved_state()}
        if last:
            # a finished run keeps its optimizer too: it may be extended
            tensors["state"] = {"stepper": self._stepper.state_dict()}
            if unmerged := getattr(self.model, "unmerged_state", lambda: None)():
                tensors["state"]["unmerged"] = unmerged
        return self.saver.copy_of(tensors, keep=self.world.is_main)

    def _hand_over(self, copy: dict[str, Any], began: float, *, best: bool, last: bool) -> None:
        counters, log = self.counters, self._journal.log
        assert log is not None
        stood_still = time.perf_counter() - began
        counters.checkpoint_seconds += stood_still
        self._journal.write({"split": "checkpoint", "step": counters.step, "seconds": round(stood_still, 4)})
        state: dict[str, Any] | None = None
        if last:
            counters.time = self.timers.read()
            state = {"counters": dataclasses.asdict(counters), "loader": self._loader.state_dict(), **copy["state"]}
            state |= {"log_offset": log.mark()[0], "dropout_rule": DROPOUT_RULE}
        links = [name for name, wanted in (("best", best), ("last", last)) if wanted]
        self.saver.start(self.model, counters.step, copy["model"], state, links, log)


@dataclass(frozen=True)
class _TimedStep:
    """A step of the plan, when it was asked for, how long we waited for it, whether it is its epoch's last."""

    step: Step
    began: float
    waited: float
    ends_epoch: bool


def _due(step: int, every: int, *, otherwise: bool) -> bool:
    return step % every == 0 if every else otherwise
