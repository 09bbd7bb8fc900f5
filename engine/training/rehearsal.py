"""What a run will need, tried out on its heaviest steps: memory and time. Nothing of it is written anywhere."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from penstock.engine.data.plan import Plan
from penstock.engine.data.store import Store
from penstock.engine.training.evaluate import evaluation_loader, run
from penstock.engine.training.loop import Loop
from penstock.engine.training.memory import memory_limit, peak_memory, reset_peak_memory, return_freed_memory
from penstock.engine.training.pretraining import outputs

_TYPICAL_STEPS = 6  # timed for the epoch's time, from all over it


@dataclass(frozen=True)
class Heaviest:
    """The batch of an epoch with the most tokens: texts, tokens, the greatest length."""

    texts: int
    tokens: int
    longest: int

    def __str__(self) -> str:
        return f"{self.texts:,} texts with {self.tokens:,} tokens, the longest of {self.longest:,}"


@dataclass(frozen=True)
class Rehearsal:
    """What was measured.

    Attributes:
        heaviest: of the batches that are trained on.
        peak: bytes that the process held at most, in steps, evaluations and with the copy that a checkpoint makes; on a
            GPU, of its memory. None where the system does not tell.
        limit: bytes that it may hold; None where the system does not tell.
        worst_seconds: of the slowest step that was taken, the heaviest ones among them.
        seconds: of a step in the mean over the epoch. steps: of an epoch.
        validation, test: of the evaluation of those rows; None where there are none.
    """

    heaviest: Heaviest
    peak: int | None
    limit: int | None
    worst_seconds: float
    seconds: float
    steps: int
    validation: "EvaluationTime | None" = None
    test: "EvaluationTime | None" = None

    @property
    def fits(self) -> bool:
        return self.peak is None or self.limit is None or self.peak <= self.limit

    def lines(self, loop: Loop) -> Iterator[str]:
        """For the user."""
        yield f"dry run: nothing is written; the heaviest batch has {self.heaviest}"
        if self.peak is None:
            yield "peak memory: this system does not tell"
        else:
            room = "" if self.limit is None else f" of {gib(self.limit)} that there are"
            yield f"peak memory: {gib(self.peak)}{room} ({_where(loop.world.device)})"
        if not self.fits:
            tokens = loop.tokens_per_batch
            yield (
                f"that is more than there is: set data.tokens_per_batch below {tokens:,} (data.batches_per_step=2 with "
                "half of it makes the same steps)"
            )
        epoch_hours = self.seconds * self.steps / 3600
        yield (
            f"time: {_seconds(self.seconds)} a step ({_seconds(self.worst_seconds)} the slowest tried), "
            f"{self.steps:,} steps and about {_hours(epoch_hours)} an epoch; {self._evaluations()}checkpoints not "
            "counted"
        )
        steps = self._steps_left(loop)
        seconds = steps * self.seconds + (0 if self.test is None else self.test.seconds)
        if self.validation is not None:
            seconds += self._evaluations_left(loop, steps) * self.validation.seconds
        what = "the rest of the run" if loop.counters.step else "the run"
        yield f"{what}: at most {steps:,} steps, about {_hours(seconds / 3600)} with its evaluations"

    def _steps_left(self, loop: Loop) -> int:
        """At most."""
        training, counters, limits = loop.settings.training, loop.counters, []
        if counters.stopped_by:
            return 0
        if training.epochs is not None:
            limits.append(-(-(training.epochs * loop.num_rows - counters.examples) * self.steps // loop.num_rows))
        if training.max_steps is not None:
            limits.append(training.max_steps - counters.step)
        if (most := loop.settings.pretraining.tokens) is not None:
            limits.append(-(-(most - counters.tokens) * self.steps // int(loop.plan.tokens.sum())))
        return min(limits)

    def _evaluations_left(self, loop: Loop, steps: int) -> int:
        """Args: steps: that are left."""
        counters, every = loop.counters, loop.settings.training.evaluate_every_steps
        # epochs differ by a few steps: where they end the examples say
        done = counters.step if every else counters.examples * self.steps // loop.num_rows
        every = every or self.steps
        # after the last step there is always one
        left = (done + steps - 1) // every - done // every + 1 if steps else 0
        return left + (counters.unfinished is not None)

    def _evaluations(self) -> str:
        kinds = (("validation", self.validation, ""), ("test", self.test, ", once at the end"))
        parts = [f"{one.rows:,} {name} rows {_seconds(one.seconds)}{when}" for name, one, when in kinds if one]
        return f"an evaluation of {', of '.join(parts)}; " if parts else ""


@dataclass(frozen=True)
class EvaluationTime:
    """How many rows are evaluated, and the seconds that it takes."""

    rows: int
    seconds: float


def rehearse(loop: Loop) -> Rehearsal:
    """Takes the heaviest steps of the present epoch, and some of its others, with weights that stay as they are; and
    evaluates the heaviest batches of the validation and test rows, and some of the others.

    Args:
        loop: new or just resumed, and of no use afterwards but for this.

    Raises:
        OutOfMemoryError: a batch does not fit.
    """
    device, plan = loop.world.device, loop.plan
    heaviest = heaviest_steps(plan)
    reset_peak(device)
    for index in heaviest:  # the first time, the optimizer makes its state
        loop.rehearse_step(index)
    loop.rehearse_checkpoint()
    worst = max(_timed(lambda: loop.rehearse_step(index)) for index in heaviest)  # noqa: B023 -- called at once
    validation = _evaluation(loop, loop.data.train, loop.data.validation_rows)
    test = None
    if loop.data.test is not None:
        # the best model is read back beside the one that was trained
        best = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
        test = _evaluation(loop, loop.data.test, np.arange(loop.data.test.num_examples))
        del best
    peak = peak_of(device)
    total, slowest = _total_seconds(plan, loop.rehearse_step)
    worst = max(worst, slowest)
    seconds = min(total / plan.num_steps, worst)  # a few steps that happen to be slow for their tokens stand for all
    return Rehearsal(heaviest_batch(plan), peak, limit_of(device), worst, seconds, plan.num_steps, validation, test)


def _evaluation(loop: Loop, store: Store, rows: np.ndarray) -> EvaluationTime | None:
    """The memory of the heaviest batches is met, the time of all of them estimated."""
    if not len(rows):
        return None
    loader = evaluation_loader(store, rows, loop.tokens_per_batch, loop.world)

    def evaluate_batch(index: int) -> None:
        loader.seek(0, index)
        batch = next(iter(loader)).batches[0]
        if loop.settings.pretrains:
            for _, output in outputs(loop.model, [batch], loop.precision):
                output.loss.cpu()
            return
        for _, logits in run(loop.model, [batch], loop.precision):
            logits.cpu()

    for index in heaviest_steps(loader.plan()):
        evaluate_batch(index)
    return EvaluationTime(len(rows), _total_seconds(loader.plan(), evaluate_batch)[0])


def _total_seconds(plan: Plan, take: Callable[[int], None]) -> tuple[float, float]:
    """Seconds of all steps of a plan, by the tokens that some of them from all over it go through in a second; seconds
    of the slowest of these."""
    some = np.linspace(0, plan.num_steps - 1, min(_TYPICAL_STEPS, plan.num_steps)).round().astype(int).tolist()
    spent = [_timed(lambda: take(index)) for index in some]  # noqa: B023 -- called at once
    return int(plan.tokens.sum()) * sum(spent) / max(sum(plan.step_tokens(index) for index in some), 1), max(spent)


def heaviest_steps(plan: Plan) -> list[int]:
    """The steps with the most tokens in a batch, with the greatest sum of squared lengths, and with the longest row."""
    width = plan.parameters.batches_per_step
    return sorted({int(values.argmax()) // width for values in (plan.tokens, plan.squares, plan.longest)})


def heaviest_batch(plan: Plan) -> Heaviest:
    batch = int(plan.tokens.argmax())
    return Heaviest(len(plan.rows(batch)), int(plan.tokens[batch]), int(plan.longest[batch]))


def reset_peak(device: torch.device) -> None:
    """Begins a new peak of the memory that matters on a device."""
    gc.collect()
    return_freed_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak_memory()


def peak_of(device: torch.device) -> int | None:
    """Bytes since `reset_peak`."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_memory()


def limit_of(device: torch.device) -> int | None:
    """Bytes that this process may hold on a device, one of those of its machine that share what is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return memory_limit(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _where(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this process, on the CPU"


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


def _hours(hours: float) -> str:
    return f"{hours:.2g} hours" if hours >= 0.095 else f"{hours * 60:.2g} minutes"
