import errno
import os

import pytest
import torch

from penstock.engine.errors import DiskError, RunError
from penstock.engine.training.checkpoint import export_best, read_state, write_checkpoint


def save(text):
    def save_model(folder):
        (folder / "config.json").write_text(text)
        (folder / "model.safetensors").write_text(text * 3)

    return save_model


def checkpoints(run):
    return sorted(entry.name for entry in (run / "checkpoints").iterdir())


def test_links_lead_to_the_newest_and_the_rest_is_removed(tmp_path):
    write_checkpoint(tmp_path, 1, save("a"), None, ["best"])
    write_checkpoint(tmp_path, 2, save("b"), {"step": 2}, ["last"])
    write_checkpoint(tmp_path, 3, save("c"), {"step": 3}, ["last"])
    assert checkpoints(tmp_path) == ["step-00000001", "step-00000003"]
    assert (tmp_path / "best" / "config.json").read_text() == "a"
    assert (tmp_path / "last" / "config.json").read_text() == "c"
    assert read_state(tmp_path) == {"step": 3}


def test_a_step_that_is_passed_twice(tmp_path):
    write_checkpoint(tmp_path, 1, save("a"), {"x": 1}, ["best", "last"])
    write_checkpoint(tmp_path, 1, save("b"), {"x": 2}, ["last"])
    assert (tmp_path / "best" / "config.json").read_text() == "a"
    assert (tmp_path / "last" / "config.json").read_text() == "b"


def test_a_copied_run_keeps_its_links(tmp_path):
    import shutil

    write_checkpoint(tmp_path / "run", 1, save("a"), None, ["best", "last"])
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert (tmp_path / "moved" / "last" / "config.json").read_text() == "a"


@pytest.mark.parametrize("kind", ["os", "library"])
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, kind):
    write_checkpoint(tmp_path, 1, save("a"), {"x": 1}, ["last"])

    def fail(folder):
        (folder / "config.json").write_text("half")
        full = os.strerror(errno.ENOSPC)
        raise OSError(errno.ENOSPC, full) if kind == "os" else RuntimeError(f"I/O error: {full} (os error 28)")

    with pytest.raises(DiskError, match=r"cannot write .*No space left"):
        write_checkpoint(tmp_path, 2, fail, {"x": 2}, ["last"])
    assert checkpoints(tmp_path) == ["step-00000001"]
    assert read_state(tmp_path) == {"x": 1}


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs, no clean-up either."""


@pytest.mark.parametrize("links", [["last"], ["best", "last"]])
def test_a_kill_before_any_system_call_leaves_a_whole_checkpoint(tmp_path, monkeypatch, links):
    """`last` is one of the two, whole, whichever call the process dies at."""
    calls = ("rename", "replace", "fsync", "symlink", "mkdir", "unlink", "rmdir")
    real = {name: getattr(os, name) for name in calls}
    died = 0
    for count in range(1, 200):
        run = tmp_path / str(count)
        write_checkpoint(run, 1, save("a"), {"x": 1}, ["best", "last"])
        left = [count]

        def dying(name, left=left):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] <= 0:
                    raise Killed
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(os, name, dying(name))
            try:
                write_checkpoint(run, 2, save("b"), {"x": 2}, links)
            except Killed:
                died += 1
            else:
                break
        found = read_state(run)
        assert found in ({"x": 1}, {"x": 2})
        text = {1: "a", 2: "b"}[found["x"]]
        assert (run / "last" / "config.json").read_text() == text
        assert (run / "last" / "model.safetensors").read_text() == text * 3
        assert (run / "best" / "config.json").exists()
        # what the dead process left does not disturb the next one
        write_checkpoint(run, 3, save("c"), {"x": 3}, ["best", "last"])
        assert checkpoints(run) == ["step-00000003"]
    assert died > 8


def test_a_damaged_state(tmp_path):
    write_checkpoint(tmp_path, 1, save("a"), {"x": torch.arange(1000)}, ["last"])
    file = tmp_path / "last" / "training_state.pt"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(RunError, match="is damaged"):
        read_state(tmp_path)


def test_no_state(tmp_path):
    assert read_state(tmp_path) is None


def test_the_best_model_lies_in_the_run_itself(tmp_path):
    write_checkpoint(tmp_path, 1, save("a"), {"x": 1}, ["best", "last"])
    export_best(tmp_path)
    export_best(tmp_path)
    assert (tmp_path / "config.json").read_text() == "a"
    assert (tmp_path / "config.json").samefile(tmp_path / "best" / "config.json")
    assert not (tmp_path / "training_state.pt").exists()
