"""Checkpoints that survive a kill at any instant.

A checkpoint is one folder, RUN/checkpoints/step-N: the model as the transformers library saves it, and, where the run
can go on from there, `training_state.pt`. It is written under another name, forced to the disk and renamed; then the
symbolic link RUN/last (RUN/best) is turned to it in one instant. So `last` always leads to a whole checkpoint.
"""

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from penstock.engine.errors import RunError
from penstock.engine.files import (
    disk_errors,
    link_or_copy,
    point,
    remove_tree,
    settle_modes,
    sync_folder,
    sync_tree,
)

_STATE = "training_state.pt"


def write_checkpoint(
    run: Path, step: int, save_model: Callable[[Path], None], state: dict[str, Any] | None, links: Sequence[str]
) -> None:
    """Writes a checkpoint and turns links to it; what no link holds any more is removed.

    Args:
        links: "last", "best" or both, turned in this order.
        save_model: writes the model's files into a folder.
        state: what the run needs to go on from here; None for a model alone.

    Raises:
        DiskError: the checkpoint cannot be written; the earlier ones stand.
    """
    folder = run / "checkpoints"
    temporary = folder / ".writing"
    with disk_errors(temporary, libraries=True):
        remove_tree(temporary)
        try:
            temporary.mkdir(parents=True)
            save_model(temporary)
            if state is not None:
                torch.save(state, temporary / _STATE)
            settle_modes(temporary)
            sync_tree(temporary)
            checkpoint = _unused(folder, step)
            os.rename(temporary, checkpoint)
        except BaseException:
            remove_tree(temporary)
            raise
        sync_folder(folder)
        for name in links:
            point(run / name, checkpoint)
        _remove_unreferenced(run)


def read_state(run: Path) -> dict[str, Any] | None:
    """The training state of RUN/last, tensors on the CPU; None if the run has none.

    Raises:
        RunError: the file is damaged.
    """
    file = run / "last" / _STATE
    if not file.exists():
        return None
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise RunError(f"{file} is damaged ({str(error).splitlines()[0]}): remove {run} and train again") from error


def export_best(run: Path) -> None:
    """Lays the best model's files into the run's own folder, so that RUN itself loads as a model."""
    files = [file for file in sorted((run / "best").iterdir()) if file.is_file() and file.name != _STATE]
    with disk_errors(run / "config.json"):
        # config.json last: with it the folder counts as a model
        for file in sorted(files, key=lambda file: file.name == "config.json"):
            link_or_copy(file, run / file.name)
        sync_folder(run)


def _unused(folder: Path, step: int) -> Path:
    """A resumed run may come by a step twice; a folder that a link holds is never replaced in place."""
    name = f"step-{step:08d}"
    candidate, again = folder / name, 0
    while candidate.exists():
        again += 1
        candidate = folder / f"{name}.{again}"
    return candidate


def _remove_unreferenced(run: Path) -> None:
    held = {(run / name).resolve() for name in ("best", "last")}
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.resolve() not in held:
            remove_tree(checkpoint)
