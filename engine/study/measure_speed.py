"""Measures how fast a family trains and predicts here, by a few seconds of both."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.engine.study.estimate import Speed
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.subsets import subset

if TYPE_CHECKING:
    from penstock.engine.data.store import Store

SECONDS = 4.0  # of training, and about as long for all else
_FIRST_STEPS = 2  # slow: memory is taken, kernels are chosen
_MOST_ROWS = 20_000  # that a plan of batches is made of
_FIRST_ROWS = 200  # of a baseline's first fit


def measure_speed(task: TrialTask, train: "Store", test: "Store", threads: int, seconds: float = SECONDS) -> Speed:
    """The family's speed with the task's settings; its seeds and weights are not the trial's.

    A model of the loop takes a few steps, of which the first do not count. A baseline is fitted to subsets that grow
    until one takes too long; what the last two differ by is its cost for each token.

    Args:
        threads: of the numeric libraries.
        seconds: of training. All takes about three times as long.
    """
    import torch

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    of_family = _of_the_loop if FAMILIES[task.trial.family].baseline is None else _of_a_baseline
    with _threads(threads), torch.random.fork_rng(devices):
        return of_family(task, train, test, threads, seconds)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _of_the_loop(task: TrialTask, train: "Store", test: "Store", threads: int, seconds: float) -> Speed:
    import torch

    from penstock.engine.data.loader import Loader
    from penstock.engine.data.plan import PlanParameters
    from penstock.engine.models import build_model
    from penstock.engine.training.distributed import World
    from penstock.engine.training.evaluate import run, store_batches
    from penstock.engine.training.precision import resolve_precision
    from penstock.engine.training.reading import read_alike, read_by
    from penstock.engine.training.settings import Settings
    from penstock.engine.training.step import Stepper

    settings = task.settings
    assert isinstance(settings, Settings)
    assert settings.data.mode != "auto"
    train = read_by(settings, train)
    test = read_alike(train, test)
    world = World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    began = time.perf_counter()
    model: Any = build_model(
        settings.model,
        vocab_size=train.vocab_size,
        num_labels=train.num_labels,
        label_names=train.label_names,
        tokenizer=train.tokenizer(),
    )
    model.to(world.device)
    opening = time.perf_counter() - began
    precision = resolve_precision(settings.training.precision, world.device)
    stepper = Stepper(model, settings.training, precision, world)
    parameters = PlanParameters(
        tokens_per_batch=settings.data.tokens,
        batches_per_step=settings.data.batches_per_step,
        mode=settings.data.mode,
    )
    rows = subset(train.labels, min(task.examples, _MOST_ROWS), task.subset_seed)
    loader = Loader(train, seed=0, parameters=parameters, rows=rows)
    spent, tokens, number = 0.0, 0, 0
    began = time.perf_counter()
    while spent < seconds or number < _FIRST_STEPS + 2:
        for step in loader:
            number += 1
            # a small rate: from random weights, no warm-up before it, nothing diverges
            stepper(step.batches, step=number, num_examples=step.num_examples, learning_rate=1e-6)
            now = time.perf_counter()
            if number <= _FIRST_STEPS:
                began = now
                continue
            spent, tokens = now - began, tokens + step.num_tokens
            if spent >= seconds and number >= _FIRST_STEPS + 2:
                break
    trained = spent / max(tokens, 1)

    def predict(own: np.ndarray) -> None:
        for _, logits in run(model, store_batches(test, own, settings.data.tokens, world), precision):
            logits.cpu()

    predicted = _of_predictions(predict, test, tokens)
    # a trial makes its model, and reads the best one back
    size = sum(parameter.numel() for parameter in model.parameters())
    return Speed(2 * opening, trained, predicted, size)


def _of_a_baseline(task: TrialTask, train: "Store", test: "Store", threads: int, seconds: float) -> Speed:
    from penstock.engine.study.baselines import baseline, import_required
    from penstock.engine.study.baselines.fitting import FitTask
    from penstock.engine.study.baselines.settings import BaselineSettings
    from penstock.engine.training.reading import read_alike, read_by

    settings = task.settings
    assert isinstance(settings, BaselineSettings)
    import_required(settings.name)
    train = read_by(settings, train)
    test = read_alike(train, test)
    size = min(task.trial.size, max(_FIRST_ROWS, 4 * train.num_labels))
    fits: list[tuple[int, float]] = []  # tokens, seconds
    while True:
        rows = subset(train.labels, size, task.subset_seed)
        began = time.perf_counter()
        # without the study's cache: what it holds would cost nothing
        fitted = baseline(settings.name).fit(FitTask(replace(settings, examples=size), train, rows, threads))
        spent = time.perf_counter() - began
        fits.append((int(train.lengths[rows].sum(dtype=np.int64)), spent))
        if size == task.trial.size or spent > seconds or (len(fits) > 1 and 4 * spent > seconds):
            break
        size = min(4 * size, task.trial.size)

    def predict(own: np.ndarray) -> None:
        for _ in fitted.predict(test, own):
            pass

    start, trained = line_through(fits[-2:])
    return Speed(start, trained, _of_predictions(predict, test, fits[-1][0]), fitted.parameters)


def line_through(points: list[tuple[int, float]]) -> tuple[float, float]:
    """(seconds whatever the size, seconds for each token) by one or two measurements (tokens, seconds).

    Noise makes neither of them less than nothing; a token costs a tenth of what it seems to at the last point at least.
    """
    (tokens, spent) = points[-1]
    mean = spent / max(tokens, 1)
    if len(points) == 1 or points[0][0] >= tokens:
        return 0.0, mean
    slope = max((spent - points[0][1]) / (tokens - points[0][0]), mean / 10)
    return max(spent - slope * tokens, 0.0), slope


def _of_predictions(predict: Any, test: "Store", tokens: int) -> float:
    """Seconds for each token.

    Args:
        predict: predicts rows (int64) of `test`. tokens: about as many are predicted.
    """
    mean = test.num_tokens / max(test.num_examples, 1)
    count = int(min(max(tokens / max(mean, 1), 32), test.num_examples))
    # of the whole set, not of its beginning, which may be of one kind
    rows = np.unique(np.linspace(0, test.num_examples - 1, count).astype(np.int64))
    predict(rows[: max(1, len(rows) // 8)])  # the first call is slow
    began = time.perf_counter()
    predict(rows)
    return (time.perf_counter() - began) / max(int(test.lengths[rows].sum(dtype=np.int64)), 1)
