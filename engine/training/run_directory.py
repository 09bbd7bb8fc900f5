"""The folder of a run: what it is, whether it is done, and its metrics.

config.yaml      the resolved settings
run.json         identity (settings, data), status, versions, result
metrics.jsonl    one line per logged step, evaluation or epoch's plan (fill, balance)
checkpoints/     see checkpoint.py; best/ and last/ lead into it
config.json, model.safetensors, tokenizer.json ...   the best model, once the run is complete
"""

import fcntl
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
import transformers

from penstock.engine.errors import RunError
from penstock.engine.training.files import disk_errors, write_json, write_text
from penstock.engine.training.run_record import read_record


class RunDirectory:
    """A run directory. A context manager: it gives the lock back.

    Attributes:
        record: the contents of run.json, once claimed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = {}
        self._lock: IO[str] | None = None

    def claim(self, identity: Mapping[str, Any], config: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Creates the directory, or finds the same run in it, and locks it; returns its record.

        Args:
            identity: flat JSON mapping of what decides the run's result.
            config: the text of config.yaml. data: how the training data was prepared.

        Raises:
            RunError: the directory holds another run or something else, or another process trains in it.
            DiskError: it cannot be written.
        """
        path = self.path
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file: give a directory for the run")
        if path.is_dir() and not (path / "run.json").exists() and _foreign(path):
            raise RunError(f"{path} is not empty and holds no run: give another --out")
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
            if (path / "run.json").exists():
                self.record = read_record(path)
                _check_same(path, self.record.get("identity", {}), identity)
            else:
                self.record = {"format": 1, "status": "running", "identity": dict(identity), "data": dict(data)}
                self.record["versions"] = _versions()
                write_text(path / "config.yaml", config)
                write_json(path / "run.json", self.record)
        return self.record

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock:
            self._lock.close()

    @property
    def is_complete(self) -> bool:
        return self.record["status"] == "complete"

    def update(self, **entries: Any) -> None:
        self.record.update(entries)
        with disk_errors(self.path / "run.json"):
            write_json(self.path / "run.json", self.record)


class MetricsLog:
    """metrics.jsonl: appended line by line; `offset` lets a resumed run forget the lines after its checkpoint."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._file = open(path, "a")  # noqa: SIM115 -- closed by close()
        self._file.truncate(offset)

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> int:
        """Forces the lines to the disk and returns their size in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


def _lock(path: Path) -> IO[str]:
    lock = open(path / ".lock", "w")  # noqa: SIM115 -- held as long as the run is open
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RunError(f"{path} is in use by another process: wait for it or give another --out") from None
    return lock


def _foreign(path: Path) -> bool:
    return any(name not in (".lock", "config.yaml", ".config.yaml.tmp", ".run.json.tmp") for name in os.listdir(path))


def _check_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for key in [*here, *there]:
        if there.get(key) != here.get(key):
            raise RunError(
                f"{path} holds another run: {key} is {there.get(key)!r} there and {here.get(key)!r} here; "
                "give another --out"
            )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
