"""A disk that becomes full at any moment of a run: one line, exit code 9, and what was written before stands."""

import subprocess

import pytest
from command_line import penstock

SETTINGS = ["model.hidden_size=32", "model.embedding_size=32", "training.precision=fp32", "training.max_steps=8"]
SETTINGS += ["training.checkpoint_every_steps=2", "training.evaluate_every_steps=3", "data.tokens_per_batch=256"]


@pytest.mark.slow
@pytest.mark.parametrize("tensorboard", ["false", "true"])
def test_a_disk_of_every_size(store, disk, tmp_path, tensorboard):
    settings = [*SETTINGS, f"training.tensorboard={tensorboard}"]
    enough = False
    for kilobytes in (4, 16, 40, *range(64, 1200, 92)):
        run = disk(kilobytes << 10) / "run"
        finished = penstock("train", "--train", store.path, "--out", run, *settings)
        lines = finished.stderr.strip().splitlines()
        assert "Traceback" not in finished.stderr, f"{kilobytes} KiB: {finished.stderr}"
        assert finished.returncode in (0, 9), f"{kilobytes} KiB: {finished.stderr}"
        if finished.returncode == 9:
            assert not enough
            assert lines[-1].startswith("penstock: cannot write ")
            assert sum(line.startswith("penstock: ") for line in lines) == 1
            if (run / "last").exists():
                # with room it goes on from the last whole checkpoint
                subprocess.run(["mount", "-o", "remount,size=4m", run.parent], check=True)
                assert penstock("train", "--out", run).returncode == 0, kilobytes
        else:
            enough = True
    assert enough
