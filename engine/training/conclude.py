"""What follows a run's last step: the best model is calibrated, exported and tested, and the result recorded."""

import dataclasses
from typing import Any

import numpy as np
import torch

from penstock.engine.models import load_model
from penstock.engine.models.build import THRESHOLDS
from penstock.engine.models.start import Say
from penstock.engine.training.calibrate import Calibration, calibrated, fit_temperature
from penstock.engine.training.checkpoint import export_best
from penstock.engine.training.distributed import World
from penstock.engine.training.evaluate import class_probabilities, evaluate, run, store_batches
from penstock.engine.training.loop import Loop
from penstock.engine.training.multi_label import Thresholds, choose_thresholds
from penstock.engine.training.result import TrainResult
from penstock.engine.training.shard import place
from penstock.engine.training.signals import StopSignal


def conclude(loop: Loop, stop: StopSignal, say: Say) -> TrainResult:
    """The best model's files in the run's own folder, the one look at the test set, and run.json.

    Raises:
        Stopped: a signal came; the run goes on with this.
    """
    counters, directory, world = loop.counters, loop.directory, loop.world
    stop.step = counters.step
    calibration = world.on_main(lambda: _calibrate(loop, stop, say)) if loop.settings.training.calibrate else None
    chooses = loop.data.train.multi_label and len(loop.data.validation_rows) > 0 and not loop.settings.pretrains
    thresholds = world.on_main(lambda: _choose_thresholds(loop, stop, say)) if chooses else None
    world.on_main(lambda: export_best(directory.path))
    test = None
    if loop.data.test is not None:
        model = load_model(directory.path)
        place(model, loop.settings.training, world)
        with loop.timers.during("evaluation"):
            test = evaluate(
                model,
                loop.data.test,
                tokens_per_batch=loop.tokens_per_batch,
                precision=loop.precision,
                world=world,
                watch=stop.watch,
            )
    seconds = max(counters.seconds, 1e-9)
    result = TrainResult(
        validation=counters.best,
        test=test,
        best_step=counters.best_step,
        stopped_by=counters.stopped_by,
        steps=counters.step,
        epochs=counters.examples / loop.num_rows,
        examples=counters.examples,
        tokens=counters.tokens,
        seconds=counters.seconds,
        checkpoint_seconds=counters.checkpoint_seconds,
        tokens_per_second=counters.tokens / seconds,
        examples_per_second=counters.examples / seconds,
        parameters=sum(parameter.numel() for parameter in loop.model.parameters()),
        trainable_parameters=sum(parameter.numel() for parameter in loop.model.parameters() if parameter.requires_grad),
        calibration=calibration,
        thresholds=thresholds,
        time={phase: round(spent, 3) for phase, spent in loop.timers.read().items()},
    )
    record = dataclasses.asdict(result)
    if thresholds is None:
        del record["thresholds"]
    world.on_main(lambda: directory.update(status="complete", result=record))
    return result


def _choose_thresholds(loop: Loop, stop: StopSignal, say: Say) -> Thresholds:
    """Adds thresholds to the best model's configuration, unless that was done before."""
    directory = loop.directory
    model: Any = load_model(directory.path / "best")
    if getattr(model.config, THRESHOLDS, None) is not None:
        return Thresholds(**directory.record["thresholds"])
    logits, targets = _validation_logits(loop, model, stop)
    thresholds = choose_thresholds(class_probabilities(model, torch.from_numpy(logits)).numpy(), targets)
    setattr(model.config, THRESHOLDS, list(thresholds.values))
    # noted before the model has them, as in _calibrate
    directory.update(thresholds=thresholds.to_json())
    loop.saver.save_best(model, loop.counters.best_step)
    say(thresholds.describe())
    return thresholds


def _calibrate(loop: Loop, stop: StopSignal, say: Say) -> Calibration:
    """Replaces the best model by the same one with calibrated logits, unless that was done before."""
    directory = loop.directory
    found = calibrated(directory.path / "best", lambda model: fit_temperature(*_validation_logits(loop, model, stop)))
    if found is None:
        return Calibration(**directory.record["calibration"])
    model, calibration = found
    # noted before the model counts as the best one: what is calibrated is never without its record
    directory.update(calibration=dataclasses.asdict(calibration))
    loop.saver.save_best(model, loop.counters.best_step)
    say(calibration.describe(len(loop.data.validation_rows)))
    return calibration


def _validation_logits(loop: Loop, model: Any, stop: StopSignal) -> tuple[np.ndarray, np.ndarray]:
    """(float32 (rows, num_labels); the rows' labels)"""
    model.to(loop.world.device)
    alone = World(0, 1, loop.world.device)
    batches = stop.watch(store_batches(loop.data.train, loop.data.validation_rows, loop.tokens_per_batch, alone), alone)
    logits, labels = [], []
    for batch, scores in run(model, batches, loop.precision):
        logits.append(scores.cpu().numpy())
        labels.append(batch.labels.cpu().numpy())
    model.to("cpu")
    return np.concatenate(logits), np.concatenate(labels)
