"""File systems that lack something: the same result, and one line that says what is lost."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.engine import files
from penstock.engine.data.prepare import prepare
from penstock.engine.errors import DiskError, RunError
from penstock.engine.files import FolderLock, committed, link_or_copy, point, settle_pointer
from penstock.engine.study.directory import claim
from penstock.engine.training.settings import load_settings
from penstock.engine.training.train import train

SETTINGS = ("model.hidden_size=2", "model.embedding_size=2", "data.tokens_per_batch=64", "training.epochs=2")


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(files, "_warned", set())


def test_a_link_made_again_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("text")
    for _ in range(2):  # the second time they are one file already, and renaming does nothing
        link_or_copy(tmp_path / "source", tmp_path / "target")
        assert sorted(os.listdir(tmp_path)) == ["source", "target"]
    assert (tmp_path / "target").read_text() == "text"


def failing(number: int) -> Callable:
    def fail(*args, **options):
        raise OSError(number, os.strerror(number))

    return fail


def no_folder_fsync(number: int) -> Callable:
    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    return fail


LACKS = {
    **{("locks", one): [(fcntl, "flock", failing(one))] for one in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)},
    **{
        ("links", one): [(os, "symlink", failing(one)), (os, "link", failing(one))]
        for one in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
    },
    **{("fsync", one): [(os, "fsync", no_folder_fsync(one))] for one in (errno.EINVAL, errno.ENOSYS, errno.EBADF)},
}
SAID = {"locks": "has no locks", "links": "has no symbolic links", "fsync": "forces nothing to the disk"}


def work(folder: Path) -> tuple[bytes, bytes, object]:
    """Data, a run that is stopped and goes on, and a study's folder."""
    folder.mkdir()
    (folder / "texts.csv").write_text("text,label\n" + "".join(f"word{i % 7} film,{'ab'[i % 2]}\n" for i in range(60)))
    store = prepare(str(folder / "texts.csv"), folder / "store", tokenizer="train:wordpiece:100", progress=False)
    train(load_settings(None, [*SETTINGS, "training.epochs=1"]), store, folder / "run", progress="none")
    result = train(load_settings(None, SETTINGS), store, folder / "run", progress="none")
    with claim(folder / "study", {"train": "x"}):
        pass
    weights = [(folder / "run" / name / "model.safetensors").read_bytes() for name in ("last", "best")]
    return weights[0], weights[1], result.validation


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return work(tmp_path_factory.mktemp("whole") / "work")


@pytest.mark.parametrize("lack", LACKS, ids=lambda lack: f"{lack[0]}-{errno.errorcode[lack[1]]}")
def test_a_file_system_without(lack, expected, tmp_path, monkeypatch, capsys):
    for owner, name, fail in LACKS[lack]:
        monkeypatch.setattr(owner, name, fail)
    assert work(tmp_path / "work") == expected
    said = [line for line in capsys.readouterr().err.splitlines() if "the file system of" in line]
    assert len(said) == 1, said
    assert SAID[lack[0]] in said[0]
    assert not [path for path in (tmp_path / "work").rglob("*") if path.name.endswith((".tmp", ".old", ".writing"))]


@pytest.mark.parametrize("name", ["flock", "fsync", "symlink"])
def test_other_errors_are_errors(name, tmp_path, monkeypatch):
    """The disk's own are never taken for a lack."""
    monkeypatch.setattr(fcntl if name == "flock" else os, name, failing(errno.EIO))
    if name == "flock":
        with pytest.raises(OSError, match="Input/output"):
            FolderLock(tmp_path, RunError("busy"))
    elif name == "fsync":
        with pytest.raises(DiskError, match="input/output error"), committed(tmp_path / "file") as file:
            file.write(b"x")
    else:
        (tmp_path / "target").mkdir()
        with pytest.raises(OSError, match="Input/output"):
            point(tmp_path / "last", tmp_path / "target")


@pytest.mark.parametrize("links", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_a_pointer_of_either_kind_replaces_either(links, tmp_path, monkeypatch):
    for number, has_links in enumerate(links):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_text(str(number))
        with monkeypatch.context() as patch:
            if not has_links:
                patch.setattr(os, "symlink", failing(errno.EPERM))
            point(tmp_path / "last", tmp_path / str(number))
        assert (tmp_path / "last" / "file").read_text() == str(number)
        assert (tmp_path / "last").is_symlink() == has_links
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "last"]


def test_a_kill_between_two_names_loses_nothing(tmp_path, monkeypatch):
    """Killed after each rename in turn."""
    monkeypatch.setattr(os, "symlink", failing(errno.EPERM))
    replace = os.replace
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_text(str(number))
    for after in range(4):
        point(tmp_path / "last", tmp_path / "0")
        done = []

        def dies(*args, done=done, after=after):
            if len(done) == after:
                raise KeyboardInterrupt
            done.append(args)
            return replace(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dies)
            with contextlib.suppress(KeyboardInterrupt):
                point(tmp_path / "last", tmp_path / "1")
        settle_pointer(tmp_path / "last")
        assert (tmp_path / "last" / "file").read_text() in "01"
