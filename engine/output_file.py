"""One file that a command is asked to write: what it must not be, and how it appears whole or never."""

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import Any, BinaryIO

from penstock.engine.checked import DamageError, read_seal
from penstock.engine.data.job import Job
from penstock.engine.data.manifest import INDEX_NAME, MANIFEST_NAME
from penstock.engine.errors import ConfigError, DiskError, StoreError
from penstock.engine.files import committed, disk_errors

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def check_output(out: str, inputs: Sequence[Path], folders: Sequence[Path] = ()) -> None:
    """Makes sure that an output can be written and is nothing that is still needed.

    Args:
        inputs: files that are read. folders: whose files are not to be touched.

    Raises:
        ConfigError: it is one of them, by whatever name, or a folder, or within a checkpoint or a store.
        DiskError: it cannot be written.
    """
    if out == "-":
        for file in inputs:
            if file.exists() and os.path.samestat(os.fstat(_stdout_number()), file.stat()):
                raise ConfigError(f"stdout is {file}, which is being read: write somewhere else")
        return
    path = Path(os.path.expanduser(out))
    if path.is_dir():
        raise ConfigError(f"{out} is a folder: name a file")
    for file in inputs:
        if _same_file(path, file):
            raise ConfigError(f"{out} is {file}, which is being read: write somewhere else")
    real = Path(os.path.realpath(path))
    for parent in real.parents:
        if (owner := _owner(parent)) is not None:
            raise ConfigError(f"{out} is in {owner}: write somewhere else")
    for folder in folders:
        if real.exists() and Path(os.path.realpath(folder)) in real.parents:
            raise ConfigError(f"{out} belongs to {folder}: write somewhere else")
    if not real.parent.is_dir():
        raise DiskError(f"{out}: cannot be written: there is no folder {real.parent}")
    if not os.access(real if _is_device(real) else real.parent, os.W_OK):
        raise DiskError(f"{out}: cannot be written: permission denied")


def _owner(folder: Path) -> str | None:
    """What a folder is that holds only what was written into it at once; None for others, runs among them."""
    if (folder / "run.json").is_file():
        return None
    # other programs have files of these names, with something else in them
    with suppress(DamageError):
        if read_seal(folder) is not None:
            return f"the checkpoint {folder}"
    with suppress(StoreError):
        if Job.read(folder) is not None:
            return f"the store {folder}"
    if folder.name == "checkpoints" and (folder.parent / "run.json").is_file():
        return f"the checkpoints of {folder.parent}"
    if all((folder / name).is_file() for name in (MANIFEST_NAME, INDEX_NAME)):
        return f"the store {folder}"
    return None


def check_distinct(outputs: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: two outputs of one command are the same file, by whatever names.
    """
    for one, other in combinations(outputs, 2):
        first, second = Path(os.path.expanduser(one)), Path(os.path.expanduser(other))
        if one == other == "-" or (_same_file(first, second) and not _is_device(first)):
            where = "stdout" if one == "-" else one if one == other else f"{one} and {other}"
            raise ConfigError(f"two outputs go to {where}, one file: name another for one of them")


def _same_file(path: Path, other: Path) -> bool:
    same = path.exists() and other.exists() and path.samefile(other)
    return same or os.path.realpath(path) == os.path.realpath(other)


def _stdout_number() -> int:
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError):
        return os.open(os.devnull, os.O_WRONLY)  # captured by a test or a notebook: no file


def _is_device(path: Path) -> bool:
    """Whether it is a pipe or a device, which is written as it is instead of being replaced."""
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)


@contextmanager
def open_output(out: str) -> Iterator[Any]:
    """A binary file to write; a file has its name only when the block ends, whole, or else never.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    path = Path(os.path.realpath(os.path.expanduser(out)))
    if out == "-":
        stream: BinaryIO = sys.stdout.buffer
        yield stream
        stream.flush()
    elif _is_device(path):
        with disk_errors(path), open(path, "wb") as file:
            yield file
    else:
        with committed(path) as whole, _compressed(whole, path) as packed:
            yield packed


@contextmanager
def _compressed(file: Any, path: Path) -> Iterator[Any]:
    compression = COMPRESSIONS.get(path.suffix)
    if compression is None:
        yield file
        return
    import pyarrow as pa

    with pa.CompressedOutputStream(pa.PythonFile(file, mode="w"), compression) as stream:
        yield stream
