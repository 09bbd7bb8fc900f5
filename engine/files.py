"""Files and folders that appear whole or not at all: a crash at any instant leaves the old state or the new one.

A file is written under a temporary name, flushed to the disk, renamed, and its folder is flushed too; its checksum is
taken from the bytes as they pass. Nothing here writes through a memory map: on a full disk that kills the process.

Some file systems (networks, object stores, FUSE) lack symbolic links, locks, or a way to force a folder to the disk.
What is lost without them is said in one line, once a process, and the work goes on.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
import shutil
import stat
import sys
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.engine.errors import DiskError, PenstockError

TEMPORARY_SUFFIX = ".tmp"
_BLOCK = 1 << 20  # bytes; they stay in a processor's cache between their copy, their checksum and the disk
_DIRECT = getattr(os, "O_DIRECT", 0)

# how systems and drivers say that they cannot do something at all
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.EBADF})
_NO_LINKS = _UNSUPPORTED | {errno.EPERM}
_warned: set[str] = set()


def _warn_once(path: Path, what: str, so: str) -> None:
    if what not in _warned:
        _warned.add(what)
        print(f"penstock: note: the file system of {path} {what}: {so}", file=sys.stderr, flush=True)


def flush(descriptor: int, path: Path) -> None:
    """Forces an open file or folder to the disk, where its file system can.

    Raises:
        OSError: the disk reports an error.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _warn_once(path, "forces nothing to the disk", "a loss of power may undo what was written last")


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
        flush(self._file, self.path)
        os.close(self._file)
        self.closed = True
        os.replace(self._temporary, self.path)
        sync_folder(self.path.parent)

    def abandon(self) -> None:
        if not self.closed:
            os.close(self._file)
            self.closed = True
        self._temporary.unlink(missing_ok=True)


class BulkFile(CommittedFile):
    """A committed file of many bytes, which go past the system's cache where the file system can: there they would push
    out the training data, and each of their pages would be made and cleared first."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._block = mmap.mmap(-1, _BLOCK)  # aligned, as the disk wants it
        self._filled = 0
        self._set_direct(True)

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        taken = 0
        while taken < len(view):
            part = view[taken : taken + _BLOCK - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            taken += len(part)
            if self._filled == _BLOCK:
                self._write_block()
        return len(view)

    def commit(self) -> None:
        if self._filled:
            self._set_direct(False)
            self._write_block()
        super().commit()

    def _write_block(self) -> None:
        view, written = memoryview(self._block)[: self._filled], 0
        self.crc32 = zlib.crc32(view, self.crc32)
        while written < len(view):
            try:
                written += os.write(self._file, view[written:])
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._set_direct(False)  # it asks for another alignment, also after a write that ended early
        self.size += len(view)
        self._filled = 0

    def _set_direct(self, wanted: bool) -> None:
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        self._direct = wanted and _DIRECT != 0
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | _DIRECT if wanted else flags & ~_DIRECT)
        except OSError:
            self._direct = False


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


def write_committed(path: Path, data: bytes | str) -> int:
    """Writes a whole file, text as UTF-8, and returns its CRC-32.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    with committed(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)
    return file.crc32


def write_json(path: Path, value: Any) -> None:
    write_committed(path, json.dumps(value, indent=2) + "\n")


def temporary_files(folder: Path) -> list[Path]:
    """What killed processes have left of files that they were writing in the folder."""
    return [path for path in folder.glob(f"*{TEMPORARY_SUFFIX}") if re.fullmatch(r".+\.[0-9a-f]{32}\.tmp", path.name)]


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes have left in the folder of what they were writing, linking, copying or removing."""
    hidden = [path for path in folder.glob(f".*{TEMPORARY_SUFFIX}") if path.name != TEMPORARY_SUFFIX]
    for path in (*temporary_files(folder), *hidden):
        _remove_any(path)


def remove_folder(path: Path) -> None:
    """Removes a folder: it is gone in one instant, and a kill never leaves a part of it under its name."""
    aside = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    _remove_any(aside)
    os.replace(path, aside)
    _remove_any(aside)


def remove_committed(path: Path) -> None:
    """Removes a file, or what `point` has made, so that it stays removed after a crash."""
    with disk_errors(path):
        if path.is_dir() and not path.is_symlink():  # a copied folder
            _remove_any(_old(path))  # `settle_pointer` would put it back
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flush(descriptor, path)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Forces every file under `path`, and the folders themselves, to the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                flush(descriptor, Path(folder, name))
            finally:
                os.close(descriptor)
        sync_folder(Path(folder))


def settle_modes(path: Path) -> None:
    """Gives everything under a folder that we made the mode that the umask leaves it, whichever library wrote it."""
    mode = stat.S_IMODE(path.stat().st_mode) & 0o777
    for folder, folders, names in os.walk(path):
        for name in folders:
            os.chmod(os.path.join(folder, name), mode)
        for name in names:
            os.chmod(os.path.join(folder, name), mode & 0o666)


def remove_tree(path: Path) -> None:
    """Removes what is there, write-protected folders of ours included; what cannot be removed stays."""
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def point(link: Path, target: Path) -> None:
    """Makes `link` a relative symbolic link to the folder `target`, replacing an older one in one instant.

    Without symbolic links it becomes a copy of the folder; see `settle_pointer` for what a kill may then leave.
    """
    temporary = link.with_name(f".{link.name}{TEMPORARY_SUFFIX}")
    _remove_any(temporary)
    try:
        temporary.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _warn_once(link, "has no symbolic links", "checkpoints are copied, which takes their space once more")
        temporary.mkdir()
        for file in sorted(target.iterdir()):
            link_or_copy(file, temporary / file.name)
        sync_tree(temporary)
    copied = temporary.is_dir() and not temporary.is_symlink()
    if (link.is_dir() and not link.is_symlink()) or (copied and os.path.lexists(link)):
        _remove_any(_old(link))  # a folder neither replaces nor is replaced
        os.replace(link, _old(link))
    os.replace(temporary, link)
    sync_folder(link.parent)
    _remove_any(_old(link))


def settle_pointer(link: Path) -> None:
    """Puts back, or removes, what a kill in the middle of `point` has left under another name, where folders are
    copied."""
    if not _old(link).exists():
        return
    if link.exists():
        _remove_any(_old(link))
    else:
        os.replace(_old(link), link)


def _old(link: Path) -> Path:
    return link.with_name(f".{link.name}.old")


def _remove_any(path: Path) -> None:
    """A file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, by a hard link where the file system has them."""
    temporary = target.with_name(f".{target.name}{TEMPORARY_SUFFIX}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # rename(2) does nothing where both are links to the same file already


class FolderLock:
    """An advisory lock on a folder, held until it is closed or the process ends. A context manager.

    Args:
        folder: it exists. shared: several may hold it at a time, and keep out who wants it alone.
        file: the name of the file in the folder that is locked, made where there is none; None for the folder itself.
        busy: what to raise where another process holds it; None to wait until it does no longer.
    """

    def __init__(
        self, folder: Path, busy: PenstockError | None, *, shared: bool = False, file: str | None = None
    ) -> None:
        if file is None:
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            self._descriptor = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(self._descriptor, how if busy is None else how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise busy or error from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                self.close()
                raise
            _warn_once(folder, "has no locks", "nothing keeps a second process out of it: see to that")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# What only writing meets.
_REASONS = {
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
    errno.ESTALE: "the network's file system has lost it",
}


@contextmanager
def disk_errors(path: Path, *, libraries: bool = False) -> Iterator[None]:
    """Turns the system's refusal to write `path`, or what lies beside or under it, into a DiskError of one line.

    Args:
        libraries: also what safetensors and torch.save report in types of their own.
    """
    try:
        yield
    except PenstockError:
        raise
    except OSError as error:
        reason = _REASONS.get(error.errno or 0)
        if reason is None and not _is_under(error.filename, path) and not (libraries and error.errno is None):
            raise
        system = os.strerror(error.errno) if error.errno is not None else str(error)
        raise DiskError(f"cannot write {path}: {f'{reason} ({system})' if reason else system}") from error
    except Exception as error:
        full = os.strerror(errno.ENOSPC) in str(error) or _is_full(path)
        if libraries and (full or "write" in str(error).lower()):
            raise DiskError(f"cannot write {path}: {' '.join(str(error).split())}") from error
        raise


def _is_under(name: Any, path: Path) -> bool:
    return isinstance(name, str | bytes) and Path(os.fsdecode(name)).absolute().is_relative_to(path.absolute().parent)


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < 1 << 20
    except OSError:
        return False
