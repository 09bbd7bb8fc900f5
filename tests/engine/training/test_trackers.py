import importlib.util
import sys
import types

import pytest

from penstock.engine.errors import ConfigError
from penstock.engine.training.settings import load_settings
from penstock.engine.training.trackers import open_trackers

RECORD = {"split": "train", "step": 3, "loss": 0.5, "mfu": None, "best": False}


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [(log, close)] = open_trackers(load_settings(), tmp_path, 0)
    log(RECORD)
    close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.5)]
    assert events.Tags()["scalars"] == ["train/loss"]


def test_tensorboard_gets_the_records_and_drops_those_after_the_step(tmp_path, monkeypatch):
    """Without TensorBoard itself."""
    made = []

    class Writer:
        def __init__(self, folder, purge_step):
            made.append((folder, purge_step))

        def add_scalar(self, *values):
            made.append(values)

        def close(self):
            made.append("closed")

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorboard" or find_spec(name))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    [(log, close)] = open_trackers(load_settings(), tmp_path, 7)
    log(RECORD)
    close()
    assert made == [(str(tmp_path / "tensorboard"), 8), ("train/loss", 0.5, 3), "closed"]


def test_nothing_unless_wanted(tmp_path):
    assert open_trackers(load_settings(None, ["training.tensorboard=false"]), tmp_path, 0) == []


def test_wandb_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb is not installed: pip install"):
        open_trackers(load_settings(None, ["training.wandb_project=p"]), tmp_path, 0)


def test_wandb_gets_the_records_and_the_same_run_again(tmp_path, monkeypatch):
    begun, logged = [], []

    class Session:
        def log(self, values, step):
            logged.append((values, step))

        def finish(self):
            logged.append("finished")

    def init(**arguments):
        begun.append(arguments)
        return Session()

    module = types.ModuleType("wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "wandb")
    settings = load_settings(None, ["training.wandb_project=p"])
    for _ in range(2):
        [(log, close)] = open_trackers(settings, tmp_path, 0)
    log(RECORD)
    close()
    assert logged == [({"train/loss": 0.5}, 3), "finished"]
    assert begun[0]["id"] == begun[1]["id"]
    assert (begun[0]["project"], begun[0]["config"]["training.seed"]) == ("p", 0)
