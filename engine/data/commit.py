"""Writing files so that a crash at any instant leaves the old state or the new one, never something in between.

A file is written under a temporary name, flushed to the disk, renamed, and its folder is flushed too; its checksum is
taken from the bytes as they pass. Nothing here writes through a memory map: on a full disk that kills the process.
"""

import errno
import os
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.engine.errors import DiskError

TEMPORARY_SUFFIX = ".tmp"


class CommittedFile:
    """A file being written; it has its name only once `committed` has left its block without an exception.

    Attributes:
        size: bytes written so far.
        crc32: the checksum of those bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.crc32 = 0
        self.closed = False
        self._temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
        self._file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += os.write(self._file, view[written:])
        self.crc32 = zlib.crc32(view, self.crc32)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Nothing is buffered here; file-like for pyarrow."""

    def close(self) -> None:
        """Called by pyarrow at the end of a stream; the file itself is closed by the commit."""

    def commit(self) -> None:
        os.fsync(self._file)
        os.close(self._file)
        self.closed = True
        os.replace(self._temporary, self.path)
        fsync_folder(self.path.parent)

    def abandon(self) -> None:
        if not self.closed:
            os.close(self._file)
            self.closed = True
        self._temporary.unlink(missing_ok=True)


@contextmanager
def committed(path: Path) -> Iterator[CommittedFile]:
    """Yields a file to write; commits it at the end of the block, removes it if the block raises.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    with disk_errors(path):
        file = CommittedFile(path)
        try:
            yield file
            file.commit()
        except BaseException:
            file.abandon()
            raise


def write_committed(path: Path, data: bytes) -> int:
    """Writes a whole file and returns its CRC-32."""
    with committed(path) as file:
        file.write(data)
    return file.crc32


def fsync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_committed(path: Path) -> None:
    """Removes a file so that it stays removed after a crash."""
    with disk_errors(path):
        path.unlink(missing_ok=True)
        fsync_folder(path.parent)


_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an input/output error",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EEXIST: "something else has this name",
    errno.ENAMETOOLONG: "the name is too long",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into a DiskError of one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise DiskError(f"{path}: cannot be written: {_DISK_ERRORS[error.errno]}") from error
