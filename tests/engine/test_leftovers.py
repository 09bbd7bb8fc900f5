"""What killed processes leave behind is cleared by the next one, and a folder is never removed in part."""

import os
import shutil
from pathlib import Path

import pytest

from penstock.engine import files
from penstock.engine.errors import DiskError
from penstock.engine.files import remove_folder, remove_leftovers
from penstock.engine.study.directory import claim
from penstock.engine.training.checkpoint import clear_leftovers, write_checkpoint

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
    clear_leftovers(tmp_path, found)
    assert {f"checkpoints/{name}" for name in os.listdir(tmp_path / "checkpoints")} == kept
    assert sorted(os.listdir(tmp_path)) == ["best", "checkpoints", "last"]


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
