"""`prepare` is killed, or refused by the disk, at every single write, fsync and rename."""

import errno
import faulthandler
import gc
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.engine import files
from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.errors import DiskError, StoreError

CALLS = ("write", "fsync", "replace")


class WatchedSystem:
    """Stands in for the `os` that files are committed through: records its calls and acts before the n-th."""

    def __init__(self, act: Callable[[str, tuple], None] = lambda name, args: None, at: int = -1) -> None:
        self.calls: list[tuple[str, str]] = []
        self._act = act
        self._at = at
        self._names: dict[int, str] = {}

    def __getattr__(self, name: str):
        function = getattr(os, name)
        if name == "open":

            def opened(path, *args):
                descriptor = function(path, *args)
                self._names[descriptor] = str(path)
                return descriptor

            return opened
        if name not in CALLS:
            return function

        def watched(*args):
            place = self._names[args[0]] if isinstance(args[0], int) else str(args[1])
            if len(self.calls) == self._at:
                self._act(name, args)
            self.calls.append((name, place))
            return None if name == "fsync" else function(*args)  # what it does, no test can see; it takes long

        return watched


@pytest.fixture
def small_prepare(tmp_path, tokenizer_path):
    """Prepares 9 rows into three shards, their bad rows set aside."""
    source = tmp_path / "a.jsonl"
    rows = [{"text": f"film {i}", "label": i % 2} for i in range(9)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")

    def run(out: Path, **options) -> Store:
        options = {
            "tokenizer": tokenizer_path,
            "rows_per_shard": 3,
            "bad_rows": "quarantine",
            "progress": False,
            **options,
        }
        return prepare(str(source), out, **options)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def temporary_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def is_whole_or_none(out: Path, whole: dict[str, bytes]) -> None:
    if (out / "manifest.json").exists():
        assert list(Store.open(out).verify(deep=True))
        assert whole.items() <= contents(out).items()
    else:
        with pytest.raises(StoreError, match=r"no such store|not a store"):
            Store.open(out)


@pytest.fixture
def whole(tmp_path, small_prepare):
    """The bytes of the finished store, and how many calls it takes to write it."""
    system = WatchedSystem()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", system)
        small_prepare(tmp_path / "whole")
    return contents(tmp_path / "whole"), system.calls


def test_order_of_calls(tmp_path, whole):
    """A kill cannot show a missing fsync: the order itself is the proof."""
    _, calls = whole
    out = str(tmp_path / "whole")
    renamed = []
    for i, (name, place) in enumerate(calls):
        if name != "replace":
            continue
        renamed.append(place)
        # its bytes are on the disk before it gets its name, and its name before anything else is written
        before, after = calls[i - 1], calls[i + 1]
        assert before[0] == "fsync"
        assert before[1].startswith(place + ".")
        assert before[1].endswith(".tmp")
        assert after == ("fsync", str(Path(place).parent))
    names = [os.path.relpath(place, out) for place in renamed]
    shards = [name for i in range(3) for name in (f"shard-0000{i}.arrow", f"shard-0000{i}.json")]
    assert names[0] == "../whole.bad-rows.jsonl"
    assert names[1] == "preparing.json"
    assert all(name.startswith("tokenizer/") for name in names[2:-8])
    assert names[-8:] == [*shards, "index.arrow", "manifest.json"]


def run_killed(run: Callable[[], object], act: Callable[[str, tuple], None], at: int) -> int:
    """The signal that ended a forked copy of this process. A copy can be born with a lock that another thread of this
    one held: it waits for ever, before it has done anything, and is made again."""
    for _ in range(4):
        ended = _run_killed(run, act, at)
        if ended != signal.SIGALRM:
            break
    return ended


def _run_killed(run: Callable[[], object], act: Callable[[str, tuple], None], at: int) -> int:
    child = os.fork()
    if child == 0:
        gc.disable()  # what libraries of earlier tests left as garbage may wait for threads that are not in this copy
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        faulthandler.dump_traceback_later(15)
        files.os = WatchedSystem(act, at)  # type: ignore[attr-defined]
        try:
            run()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def kill_here(name: str, args: tuple) -> None:
    if name == "write":
        os.write(args[0], args[1][: len(args[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


EVERY = [pytest.param(9, id="some"), pytest.param(1, id="every", marks=pytest.mark.slow)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("step", EVERY)
def test_killed_at_every_call(tmp_path, small_prepare, whole, monkeypatch, step):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    expected, calls = whole
    assert len(calls) > 40
    for at in range(0, len(calls), step):
        out = tmp_path / f"out{at}"
        assert run_killed(lambda out=out: small_prepare(out), kill_here, at) == signal.SIGKILL
        is_whole_or_none(out, expected)
        finished = {path.name for path in out.glob("shard-*.json")} if out.exists() else set()
        kept = {name: (out / name).with_suffix(".arrow").stat().st_mtime_ns for name in finished}
        small_prepare(out)
        assert contents(out) == expected
        assert temporary_files(out) == []
        if (out / "shard-00000.arrow").exists():
            assert all((out / name).with_suffix(".arrow").stat().st_mtime_ns == time for name, time in kept.items())
        shutil.rmtree(out)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_while_overwriting(tmp_path, small_prepare, whole, monkeypatch):
    """Either the old store or none, until the new one is whole: never a mixture."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    expected, calls = whole
    old = tmp_path / "old"
    small_prepare(old, max_length=5)
    old_contents = contents(old)
    seen = set()
    for at in range(len(calls) + 8):
        out = tmp_path / f"out{at}"
        shutil.copytree(old, out)
        run_killed(lambda out=out: small_prepare(out, overwrite=True), kill_here, at)
        if not (out / "manifest.json").exists():
            seen.add("none")
            is_whole_or_none(out, expected)
        else:
            seen.add("old" if contents(out)["manifest.json"] == old_contents["manifest.json"] else "new")
            assert list(Store.open(out).verify(deep=True))
        small_prepare(out, overwrite=True)
        assert contents(out) == expected
        shutil.rmtree(out)
    assert seen == {"old", "none", "new"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_disk_refuses_every_call(tmp_path, small_prepare, whole, number):
    expected, calls = whole

    def refuse(name: str, args: tuple) -> None:
        raise OSError(number, os.strerror(number))

    for at in range(len(calls)):
        out = tmp_path / f"out{at}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "os", WatchedSystem(refuse, at))
            with pytest.raises(DiskError) as caught:
                small_prepare(out)
        assert str(tmp_path) in str(caught.value)
        assert ("the disk is full" if number == errno.ENOSPC else "input/output error") in str(caught.value)
        assert "\n" not in str(caught.value)
        is_whole_or_none(out, expected)
        assert temporary_files(tmp_path) == []
        # what stays is of use to the next run
        assert not out.exists() or (out / "manifest.json").exists() or list(out.glob("shard-*.json"))
        small_prepare(out)
        assert contents(out) == expected
        shutil.rmtree(out)
        (tmp_path / f"{out.name}.bad-rows.jsonl").unlink()


@pytest.mark.parametrize("at", [5, 30])
def test_interrupted_by_hand(tmp_path, small_prepare, whole, at):
    def interrupt(name: str, args: tuple) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", WatchedSystem(interrupt, at))
        with pytest.raises(KeyboardInterrupt):
            small_prepare(out)
    assert temporary_files(tmp_path) == []
    assert not (out / "manifest.json").exists()
    assert contents(small_prepare(out).path) == whole[0]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    class ShortWrites:
        def __getattr__(self, name: str):
            return (lambda fd, data: os.write(fd, data[:7])) if name == "write" else getattr(os, name)

    monkeypatch.setattr(files, "os", ShortWrites())
    crc32 = files.write_committed(tmp_path / "a", bytes(range(100)))
    monkeypatch.undo()
    import zlib

    assert (tmp_path / "a").read_bytes() == bytes(range(100))
    assert crc32 == zlib.crc32(bytes(range(100)))


def test_unwritable_folder(small_prepare, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="a part of the path is not a folder"):
        small_prepare(tmp_path / "file" / "out")
