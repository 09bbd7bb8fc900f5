"""`penstock train --dry-run`: what a run will need, with nothing written."""

from pathlib import Path

import torch

from penstock.engine.data.store import Store
from penstock.engine.data.verify import check_files
from penstock.engine.models.start import Say
from penstock.engine.training.begin import (
    comes_to_the_same,
    extension_line,
    extension_of,
    new_settings,
    opening_line,
    precision_of,
    settings_as_begun,
)
from penstock.engine.training.distributed import World
from penstock.engine.training.loop import Loop
from penstock.engine.training.precision import tf32, usual_defaults
from penstock.engine.training.rehearsal import Rehearsal, rehearse
from penstock.engine.training.resume import find_checkpoint
from penstock.engine.training.run_data import RunData
from penstock.engine.training.run_directory import RunDirectory
from penstock.engine.training.run_record import has_checkpoint, read_record
from penstock.engine.training.settings import Settings
from penstock.engine.training.token_budget import AUTO, with_measured_budget


def dry_run(
    settings: Settings,
    store: Store,
    out_dir: Path | str,
    *,
    test_store: Store | None = None,
    device: torch.device | str | None = None,
    say: Say = lambda line: None,
) -> tuple[Rehearsal | None, list[str]]:
    """Builds the model, takes the heaviest steps of the epoch that comes, evaluates the heaviest batches, and measures.
    In one process.

    Example:
        >>> from penstock.engine import Store, load_settings
        >>> from penstock.engine.training.dry_run import dry_run
        >>> settings = load_settings(None, ["model.hidden_size=4", "training.epochs=1"])
        >>> found, lines = dry_run(settings, Store.open("train"), "never-written")
        >>> found.fits
        True

    Args:
        out_dir: as for `train`. A run that is there is measured as it goes on from its last checkpoint; it is neither
            locked nor touched.
        test_store: evaluated at the end of the run.
        say: prints a line for the user.

    Returns:
        What was measured, None for a run that is complete; the same in lines for the user.

    Raises:
        ConfigError, ModelError, RunError, StoreError: as `train`.
        OutOfMemoryError: a batch does not fit.
    """
    world, directory = World.join(device), RunDirectory(Path(out_dir))
    goes_on = has_checkpoint(directory.path)
    asked = settings
    if goes_on:
        directory.record = read_record(directory.path)
        settings = settings_as_begun(directory, asked, store, say)
    else:
        settings = new_settings(asked, store, None, None)
    data = RunData.of(settings, store, test_store)
    if not goes_on and asked.data.tokens_per_batch == AUTO:
        settings = with_measured_budget(settings, data, world.device, directory, say)
    if goes_on:
        directory.check_identity(data.own_identity())
        if directory.is_complete and comes_to_the_same(directory, settings):
            return None, [f"dry run: {directory.path} is complete: there is nothing left to do"]
    for each in data.stores:
        check_files(each)
    found = find_checkpoint(directory.path, sealed=directory.is_sealed, say=say) if goes_on else None
    precision = precision_of(directory, settings, world.device, say)
    devices = [world.device] if world.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        usual_defaults(world.device),
        tf32(settings.training.tf32 if devices else None),
    ):
        loop = Loop(settings, data, world, directory, say, found=found, precision=precision)
        changed = extension_of(loop) if goes_on else []
        say(opening_line(loop))
        if changed:
            say(extension_line(loop, changed))
        for line in data.about_test:
            say(line)
        if settings.training.shard:
            say(
                "note: --dry-run holds the whole model; with training.shard=true each of N processes holds 1/N of "
                "weights, gradients and optimizer, and a layer at a time"
            )
        measured = rehearse(loop)
    return measured, list(measured.lines(loop))
