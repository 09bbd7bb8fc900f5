"""Where metrics go besides metrics.jsonl."""

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penstock.engine.errors import ConfigError
from penstock.engine.files import disk_errors
from penstock.engine.training.settings import Settings

Tracker = Callable[[Mapping[str, Any]], None]


def open_trackers(settings: Settings, run: Path, step: int) -> list[tuple[Tracker, Callable[[], None]]]:
    """(log a record, close) for TensorBoard where it is installed and for W&B where a project is set.

    Args:
        step: the one the run goes on from; what was logged after it is dropped.

    Raises:
        ConfigError: a W&B project is set and wandb is not installed. DiskError: TensorBoard's files cannot be written.
    """
    trackers: list[tuple[Tracker, Callable[[], None]]] = []
    if settings.training.tensorboard and importlib.util.find_spec("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        with disk_errors(folder, libraries=True):
            writer = SummaryWriter(str(folder), purge_step=step + 1)

        def to_tensorboard(record: Mapping[str, Any]) -> None:
            with disk_errors(folder, libraries=True):
                for name, value in _scalars(record):
                    writer.add_scalar(name, value, record["step"])

        def close_tensorboard() -> None:
            with disk_errors(folder, libraries=True):
                writer.close()

        trackers.append((to_tensorboard, close_tensorboard))
    if settings.training.wandb_project:
        if not importlib.util.find_spec("wandb"):
            raise ConfigError(
                "training.wandb_project is set, but wandb is not installed: pip install 'penstock[tracking]'"
            )
        import wandb

        # the run's place names it, so that a resumed run goes on in the same record
        session = wandb.init(
            project=settings.training.wandb_project,
            id=hashlib.blake2b(str(run.resolve()).encode(), digest_size=8).hexdigest(),
            name=run.name,
            dir=str(run),
            config=settings.flat(),
            resume="allow",
        )
        trackers.append((lambda record: session.log(dict(_scalars(record)), step=record["step"]), session.finish))
    return trackers


def _scalars(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    times = {f"time/{phase}": seconds for phase, seconds in record.get("time", {}).items()}
    return [
        (f"{record['split']}/{name}", float(value))
        for name, value in {**record, **times}.items()
        if name not in ("split", "step", "best") and isinstance(value, (int, float))
    ]
