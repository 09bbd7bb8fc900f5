"""From settings and a store to a trained model in a run directory."""

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.engine.data.file_systems import file_system_of
from penstock.engine.data.store import Store, check_stores
from penstock.engine.data.verify import check_files
from penstock.engine.errors import ConfigError
from penstock.engine.models.start import Say
from penstock.engine.training.begin import (
    comes_to_the_same,
    extension_line,
    go_on,
    new_settings,
    opening_line,
    precision_of,
    settings_as_begun,
)
from penstock.engine.training.checkpoint import clear_leftovers
from penstock.engine.training.conclude import conclude
from penstock.engine.training.distributed import Stopped, World, answering
from penstock.engine.training.loop import Loop
from penstock.engine.training.precision import tf32, usual_defaults
from penstock.engine.training.progress import Mode
from penstock.engine.training.result import TrainResult, recorded_result
from penstock.engine.training.resume import Confirm, Found, Resume, find_checkpoint, settle_links
from penstock.engine.training.run_data import RunData
from penstock.engine.training.run_directory import RunDirectory
from penstock.engine.training.settings import Settings
from penstock.engine.training.shard import check_can_shard
from penstock.engine.training.signals import StopSignal
from penstock.engine.training.split import check_split
from penstock.engine.training.timers import timers_for
from penstock.engine.training.token_budget import AUTO, with_measured_budget


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
        rows: integers, the training rows; by default all that are not for validation.
        validation_rows: integers, other rows of the same store for validation; by default carved from `rows`.
        test_store: read once, at the end, by the best model.
        device: by default a GPU if there is one. Under torchrun each process has its own.
        progress: "auto", "live" (a terminal), "plain" (lines) or "none".
        resume: "previous": where the last checkpoint is damaged, the one before it is taken.
        confirm: asked whether it may be, instead; it gets the question and returns the answer.

    Raises:
        ConfigError: settings that do not fit each other, the data or the number of processes.
        TypeError, ValueError: a store is none; rows are no numbers of rows, are given twice, or are not in the store.
        ModelError: the model cannot be built for this data.
        RunError: the directory holds something else, or something in it is damaged.
        StoreError: the test store, or the run to start from, has other labels or another tokenizer.
        NonFiniteError: the loss or the gradients are no longer finite; the last checkpoint stands as it was.
        DiskError: a checkpoint cannot be written; the earlier one stands.
        RankError: another process of the run did not answer for `training.rank_timeout`, or is gone.
        Interrupted: SIGTERM, SIGINT or SIGHUP came; the run was checkpointed. (A second one ends the process at once.)
    """
    check_stores(train_store=train_store, test_store=test_store)
    if train_store.max_length != train_store.manifest.max_length:
        raise ConfigError("the training store is cut already: give the whole one, and data.max_length")
    rows, validation_rows = check_split(train_store.num_examples, rows, validation_rows)
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
            settings = world.on_main(lambda: settings_as_begun(directory, asked, train_store, say))
        else:
            settings = world.on_main(lambda: new_settings(asked, train_store, rows, validation_rows))
        world.wait_at_most(settings.training.rank_timeout)
        world.check_divides(settings.data.batches_per_step)
        if settings.training.shard and world.size > 1:
            check_can_shard(asked if not began else settings)
        if settings.model.kind == "bag" and world.size > 1:
            raise ConfigError("model.kind=bag trains in one process: start it without torchrun")
        data = RunData.of(settings, train_store, test_store, rows, validation_rows)
        if not began and asked.data.tokens_per_batch == AUTO:
            measure = partial(with_measured_budget, settings, data, world.device, directory, say)
            settings = world.on_main(measure)
        identity = data.identity(settings)
        if began:
            directory.check_identity(data.own_identity())
            world.on_main(partial(directory.note_places, data.places()))
            if directory.is_complete and comes_to_the_same(directory, settings):
                say(f"{directory.path} is complete: nothing is trained, this is its result; another --out trains again")
                return recorded_result(directory)
        elif resume == "previous":
            say(f"--resume=previous changes nothing: there is no run in {directory.path} yet")
        for store in data.stores:
            world.on_main(partial(check_files, store))
        sealed = directory.is_sealed
        find = partial(find_checkpoint, directory.path, sealed=sealed, resume=resume, confirm=confirm, say=say)
        found = world.on_main(find) if began else None
        precision = world.on_main(lambda: precision_of(directory, settings, world.device, say))
        devices = [world.device] if world.device.type == "cuda" else []
        with (
            _answering(world, settings.training.rank_timeout),
            torch.random.fork_rng(devices),
            usual_defaults(world.device),
            tf32(settings.training.tf32 if devices else None),
            StopSignal(directory.path) as stop,
        ):
            loop = Loop(
                settings,
                data,
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
                config, described, held = settings.to_yaml(), data.description(), data.validation_rows
                create = partial(directory.create, identity, config, described, held, precision=precision)
                directory.record = world.on_main(create)
            say(opening_line(loop))
            say(str(data.reading))
            for line in _notes(settings, data, world):
                say(line)
            if data.train.truncation == "head+tail":
                say(
                    f"note: texts longer than {data.train.max_length:,} tokens keep their beginning and end "
                    "(head+tail), which transformers cannot: where this run is served by other than penstock, they are "
                    "cut behind"
                )
            if changed:
                say(extension_line(loop, changed))
            loop.run(stop, progress)
            try:
                result = conclude(loop, stop, say)
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


def _notes(settings: Settings, data: RunData, world: World) -> Iterator[str]:
    """What a setting does not do here, or does of its own accord, and what the data cannot give."""
    store = data.train
    yield from data.about_test
    if settings.training.tf32 is not None and world.device.type != "cuda":
        yield f"note: training.tf32={str(settings.training.tf32).lower()} changes nothing here: only GPUs have TF32"
    if settings.training.shard and world.size == 1:
        yield "note: training.shard=true changes nothing here: one process has no others to share the model with"
    if settings.data.reader == "auto" and store.reader == "pread":
        kind = file_system_of(store.path)
        yield f"note: {store.path} lies on {kind or 'an unknown file system'}: it is read with pread (data.reader)"


def _go_on(loop: Loop, found: Found | None, identity: dict[str, Any]) -> list[str]:
    """Makes the run that is there one that goes on from the checkpoint; returns the settings that changed."""
    directory = loop.directory
    settle_links(directory.path, found)
    keep = loop.settings.training.keep_checkpoints
    clear_leftovers(directory.path, None if found is None else found.folder, keep)
    if not directory.is_sealed:
        directory.upgrade(precision=loop.precision)
    return go_on(loop, identity)
