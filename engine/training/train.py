"""From settings and a store to a trained model in a run directory."""

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.engine.data.file_systems import file_system_of
from penstock.engine.data.store import Store
from penstock.engine.data.verify import check_files
from penstock.engine.errors import ConfigError, RunError
from penstock.engine.models import load_model
from penstock.engine.models.build import THRESHOLDS
from penstock.engine.models.start import Say
from penstock.engine.training.begin import (
    extension_line,
    go_on,
    new_settings,
    opening_line,
    saved_settings,
    settings_as_begun,
)
from penstock.engine.training.calibrate import Calibration, calibrated
from penstock.engine.training.checkpoint import export_best
from penstock.engine.training.distributed import Stopped, World, answering
from penstock.engine.training.evaluate import evaluate
from penstock.engine.training.graphs import check_graphs
from penstock.engine.training.loop import Loop
from penstock.engine.training.metrics import Metrics
from penstock.engine.training.multi_label import Thresholds, read_metrics
from penstock.engine.training.precision import resolve_precision, tf32
from penstock.engine.training.progress import Mode
from penstock.engine.training.reading import Reading, read_by
from penstock.engine.training.resume import Confirm, Found, Resume, find_checkpoint, settle_links
from penstock.engine.training.run_directory import RunDirectory
from penstock.engine.training.run_record import as_trained
from penstock.engine.training.settings import FREE_KEYS, Settings
from penstock.engine.training.signals import StopSignal
from penstock.engine.training.split import split_rows
from penstock.engine.training.timers import timers_for
from penstock.engine.training.token_budget import AUTO, with_measured_budget
from penstock.engine.training.trained import describe_data


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run; also the entry `result` of run.json.

    Attributes:
        validation: figures of the best model, found at `best_step`; None without a validation split.
        test: figures of the best model on the test store, if one was given.
        stopped_by: "epochs", "max_steps" or "patience".
        seconds: time in training steps, waiting for data included, evaluation and checkpoints not.
        parameters: of the model; trainable_parameters: those that were not frozen.
        checkpoint_seconds: that training stood still for checkpoints, not in `seconds`.
        calibration: the temperature that the best model's logits were divided by, if one was asked for.
        thresholds: of a model for lists of labels, where its validation rows draw the line; `validation` is at 0.5.
        time: seconds of the whole run by phase: data, forward, backward, optimizer, communication, checkpoint,
            evaluation, other. They add up to the time from its beginning to its end; of a run that was interrupted,
            without what was done after the checkpoint that it went on from. None of an earlier version's run.
    """

    validation: Metrics | None
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


def train(
    settings: Settings,
    train_store: Store,
    out_dir: Path | str,
    *,
    rows: np.ndarray | None = None,
    validation_rows: np.ndarray | None = None,
    test_store: Store | None = None,
    device: torch.device | str | None = None,
    progress: Mode = "auto",
    resume: Resume = "last",
    confirm: Confirm | None = None,
) -> TrainResult:
    """Trains a model on a store's rows, or resumes where an earlier call stopped.

    The run's directory then loads as the best model by the validation split. The caller's random state is left alone.

    Example:
        >>> from penstock.engine import Store, load_settings, train
        >>> settings = load_settings(None, ["model.hidden_size=4", "training.epochs=1"])
        >>> train(settings, Store.open("train"), "new-run", progress="none").epochs
        1.0

    Args:
        out_dir: the run's directory. If it holds the same run, that is resumed or, if complete, its result returned;
            with more epochs, steps or patience than it had, it resumes from its last checkpoint.
        rows: int64, the training rows; all by default.
        validation_rows: int64, rows of the same store for validation; by default carved from `rows`.
        test_store: read once, at the end, by the best model.
        device: by default a GPU if there is one. Under torchrun each process has its own.
        progress: "auto", "live" (a terminal), "plain" (lines) or "none".
        resume: "previous": where the last checkpoint is damaged, the one before it is taken.
        confirm: asked whether it may be, instead; it gets the question and returns the answer.

    Raises:
        ConfigError: settings that do not fit each other, the data or the number of processes.
        ModelError: the model cannot be built for this data.
        RunError: the directory holds something else, or something in it is damaged.
        StoreError: the test store, or the run to start from, has other labels or another tokenizer.
        NonFiniteError: the loss or the gradients are no longer finite; the last checkpoint stands as it was.
        DiskError: a checkpoint cannot be written; the earlier one stands.
        RankError: another process of the run did not answer for `training.rank_timeout`, or is gone.
        Interrupted: SIGTERM, SIGINT or SIGHUP came; the run was checkpointed.
    """
    if train_store.max_length != train_store.manifest.max_length:
        raise ConfigError("the training store is cut already: give the whole one, and data.max_length")
    timeout = settings.training.rank_timeout
    world = World.join(device, timeout)
    timers = timers_for(world.device)
    say = _speaker(progress, world)
    with _answering(world, timeout), RunDirectory(Path(out_dir)) as directory:
        # rank 0 alone reads, creates and locks it
        directory.record = world.on_main(directory.open)
        began = world.on_main(lambda: directory.has_checkpoint)
        asked = settings
        if began:
            settings = world.on_main(lambda: settings_as_begun(directory, asked, train_store))
        else:
            settings = world.on_main(lambda: new_settings(asked, train_store, rows, validation_rows))
        world.wait_at_most(settings.training.rank_timeout)
        train_store = read_by(settings, train_store.read_with(settings.data.reader))
        if test_store is not None:
            test_store = test_store.read_with(settings.data.reader)
        world.check_divides(settings.data.batches_per_step)
        if settings.model.kind == "bag" and world.size > 1:
            raise ConfigError("model.kind=bag trains in one process: start it without torchrun")
        rows, validation_rows = split_rows(settings, train_store, rows, validation_rows)
        if not began and asked.data.tokens_per_batch == AUTO:
            measure = partial(with_measured_budget, settings, train_store, rows, validation_rows, world.device)
            settings = world.on_main(lambda: measure(directory, say))
        identity = _identity(settings, train_store, rows, validation_rows, test_store)
        data = describe_data(train_store)
        reading = Reading.of(train_store, np.concatenate([rows, validation_rows]))
        data["reads"] = reading.to_json()
        if test_store is not None:
            test_store = as_trained(test_store, data)
            data["test"] = str(test_store.path.resolve())
        if began:
            directory.check_identity({key: identity[key] for key in identity if key not in settings.flat()})
            if directory.is_complete and _is_same(settings, saved_settings(directory)):
                return _recorded_result(directory)
        elif resume == "previous":
            say(f"--resume=previous changes nothing: there is no run in {directory.path} yet")
        for store in (train_store, test_store):
            if store is not None:
                world.on_main(partial(check_files, store))
        found = world.on_main(lambda: _find(directory, resume, confirm, say) if began else None)
        precision = world.on_main(lambda: _precision(directory, settings, world, say))
        devices = [world.device] if world.device.type == "cuda" else []
        with (
            _answering(world, settings.training.rank_timeout),
            torch.random.fork_rng(devices),
            tf32(settings.training.tf32 if devices else None),
            StopSignal(directory.path) as stop,
        ):
            loop = Loop(
                settings,
                train_store,
                rows,
                validation_rows,
                world,
                directory,
                say,
                found=found,
                precision=precision,
                timers=timers,
            )
            changed = []
            if began:
                changed = world.on_main(lambda: _go_on(loop, found, identity))
            else:
                directory.record = world.on_main(
                    lambda: directory.create(identity, settings.to_yaml(), data, precision=precision)
                )
            say(opening_line(loop, rows, validation_rows, train_store))
            say(str(reading))
            for line in _notes(settings, train_store, world):
                say(line)
            if train_store.truncation == "head+tail":
                say(
                    f"note: texts longer than {train_store.max_length:,} tokens keep their beginning and end "
                    "(head+tail), which transformers cannot: where this run is served by other than penstock, they are "
                    "cut behind"
                )
            if changed:
                say(extension_line(loop, changed))
            loop.run(stop, progress)
            try:
                result = _conclude(loop, test_store, stop, say)
            except Stopped:
                raise stop.interrupted() from None
            if world.any(stop.received is not None):
                raise stop.interrupted()
            return result


def _speaker(progress: Mode, world: World) -> Say:
    """Prints lines for the user on stderr, once whatever the number of processes."""

    def say(line: str) -> None:
        if progress != "none" and world.is_main:
            print(line, file=sys.stderr, flush=True)

    return say


def _answering(world: World, timeout: float) -> contextlib.AbstractContextManager[None]:
    return answering(timeout) if world.size > 1 else contextlib.nullcontext()


def _notes(settings: Settings, store: Store, world: World) -> Iterator[str]:
    """What a setting does not do here, or does of its own accord."""
    if settings.training.tf32 is not None and world.device.type != "cuda":
        yield f"note: training.tf32={str(settings.training.tf32).lower()} changes nothing here: only GPUs have TF32"
    if settings.data.reader == "auto" and store.reader == "pread":
        kind = file_system_of(store.path)
        yield f"note: {store.path} lies on {kind or 'an unknown file system'}: it is read with pread (data.reader)"


def _find(directory: RunDirectory, resume: Resume, confirm: Confirm | None, say: Say) -> Found | None:
    found = find_checkpoint(directory.path, sealed=directory.is_sealed, resume=resume, confirm=confirm, say=say)
    if found is None:
        say(f"{directory.path} was stopped before its first checkpoint to resume from: it begins again")
    return found


def _precision(directory: RunDirectory, settings: Settings, world: World, say: Say) -> str:
    """What "auto" was where the run began, whatever it would be here."""
    check_graphs(settings.training, world)
    asked = settings.training.precision
    there = directory.record.get("precision") if asked == "auto" else None
    if there not in ("fp32", "bf16", "fp16"):
        return resolve_precision(asked, world.device)
    here = resolve_precision("auto", world.device)
    if there != here:
        if (there, world.device.type) == ("fp16", "cpu"):
            raise ConfigError(
                f"{directory.path} was begun on a GPU, where training.precision=auto is fp16: a CPU cannot go on with "
                "that"
            )
        say(f"training.precision=auto was {there} where the run began and stays so; here it would be {here}")
    return there


def _go_on(loop: Loop, found: Found | None, identity: dict[str, Any]) -> list[str]:
    """Makes the run that is there one that goes on from the checkpoint; returns the settings that changed."""
    directory = loop.directory
    settle_links(directory.path, found)
    if not directory.is_sealed:
        directory.upgrade(precision=loop.precision)
    return go_on(loop, identity)


def _recorded_result(directory: RunDirectory) -> TrainResult:
    try:
        return TrainResult.from_json(directory.record["result"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RunError(f"{directory.path / 'run.json'} is damaged: its result cannot be read ({error})") from None


def _is_same(settings: Settings, saved: Settings) -> bool:
    """Whether two runs with these settings come to the same result."""
    here, there = settings.flat(), saved.flat()
    return all(here[key] == there[key] for key in here if key not in FREE_KEYS)


def _identity(
    settings: Settings, store: Store, rows: np.ndarray, validation_rows: np.ndarray, test_store: Store | None
) -> dict[str, Any]:
    """All that decides a run's result."""
    return {
        **{key: value for key, value in settings.flat().items() if key not in FREE_KEYS},
        "training data": store.fingerprint,
        "training rows": _digest(rows),
        "validation rows": _digest(validation_rows),
        "test data": test_store.fingerprint if test_store else None,
    }


def _digest(rows: np.ndarray) -> str:
    return f"{len(rows)} rows, {hashlib.blake2b(rows.astype(np.int64).tobytes(), digest_size=8).hexdigest()}"


def _conclude(loop: Loop, test_store: Store | None, stop: StopSignal, say: Say) -> TrainResult:
    """The best model's files in the run's own folder, the one look at the test set, and run.json.

    Raises:
        Stopped: a signal came; the run goes on with this.
    """
    counters, directory, world = loop.counters, loop.directory, loop.world
    stop.step = counters.step
    calibration = world.on_main(lambda: _calibrate(loop, stop, say)) if loop.settings.training.calibrate else None
    thresholds = world.on_main(lambda: _choose_thresholds(loop, stop, say)) if loop.chooses_thresholds else None
    world.on_main(lambda: export_best(directory.path))
    test = None
    if test_store is not None:
        model = load_model(directory.path).to(world.device)  # type: ignore[arg-type]
        with loop.timers.during("evaluation"):
            test = evaluate(
                model,
                test_store,
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
    thresholds = loop.choose_thresholds(model, stop)
    setattr(model.config, THRESHOLDS, list(thresholds.values))
    # noted before the model has them, as in _calibrate
    directory.update(thresholds=thresholds.to_json())
    loop.save_best(model)
    say(thresholds.describe())
    return thresholds


def _calibrate(loop: Loop, stop: StopSignal, say: Say) -> Calibration:
    """Replaces the best model by the same one with calibrated logits, unless that was done before."""
    directory = loop.directory
    found = calibrated(directory.path / "best", lambda model: loop.fit_temperature(model, stop))
    if found is None:
        return Calibration(**directory.record["calibration"])
    model, calibration = found
    # noted before the model counts as the best one: what is calibrated is never without its record
    directory.update(calibration=dataclasses.asdict(calibration))
    loop.save_best(model)
    say(
        f"calibrated: temperature {calibration.temperature:.3f}; on the validation rows the expected calibration error "
        f"goes from {calibration.error_before:.4f} to {calibration.error_after:.4f}, "
        f"the loss from {calibration.loss_before:.4f} to {calibration.loss_after:.4f}"
    )
    return calibration
