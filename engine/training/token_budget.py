"""`data.tokens_per_batch=auto`: as many tokens in a batch as memory has room for, measured."""

import time

import torch

from penstock.engine.errors import OutOfMemoryError
from penstock.engine.models.start import Say
from penstock.engine.training.distributed import World
from penstock.engine.training.loop import Loop
from penstock.engine.training.precision import resolve_precision, tf32
from penstock.engine.training.rehearsal import gib, heaviest_steps, limit_of, peak_of, reset_peak
from penstock.engine.training.run_data import RunData
from penstock.engine.training.run_directory import RunDirectory
from penstock.engine.training.settings import Settings

AUTO = "auto"
_SHARE = 0.8  # of the memory there is: other epochs have other batches, and others use the machine
_LEAST_STEPS = 50  # of an epoch: fewer and larger ones teach less
_LONG_ENOUGH = 5.0  # seconds of a step: batches are not made larger than twice that
_ROUND = 64  # tokens


def with_measured_budget(
    settings: Settings,
    data: RunData,
    device: torch.device,
    directory: RunDirectory,
    say: Say,
) -> Settings:
    """The settings with the budget measured, which is the run's from then on.

    Args:
        settings: resolved, with the recipe's batches. The rest as `Loop` has it; nothing is written in `directory`.

    Raises:
        OutOfMemoryError: as `measured_budget`.
    """
    alone, training = World(0, 1, device), settings.training
    devices = [device] if device.type == "cuda" else []
    precision = resolve_precision(training.precision, device)
    with torch.random.fork_rng(devices), tf32(training.tf32 if devices else None):
        loop = Loop(
            settings,
            data,
            alone,
            directory,
            lambda line: None,  # what there is to say of the model is said when the run builds it
            found=None,
            precision=precision,
        )
        budget, words = measured_budget(loop)
    del loop
    reset_peak(device)
    say(f"data.tokens_per_batch=auto: {words}")
    return settings.replace({"data.tokens_per_batch": budget})


def measured_budget(loop: Loop) -> tuple[int, str]:
    """Tries the heaviest steps with more and more tokens in a batch, up to twice as many each time.

    No row is longer than the run's longest, so that memory grows by a straight line with a batch's tokens: twice as
    many never need more than twice the memory, and what lies between two counts that were tried is known.

    Args:
        loop: new, of one process, with batches to begin with; of no use afterwards.

    Returns:
        Tokens of a batch: at least the longest row's, at most what leaves 50 steps in an epoch. What was found, for the
        user.

    Raises:
        OutOfMemoryError: not even a batch of the longest row fits.
    """
    plan, limit = loop.plan, limit_of(loop.world.device)
    if limit is None:
        tokens = loop.tokens_per_batch
        return tokens, f"{tokens:,}, by the recipe, as this system does not tell how much memory there is"
    room = _SHARE * limit
    least = max(int(plan.longest.max()), 1)
    most = max(least, int(plan.tokens.sum()) // (_LEAST_STEPS * plan.parameters.batches_per_step))
    fitting: list[tuple[int, int]] = []  # tokens, bytes
    budget = min(max(least, loop.tokens_per_batch), most)
    while True:
        began = time.perf_counter()
        needed = _needed(loop, budget)
        if needed is None or needed > room:
            if fitting:  # memory is shorter than the system says: what was tried is known to fit
                tokens = fitting[-1][0]
                return tokens, f"{tokens:,}, as {budget:,} did not fit"
            if budget == least:
                raise OutOfMemoryError(
                    f"data.tokens_per_batch=auto: not even a batch of the longest text alone, {least:,} tokens, "
                    f"fits in {_SHARE:.0%} of {gib(limit)}: set data.max_length lower, or train a smaller model"
                )
            budget = max(least, budget // 2)
            continue
        fitting.append((budget, needed))
        larger = min(2 * budget, int(budget * room / needed), most)
        if larger < 1.05 * budget or time.perf_counter() - began > _LONG_ENOUGH:
            break
        if len(fitting) > 1 and _line(fitting, room) < larger:
            break
        budget = larger
    tokens, needed = fitting[-1]
    found = min(_line(fitting, room), 2 * tokens, most)
    found = max(least, found // _ROUND * _ROUND)
    limited = f"more would leave fewer than {_LEAST_STEPS} steps an epoch" if found >= most // _ROUND * _ROUND else ""
    why = limited or f"as {tokens:,} needed {gib(needed)} of {gib(limit)}, of which {_SHARE:.0%} are used"
    return found, f"{found:,}, {why}"


def _needed(loop: Loop, budget: int) -> int | None:
    """Bytes at most, of the heaviest steps with batches of this many tokens; None if memory ran out."""
    device = loop.world.device
    loop.plan_with(budget)
    reset_peak(device)
    try:
        for index in heaviest_steps(loop.plan):
            loop.rehearse_step(index)
        loop.rehearse_checkpoint()
    except OutOfMemoryError:
        return None
    return peak_of(device)


def _line(fitting: list[tuple[int, int]], room: float) -> int:
    """How many tokens fill the room, by the straight line through the last two counts; of one alone, that one."""
    tokens, needed = fitting[-1]
    if len(fitting) < 2:
        return tokens
    before, needed_before = fitting[-2]
    slope = (needed - needed_before) / (tokens - before)
    return tokens + int((room - needed) / slope) if slope > 0 else 2 * tokens
