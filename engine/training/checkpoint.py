"""Checkpoints that survive a kill at any instant, and say when they were damaged since.

A checkpoint is one folder, RUN/checkpoints/step-N: the model as the transformers library saves it, where the run can go
on from there `training_state.pt`, and, written last, `checkpoint.json`, which seals them (see checked.py). It is
written under another name, forced to the disk and renamed; then the symbolic link RUN/last (RUN/best) is turned to it
in one instant; a file system without links has copies there, which say whose they are. So `last` always leads to a
whole checkpoint. The ones before it, and the best models of their time, stay as long as `keep` says.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_crc32_options, set_crc32_options

from penstock.engine.checked import DamageError, check_sealed, read_seal, seal
from penstock.engine.errors import RunError, first_line
from penstock.engine.files import (
    BulkFile,
    CommittedFile,
    disk_errors,
    link_or_copy,
    point,
    remove_folder,
    remove_leftovers,
    remove_tree,
    settle_modes,
    sync_folder,
    sync_tree,
)

STATE_NAME = "training_state.pt"
_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")
_WRITING = ".writing"  # the checkpoint that is not whole yet


def write_checkpoint(
    run: Path,
    step: int,
    save_model: Callable[[Path], Mapping[str, CommittedFile] | None],
    state: dict[str, Any] | None,
    links: Sequence[str],
    *,
    keep: int = 1,
    **entries: Any,
) -> None:
    """Writes a checkpoint and turns links to it; what is older than the last `keep` is removed.

    Args:
        links: "last", "best" or both, turned in this order.
        save_model: writes the model's files into a folder; may return, by name, those whose checksums it knows.
        state: what the run needs to go on from here; None for a model alone.
        keep: number of checkpoints to go on from.
        entries: what else its `checkpoint.json` says.

    Raises:
        DiskError: the checkpoint cannot be written; the earlier ones stand.
    """
    folder = run / "checkpoints"
    temporary = folder / _WRITING
    with disk_errors(temporary, libraries=True):
        remove_tree(temporary)
        try:
            temporary.mkdir(parents=True)
            with disk_errors(temporary, libraries=True):  # while a full disk is still full
                written = dict(save_model(temporary) or {})
                if state is not None:
                    written[STATE_NAME] = _save_state(state, temporary / STATE_NAME)
                checkpoint = _unused(folder, step)
                best = checkpoint.name if "best" in links else name_of(run / "best")
                seal(temporary, written, step=step, name=checkpoint.name, best=best, **entries)
            settle_modes(temporary)
            sync_tree(temporary)
            os.rename(temporary, checkpoint)
        except BaseException:
            remove_tree(temporary)
            raise
        sync_folder(folder)
        for name in links:
            point(run / name, checkpoint)
        _remove_old(run, keep)


def read_state(run: Path, checkpoint: Path | None = None) -> dict[str, Any] | None:
    """The training state of a checkpoint, by default of RUN/last, tensors on the CPU; None if it has none.

    Raises:
        RunError: the file is damaged.
    """
    file = (checkpoint or run / "last") / STATE_NAME
    if not file.exists():
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they lead the unpickler to
        raise RunError(f"{file} is damaged ({first_line(error)})") from error
    if not isinstance(state, dict):
        raise RunError(f"{file} is damaged: it holds a {type(state).__name__}")
    return state


def export_best(run: Path) -> None:
    """Lays the best model's files into the run's own folder, so that RUN itself loads as a model."""
    files = [file for file in sorted((run / "best").iterdir()) if file.is_file() and file.name != STATE_NAME]
    with disk_errors(run / "config.json"):
        # config.json last: with it the folder counts as a model
        for file in sorted(files, key=lambda file: file.name == "config.json"):
            link_or_copy(file, run / file.name)
        sync_folder(run)


def clear_leftovers(run: Path, found: Path | None, keep: int) -> None:
    """Removes what a killed process was writing, or about to remove, in a run that now goes on.

    Args:
        found: the checkpoint that it goes on from. Later ones that no link leads to are made again.
        keep: number of checkpoints to go on from.
    """
    folder = run / "checkpoints"
    with disk_errors(run):
        remove_leftovers(run)
        if not folder.is_dir():
            return
        remove_leftovers(folder)
        remove_tree(folder / _WRITING)
        linked = {name_of(run / link) for link in ("best", "last")}
        place = () if found is None else place_of(found.resolve())
        for checkpoint in folder.iterdir():
            if place_of(checkpoint) > place and checkpoint.name not in linked:
                remove_folder(checkpoint)
        if found is not None and found.resolve().name == name_of(run / "last"):
            _remove_old(run, keep)


def check_whole(checkpoint: Path) -> dict[str, Any] | None:
    """The contents of its `checkpoint.json`; None for one of an earlier penstock, which has none.

    Raises:
        DamageError: a file of it is not as it was written.
    """
    found = read_seal(checkpoint)
    if found is not None:
        check_sealed(checkpoint, found)
    return found


def seal_earlier(run: Path, checkpoint: Path, **entries: Any) -> None:
    """Seals a checkpoint of an earlier penstock, which has been gone on from, and its run's best model."""
    best = name_of(run / "best")
    with disk_errors(checkpoint):
        if best is not None and read_seal(run / "best") is None:
            seal(run / "best", step=step_of((run / "best").resolve()), name=best, best=best)
        if read_seal(checkpoint) is None:
            seal(checkpoint, step=step_of(checkpoint.resolve()), name=checkpoint.resolve().name, best=best, **entries)


def resumable(run: Path) -> list[Path]:
    """The checkpoints to go on from, oldest first, whole or not."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if place_of(path) and (path / STATE_NAME).exists()), key=place_of)


def before(run: Path, checkpoint: Path) -> list[Path]:
    """The checkpoints to go on from that are older than this one, newest first."""
    place = place_of(checkpoint)
    return [path for path in reversed(resumable(run)) if not place or place_of(path) < place]


def is_name(name: Any) -> bool:
    """Whether a checkpoint could be called so."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def step_of(checkpoint: Path) -> int:
    place = place_of(checkpoint)
    return place[0] if place else 0


def _save_state(state: dict[str, Any], file: Path) -> CommittedFile:
    """torch reports in words of its own what a file says of a full disk, and has checksums, which the seal has too."""
    out = _File(file)
    computes = get_crc32_options()
    set_crc32_options(False)
    try:
        file_like: Any = out  # torch only writes to it
        torch.save(state, file_like)
        out.commit()
    except BaseException:
        out.abandon()
        if out.error is not None:
            raise out.error from None
        raise
    finally:
        set_crc32_options(computes)
    return out


class _File(BulkFile):
    """A file that keeps the error that a write to it met."""

    error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def place_of(checkpoint: Path) -> tuple[int, int]:
    """Where it stands among the others; empty for what is no checkpoint."""
    found = _NAME.fullmatch(checkpoint.name)
    return (int(found[1]), int(found[2] or 0)) if found else ()  # type: ignore[return-value]


def _unused(folder: Path, step: int) -> Path:
    """A resumed run may come by a step twice; a folder that a link holds is never replaced in place."""
    name = f"step-{step:08d}"
    candidate, again = folder / name, 0
    while candidate.exists():
        again += 1
        candidate = folder / f"{name}.{again}"
    return candidate


def name_of(link: Path) -> str | None:
    """The name of the checkpoint that RUN/last or RUN/best is: a link to it or, on a file system without links, a copy,
    which says whose; None where there is neither."""
    if link.is_symlink():
        return Path(os.readlink(link)).name if link.exists() else None
    try:
        found = (read_seal(link) or {}).get("name") if link.is_dir() else None
    except DamageError:
        return None
    return found if is_name(found) else None


def _remove_old(run: Path, keep: int) -> None:
    """Keeps what the links hold, the checkpoints before the last, and the best models of their time."""
    folder = run / "checkpoints"
    names = {link: name_of(run / link) for link in ("best", "last")}
    held = {(folder / name).resolve() for name in names.values() if name is not None}
    if names["last"] is not None:
        held |= {checkpoint.resolve() for checkpoint in before(run, folder / names["last"])[: keep - 1]}
    for checkpoint in list(held):
        try:
            best = (read_seal(checkpoint) or {}).get("best")
        except DamageError:
            continue
        if best and (checkpoint / STATE_NAME).exists():
            held.add((checkpoint.parent / best).resolve())
    for checkpoint in folder.iterdir():
        if checkpoint.resolve() not in held:
            remove_folder(checkpoint)
