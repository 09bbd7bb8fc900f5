"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
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
        shutil.copy2(source, temporary)
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
