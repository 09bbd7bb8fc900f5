"""What a spawned process runs: it must find this file by its name, which it cannot do with a test's."""

import os
import signal
from typing import Any

import torch
from fabricated_study import stand_in
from torch import nn

from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.trials import TrialResult
from penstock.engine.training.signals import Interrupted
from penstock.kernels import Ragged


def serve(models: list[nn.Module], batch: Ragged, queue: Any) -> None:
    """Puts the logits of models that came from another process, without hooks and with one on each module."""
    torch.set_num_threads(1)
    with torch.no_grad():
        for model in models:
            first = model(batch).logits
            for module in model.modules():  # numbered from 0 in this process, as those that came along may be
                module.register_forward_hook(lambda *_: None)
            queue.put([first.tolist(), model(batch).logits.tolist()])


def dies_once(task: TrialTask) -> TrialResult:
    mark = task.run.parent.parent / "died"
    if task.trial.name == "lstm-100-0" and not mark.exists():
        mark.touch()
        os._exit(9)
    return stand_in(task)


def is_killed(task: TrialTask) -> TrialResult:
    if task.trial.name == "lstm-100-0":
        os.kill(os.getpid(), signal.SIGKILL)
    return stand_in(task)


def is_stopped(task: TrialTask) -> TrialResult:
    if task.trial.name == "lstm-100-0":
        raise Interrupted(signal.SIGTERM, task.run, 1)
    return stand_in(task)
