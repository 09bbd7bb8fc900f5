"""From which checkpoint a run goes on, once every file that it goes on from has been found whole."""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penstock.engine.checked import DamageError, crc32_of
from penstock.engine.errors import RunError
from penstock.engine.files import point, remove_committed, write_committed
from penstock.engine.models.start import Say
from penstock.engine.training.checkpoint import (
    STATE_NAME,
    before,
    check_whole,
    is_name,
    name_of,
    place_of,
    read_state,
    resumable,
    seal_earlier,
    step_of,
)
from penstock.engine.training.run_directory import METRICS_NAME
from penstock.engine.training.state import StateError

Resume = Literal["last", "previous"]
Confirm = Callable[[str], bool]


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from.

    Attributes:
        best: the name of the best model's checkpoint when it was written; None if there was none, or for a checkpoint
            of an earlier penstock, which does not say.
        sealed: whether its files have checksums.
        log_size, log_crc32: of the part of metrics.jsonl that stays: what it was when the checkpoint was written; no
            checksum of an earlier penstock's.
        log_begins: whether that is gone and the file begins again, with a line that says so.
    """

    folder: Path
    best: str | None
    sealed: bool
    log_size: int
    log_crc32: int | None
    log_begins: bool = False

    @property
    def step(self) -> int:
        return step_of(self.folder.resolve())


@contextlib.contextmanager
def as_run_error(found: Found | None) -> Iterator[None]:
    """What does not fit in a checkpoint, in one line that names it."""
    try:
        yield
    except StateError as error:
        assert found is not None
        raise RunError(
            f"{found.folder} is no checkpoint of this run: {error}; put it back from a copy, or train into "
            "another --out"
        ) from error


def find_checkpoint(
    run: Path, *, sealed: bool, resume: Resume = "last", confirm: Confirm | None = None, say: Say
) -> Found | None:
    """The run's last checkpoint, or, where that is damaged and the user agrees, the one before it; None if it has none.

    Nothing is changed.

    Args:
        sealed: whether every checkpoint of the run has checksums.
        resume: "previous": the user agrees. confirm: asks him, if there is a way to.

    Raises:
        RunError: a file is damaged, and there is no earlier checkpoint or the user did not agree.
    """
    for name in ("last", "best"):
        if (run / name).is_dir() and not (run / name).is_symlink() and name_of(run / name) is None:
            raise RunError(
                f"{run / name} is a folder, where penstock had a link to a checkpoint: move it away; the run then "
                "goes on from its last checkpoint"
            )
    newest = _newest(run)
    if newest is None:
        say(f"{run} was stopped before its first checkpoint to resume from: it begins again")
        return None
    try:
        found = _examine(run, newest, sealed)
    except DamageError as damage:
        earlier = _first_whole(run, newest, sealed)
        where = f"{newest}: {damage}"
        if earlier is None:
            raise RunError(
                f"{where}; no earlier checkpoint is whole: put it back from a copy, or train into another --out"
            ) from None
        instead = f"go on from the checkpoint before it, of step {earlier.step:,}"
        if resume != "previous" and not (confirm is not None and confirm(f"{where}; {instead}?")):
            raise RunError(f"{where}: put it back from a copy, or {instead}, with --resume=previous") from None
        say(f"{where}; goes on from step {earlier.step:,}")
        found = earlier
    else:
        if resume == "previous":
            say(f"--resume=previous: the last checkpoint, of step {found.step:,}, is whole and is gone on from")
    if found.log_begins:
        why = "has no earlier lines" if (run / METRICS_NAME).exists() else "is missing"
        say(f"{run / METRICS_NAME} {why}: it begins again after step {found.step:,}")
    return found


def settle_links(run: Path, found: Found | None) -> None:
    """Makes the run what it was when the checkpoint was written, or had none: its best model is that of then."""
    if found is not None and found.log_begins:
        write_committed(run / METRICS_NAME, _first_line(found.folder))
    if found is not None and not found.sealed:
        seal_earlier(run, found.folder, log=[found.log_size, found.log_crc32])
        return
    link = run / "best"
    if found is None or found.best is None:
        if os.path.lexists(link):
            remove_committed(link)
    elif not link.exists() or name_of(link) != found.best:
        point(link, run / "checkpoints" / found.best)


def _newest(run: Path) -> Path | None:
    link = run / "last"
    if os.path.lexists(link):
        if link.is_symlink():
            return run / os.readlink(link)
        return link if (name := name_of(link)) is None else run / "checkpoints" / name
    # killed before the first link, or the link was lost
    checkpoints = resumable(run)
    return checkpoints[-1] if checkpoints else None


def _first_whole(run: Path, newest: Path, sealed: bool) -> Found | None:
    for checkpoint in before(run, newest):
        try:
            return _examine(run, checkpoint, sealed)
        except DamageError:
            continue
    return None


def _examine(run: Path, checkpoint: Path, sealed: bool) -> Found:
    """Raises DamageError unless everything that a run needs to go on from the checkpoint is as it was written."""
    if not checkpoint.is_dir():
        raise DamageError("the checkpoint is missing" if not os.path.lexists(checkpoint) else "it is no folder")
    content = check_whole(checkpoint)
    if content is None:
        if sealed:
            raise DamageError("checkpoint.json is missing")
        return _examine_unsealed(run, checkpoint)
    if STATE_NAME not in content["files"]:
        raise DamageError(f"{STATE_NAME} is not among its files: it is no checkpoint to go on from")
    best, log = content.get("best"), content.get("log")
    if best is not None and best != checkpoint.resolve().name:
        _check_best(run, best)
    if not (isinstance(log, list) and len(log) == 2 and isinstance(log[0], int) and isinstance(log[1], int | None)):
        raise DamageError("checkpoint.json is damaged: it does not say how long metrics.jsonl was")
    return Found(checkpoint, best, True, *_log_that_stays(run, checkpoint, *log))


def _check_best(run: Path, best: Any) -> None:
    if not is_name(best):
        raise DamageError(f"checkpoint.json is damaged: its best model is {best!r}")
    folder = run / "checkpoints" / best
    try:
        if not folder.is_dir():
            raise DamageError("the folder is missing")
        if check_whole(folder) is None:
            raise DamageError("checkpoint.json is missing")
    except DamageError as damage:
        raise DamageError(f"its best model, {folder}: {damage}") from None


def _log_that_stays(run: Path, checkpoint: Path, size: int, crc32: int | None) -> tuple[int, int | None, bool]:
    """`log_size`, `log_crc32` and `log_begins` of what is found.

    Args:
        size, crc32: of metrics.jsonl when the checkpoint was written.
    """
    file = run / METRICS_NAME
    if not size or _is_whole(file, checkpoint, size, crc32):
        return size, crc32, False
    line = _first_line(checkpoint)
    return len(line), zlib.crc32(line), True


def _is_whole(file: Path, checkpoint: Path, size: int, crc32: int | None) -> bool:
    """Whether the lines that were written before the checkpoint are there; they are not needed to go on.

    Raises:
        DamageError: they are damaged.
    """
    if not os.path.lexists(file):
        return False
    remedy = "(put it back, or move it away to go on without its lines)"
    if not file.is_file():
        raise DamageError(f"{file} is no file {remedy}")
    there = file.stat().st_size
    if there >= size and (crc32 is None or crc32_of(file, size) == crc32):
        return True
    if _begun_since(file, checkpoint):
        return False
    if there < size:
        raise DamageError(f"{file} has {there:,} bytes, {size:,} had been written {remedy}")
    raise DamageError(f"{file} is damaged: its checksum is not that of what was written {remedy}")


def _first_line(checkpoint: Path) -> bytes:
    """The line of a metrics.jsonl that has none of those before the checkpoint."""
    name = checkpoint.resolve().name
    return json.dumps({"split": "log", "step": step_of(Path(name)), "after": name}).encode() + b"\n"


def _begun_since(file: Path, checkpoint: Path) -> bool:
    """Whether the file was begun when the run went on from this checkpoint or a later one."""
    with open(file, "rb") as source:
        line = source.readline(200)
    try:
        after = json.loads(line)["after"]
    except (ValueError, TypeError, KeyError):
        return False
    return is_name(after) and place_of(Path(after)) >= place_of(checkpoint.resolve())


def _examine_unsealed(run: Path, checkpoint: Path) -> Found:
    """Without checksums a file can only be seen to be readable."""
    try:
        state = read_state(run, checkpoint)
    except RunError as error:
        raise DamageError(str(error).removeprefix(f"{checkpoint}/")) from None
    for name in (STATE_NAME, "config.json", "model.safetensors"):
        if not (checkpoint / name).is_file():
            raise DamageError(f"{name} is missing")
    assert state is not None
    log, counters = state.get("log_offset"), state.get("counters")
    if not isinstance(log, int) or not isinstance(counters, dict):
        raise DamageError(f"{STATE_NAME} is damaged: it does not say where the run stood")
    if counters.get("best"):
        if not (run / "best" / "config.json").is_file():
            raise DamageError(f"{run / 'best'}, the best model, is missing")
        check_whole(run / "best")
    return Found(checkpoint, None, False, *_log_that_stays(run, checkpoint, log, None))
