"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock.engine.errors import DiskError, PenstockError


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Forces every file under `path`, and the folders themselves, to the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))


def copy_tree(source: Path, target: Path) -> None:
    """Copies the files under `source` into `target`, new or not: their contents alone, not their modes or owners."""
    for folder, _, names in os.walk(source):
        into = target / os.path.relpath(folder, source)
        into.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(os.path.join(folder, name), into / name)


def settle_modes(path: Path) -> None:
    """Gives everything under a folder that we made the mode that the umask leaves it, whichever library wrote it."""
    mode = stat.S_IMODE(path.stat().st_mode) & 0o777
    for folder, folders, names in os.walk(path):
        for name in folders:
            os.chmod(os.path.join(folder, name), mode)
        for name in names:
            os.chmod(os.path.join(folder, name), mode & 0o666)


def has_checkpoint(run: Path) -> bool:
    """Whether a run has come as far as a checkpoint."""
    return any((run / name / "config.json").exists() for name in ("last", "best"))


def remove_tree(path: Path) -> None:
    """Removes what is there, write-protected folders of ours included; what cannot be removed stays."""
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replaces a file: after a crash it holds the old text or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def point(link: Path, target: Path) -> None:
    """Makes `link` a relative symbolic link to `target`, replacing an older one in one instant."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    os.replace(temporary, link)
    sync_directory(link.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, by a hard link where the file system has them."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the failure of writing under `path` into a DiskError, whichever library reported it."""
    try:
        yield
    except PenstockError:
        raise
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error
    except Exception as error:
        # safetensors and torch.save report a failed write in types of their own
        full = os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(path.parent).free < 1 << 20
        if full or "write" in str(error).lower():
            raise DiskError(f"cannot write {path}: {error}") from error
        raise
