"""What killed processes leave behind is cleared by the next one, and a folder is never removed in part."""

import os
import shutil
from pathlib import Path

import pytest

from penstock.engine import files
from penstock.engine.errors import DiskError
from penstock.engine.files import remove_folder, remove_leftovers
from penstock.engine.study.directory import claim
from penstock.engine.training import checkpoint
from penstock.engine.training.checkpoint import clear_leftovers, write_checkpoint
from penstock.engine.training.resume import find_checkpoint, settle_links

HEX = "0123456789abcdef0123456789abcdef"
NAMES = [f"run.json.{HEX}.tmp", f"model.safetensors.{HEX}.tmp", ".model.safetensors.tmp", ".last.tmp", ".step-3.tmp"]
OTHERS = ["notes.tmp", f"run.json.{HEX[:-1]}.tmp", ".tmp", "run.json", ".hidden"]


def leave(folder: Path, name: str, kind: str) -> None:
    if kind == "folder":
        (folder / name / "inner").mkdir(parents=True)
        (folder / name / "inner" / "file").write_text("x")
    elif kind == "link":
        (folder / name).symlink_to("nowhere")
    else:
        (folder / name).write_text("x")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_whatever_it_is_it_goes_and_nothing_else(tmp_path, kind):
    for name in (*NAMES, *OTHERS):
        leave(tmp_path, name, kind)
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(OTHERS)


def save(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("links", [["last"], ["best", "last"], ["best"]])
def test_a_run_that_goes_on(tmp_path, links):
    """Checkpoints that no link leads to, later than the one that is gone on from, are made again."""
    write_checkpoint(tmp_path, 1, save, {"x": 1}, ["best", "last"])
    found = (tmp_path / "last").resolve()
    write_checkpoint(tmp_path, 2, save, {"x": 2}, links, keep=9)
    shutil.copytree(found, tmp_path / "checkpoints" / "step-00000003")  # whole, but killed before its links
    kept = {os.readlink(tmp_path / name) for name in ("best", "last")} | {f"checkpoints/{found.name}"}
    for folder in (tmp_path, tmp_path / "checkpoints"):
        for name in NAMES:
            leave(folder, name, "file")
    leave(tmp_path / "checkpoints", ".writing", "folder")
    clear_leftovers(tmp_path, found, keep=9)
    assert {f"checkpoints/{name}" for name in os.listdir(tmp_path / "checkpoints")} == kept
    assert sorted(os.listdir(tmp_path)) == ["best", "checkpoints", "last"]


class Dead(BaseException):
    pass


class Mortal:
    """Stands in for an os: before its n-th call that changes the disk the process dies, and changes nothing more."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __getattr__(self, name: str):
        function = getattr(os, name)
        if name not in ("rename", "replace", "symlink", "link", "fsync"):
            return function

        def call(*arguments, **options):
            self.calls += 1
            if self.calls > self.at:
                raise Dead
            return function(*arguments, **options)

        return call


STEPS = {1: ["best", "last"], 2: ["last"], 3: ["best", "last"], 4: ["last"], 5: ["last"]}


def go_on(run: Path, keep: int) -> None:
    """Writes the checkpoints that are not there."""
    found = None if not run.exists() else find_checkpoint(run, sealed=True, say=print)
    if run.exists():
        settle_links(run, found)
        clear_leftovers(run, None if found is None else found.folder, keep)
    for step, links in STEPS.items():
        if found is None or step > found.step:
            write_checkpoint(run, step, save, {"x": step}, links, keep=keep, log=[0, None])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_whatever_the_moment_the_same_checkpoints_are_left(tmp_path, monkeypatch, keep):
    go_on(tmp_path / "whole", keep)
    at, ended = 0, False
    while not ended:
        mortal = Mortal(at)
        run = tmp_path / f"killed-{at}"
        with monkeypatch.context() as patch:
            for module in (files, checkpoint):
                patch.setattr(module, "os", mortal)
            try:
                go_on(run, keep)
                ended = True
            except Dead:
                pass
        go_on(run, keep)
        left, wanted = (
            {str(path.relative_to(one)) for path in one.rglob("*")} | {os.readlink(one / "best")}
            for one in (run, tmp_path / "whole")
        )
        assert left == wanted, f"killed before call {at + 1}"
        at += 1
    assert at > 40


def test_a_study_that_goes_on(tmp_path):
    claim(tmp_path / "study", {"x": 1}).close()
    folders = [tmp_path / "study", *(tmp_path / "study" / name for name in ("data", "costs", "trials", "runs"))]
    for folder in folders:
        for name in NAMES:
            leave(folder, name, "folder" if name.startswith(".step") else "file")
    claim(tmp_path / "study", {"x": 1}).close()
    assert not [path for path in (tmp_path / "study").rglob("*") if path.name in NAMES]


class Dies:
    """Stands in for shutil: the process ends before the n-th file is removed."""

    def __init__(self, after: int) -> None:
        self.after = after

    def rmtree(self, path: Path, ignore_errors: bool = False) -> None:
        for number, file in enumerate(sorted(Path(path).rglob("*"))):
            if number == self.after:
                raise KeyboardInterrupt
            if file.is_file():
                file.unlink()
        shutil.rmtree(path)


@pytest.mark.parametrize("after", range(3))
def test_a_folder_is_there_whole_or_gone(tmp_path, monkeypatch, after):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name)
    monkeypatch.setattr(files, "shutil", Dies(after))
    with pytest.raises(KeyboardInterrupt):
        remove_folder(folder)
    monkeypatch.undo()
    assert not folder.exists()
    folder.mkdir()
    remove_folder(folder)
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_go_is_named(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()

    def refuse(source, target):
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DiskError, match="permission denied"), files.disk_errors(tmp_path / "run"):
        remove_folder(tmp_path / "run")
