"""What a run writes has the modes that the umask leaves, whatever those of its sources."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from penstock.engine.data.store import Store
from penstock.engine.training.settings import load_settings
from penstock.engine.training.train import train

OVERRIDES = ["model.hidden_size=8", "model.embedding_size=8", "training.tensorboard=false", "training.calibrate=true"]
OVERRIDES += ["training.checkpoint_every_steps=1", "data.tokens_per_batch=1000"]


def train_and_go_on(store, run):
    for steps in (2, 4):
        settings = load_settings(None, [*OVERRIDES, f"training.max_steps={steps}"])
        train(settings, Store.open(store), run, progress="none")


@pytest.fixture
def read_only(store, tmp_path):
    """A store that nobody may write to, its folders included."""
    copy = tmp_path / "read-only"
    shutil.copytree(store.path, copy)
    for folder, _, names in os.walk(copy):
        for name in names:
            os.chmod(os.path.join(folder, name), 0o444)
        os.chmod(folder, 0o555)
    os.chmod(tmp_path, 0o755)
    yield copy
    for folder, _, _ in os.walk(copy):
        os.chmod(folder, 0o755)


@pytest.fixture
def open_folder():
    """A folder that other users reach; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_every_file_of_a_run(tmp_path, read_only, mask):
    run = tmp_path / "run"
    before = os.umask(mask)
    try:
        train_and_go_on(read_only, run)
    finally:
        os.umask(before)
    found = [run, *run.rglob("*")]
    names = {path.name for path in found}
    assert {"model.safetensors", "tokenizer.json", "training_state.pt", "run.json", "metrics.jsonl"} <= names
    for path in found:
        if not path.is_symlink():
            mode = (0o777 if path.is_dir() else 0o666) & ~mask
            assert path.stat().st_mode & 0o7777 == mode, f"{path} has {path.stat().st_mode & 0o7777:o}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another user's place")
def test_another_users_read_only_store(tmp_path, open_folder, read_only, monkeypatch):
    """Checkpoint after checkpoint, by somebody for whom modes count."""
    shutil.copytree(read_only, open_folder / "store")
    os.chown(open_folder, 65534, 65534)
    train_and_go_on(read_only, tmp_path / "first")  # what is imported late may be closed to the other user
    monkeypatch.setenv("HOME", str(open_folder))
    monkeypatch.chdir(open_folder)
    os.seteuid(65534)
    try:
        train_and_go_on(open_folder / "store", open_folder / "run")
        assert {path.stat().st_uid for path in (open_folder / "run").rglob("*")} == {65534}
    finally:
        os.seteuid(0)


def test_what_an_earlier_version_left_write_protected_is_removed(open_folder):
    from penstock.engine.files import remove_tree

    tmp_path = open_folder
    folder = tmp_path / "checkpoints" / ".writing" / "tokenizer"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    for path in (folder, folder.parent):
        os.chmod(path, 0o555)
    if os.geteuid():
        remove_tree(tmp_path / "checkpoints")
    else:
        os.chown(tmp_path, 65534, -1)
        for path in tmp_path.rglob("*"):
            os.chown(path, 65534, -1)
        os.seteuid(65534)
        try:
            remove_tree(tmp_path / "checkpoints")
        finally:
            os.seteuid(0)
    assert not (tmp_path / "checkpoints").exists()
