"""Files that go past the system's cache: any size, in any pieces, on any file system, and a disk that refuses."""

import errno
import os
import random
import zlib
from pathlib import Path

import pytest

from penstock.engine import files
from penstock.engine.files import BulkFile

BLOCK = files._BLOCK
SIZES = [0, 1, 4095, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 777]
DATA = random.Random(0).randbytes(4 * BLOCK)
MEMORY = Path("/dev/shm")


def write(path: Path, size: int, piece: int) -> BulkFile:
    file = BulkFile(path)
    try:
        for begin in range(0, size, piece):
            file.write(memoryview(DATA)[begin : min(begin + piece, size)])
        file.commit()
    except BaseException:
        file.abandon()
        raise
    return file


def check(path: Path, size: int, piece: int) -> None:
    file = write(path, size, piece)
    assert path.read_bytes() == DATA[:size]
    assert (file.size, file.crc32) == (size, zlib.crc32(DATA[:size]))
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("piece", [5 * BLOCK, BLOCK, 100_003])
@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_there(tmp_path, size, piece):
    check(tmp_path / "file", size, piece)


@pytest.mark.skipif(not os.access(MEMORY, os.W_OK), reason="no file system in memory")
def test_in_memory(tmp_path):
    folder = MEMORY / f"penstock-{os.getpid()}"
    folder.mkdir()
    try:
        for size in SIZES:
            check(folder / "file", size, 100_003)
    finally:
        (folder / "file").unlink(missing_ok=True)
        folder.rmdir()


class Refusing:
    """Stands in for the `os` of files: its writes end early, or fail at the n-th call, as `act` says."""

    def __init__(self, act) -> None:
        self._act, self.calls = act, 0

    def __getattr__(self, name: str):
        function = getattr(os, name)
        if name != "write":
            return function

        def write(descriptor, data):
            self.calls += 1
            return self._act(self.calls, descriptor, data)

        return write


def invalid_from(first: int):
    """A file system that takes O_DIRECT and then wants another alignment."""
    import fcntl

    def act(call, descriptor, data):
        if call >= first and fcntl.fcntl(descriptor, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.write(descriptor, data)

    return act


def short(call, descriptor, data):
    return os.write(descriptor, data[: 4096 * 3 if len(data) > 8192 and call % 2 else len(data)])


@pytest.mark.parametrize("act", [invalid_from(1), invalid_from(2), short], ids=["never", "once", "short"])
@pytest.mark.parametrize("size", [1, BLOCK, 3 * BLOCK + 777])
def test_file_systems_of_another_mind(tmp_path, monkeypatch, act, size):
    monkeypatch.setattr(files, "os", Refusing(act))
    check(tmp_path / "file", size, 100_003)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EINVAL])
def test_an_error_is_an_error(tmp_path, monkeypatch, number):
    def fail(call, descriptor, data):
        raise OSError(number, os.strerror(number))

    for first in (1, 2, 4):
        act = lambda call, *rest, first=first: fail(call, *rest) if call >= first else os.write(*rest)  # noqa: E731
        monkeypatch.setattr(files, "os", Refusing(act))
        with pytest.raises(OSError, match=os.strerror(number)):
            write(tmp_path / "file", 3 * BLOCK + 777, BLOCK)
        assert os.listdir(tmp_path) == []
