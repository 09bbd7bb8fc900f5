"""The folder of a run: what it is, whether it is done, and its metrics.

config.yaml      the resolved settings
run.json         identity (settings, data), status, versions, result, checksums of itself and of config.yaml
validation_rows.npy   int64, by which the best model was chosen
metrics.jsonl    one line per logged step, evaluation, checkpoint or epoch's plan (fill, balance); first, where the
                 lines before are gone, after which checkpoint it begins
checkpoints/     see checkpoint.py; best/ and last/ lead into it
config.json, model.safetensors, tokenizer.json ...   the best model, once the run is complete
"""

import io
import json
import os
import platform
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.checked import crc32_of, with_checksum
from penstock.engine.errors import RunError
from penstock.engine.files import (
    FolderLock,
    disk_errors,
    flush,
    remove_leftovers,
    remove_tree,
    settle_pointer,
    sync_folder,
    temporary_files,
    write_committed,
    write_json,
)
from penstock.engine.training.run_record import FORMAT, has_checkpoint, in_use, read_record

METRICS_NAME = "metrics.jsonl"
VALIDATION_NAME = "validation_rows.npy"
_OLD_TEMPORARY = (".config.yaml.tmp", ".run.json.tmp")  # what an earlier penstock wrote under


class RunDirectory:
    """A run directory. A context manager: it gives the lock back.

    Nothing is written before `create`, so that a start that fails leaves nothing behind; and a run without a checkpoint
    may be replaced by another one.

    Attributes:
        record: the contents of run.json; empty while there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = {}
        self._lock: FolderLock | None = None

    def open(self) -> dict[str, Any]:
        """Locks the run that is there, if there is one, and returns its record; an empty one otherwise.

        Raises:
            RunError: the path is something else than a run's, or another process trains in it.
        """
        check_out(self.path)
        if (self.path / "run.json").exists():
            with disk_errors(self.path):
                self._lock = _lock(self.path)
                for name in ("last", "best"):
                    settle_pointer(self.path / name)
            self.record = read_record(self.path)
        return self.record

    def create(
        self,
        identity: Mapping[str, Any],
        config: str,
        data: Mapping[str, Any],
        validation_rows: np.ndarray,
        **entries: Any,
    ) -> dict[str, Any]:
        """Makes the directory a new run's, in place of one that never came to a checkpoint; returns its record.

        Args:
            identity: flat JSON mapping of what decides the run's result.
            config: the text of config.yaml. data: how the training data was prepared.
            validation_rows: int64, of the training store. entries: others of the record.

        Raises:
            RunError: another process has begun to train in it.
            DiskError: it cannot be written.
        """
        path = self.path
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = _lock(path)
                if (path / "run.json").exists() and has_checkpoint(path):
                    raise RunError(f"another process has trained in {path} meanwhile: give another --out")
            _remove_beginning(path)
            self.record = {"format": FORMAT, "status": "running", "identity": dict(identity), "data": dict(data)}
            self.record |= {**entries, "versions": _versions(), "config": [zlib.crc32(config.encode())]}
            write_committed(path / VALIDATION_NAME, _npy(validation_rows))
            write_committed(path / "config.yaml", config)
            self._write()
        return self.record

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """
        Args:
            identity: of the run that is wanted; what an older version did not record is not compared.

        Raises:
            RunError: the run that is there is another one.
        """
        there = self.record.get("identity", {})
        for key, value in identity.items():
            if key in there and there[key] != value:
                raise another_run(self.path, key, there[key], value)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock:
            self._lock.close()

    @property
    def is_complete(self) -> bool:
        return self.record.get("status") == "complete"

    @property
    def has_checkpoint(self) -> bool:
        return bool(self.record) and has_checkpoint(self.path)

    @property
    def is_sealed(self) -> bool:
        """Whether all of its checkpoints have checksums; an earlier penstock gave them none."""
        return self.record.get("format") == FORMAT

    def update(self, config: str | None = None, **entries: Any) -> None:
        """Sets entries of the record and, if it is given, the text of config.yaml."""
        self.record.update(entries)
        file = self.path / "config.yaml"
        with disk_errors(file):
            if config is not None:
                # both count, so that whichever of the two is there after a kill is the run's
                self.record["config"] = [zlib.crc32(config.encode()), crc32_of(file)]
            self._write()
            if config is not None:
                write_committed(file, config)

    def note_places(self, places: Mapping[str, Any]) -> None:
        """Notes where the run's stores are by now: its own, at another place.

        Args:
            places: entries of the record's `data`.
        """
        data = self.record["data"]
        if any(data.get(key) != place for key, place in places.items()):
            self.update(data={**data, **places})

    def upgrade(self, **entries: Any) -> None:
        """Makes the record of an earlier penstock's run one with a checksum, once its checkpoints have theirs."""
        with disk_errors(self.path):
            self.record["config"] = [crc32_of(self.path / "config.yaml")]
        self.update(format=FORMAT, **entries)

    def _write(self) -> None:
        record = with_checksum(self.record) if self.is_sealed else self.record
        write_json(self.path / "run.json", record)


class MetricsLog:
    """metrics.jsonl: appended line by line; `offset` lets a resumed run forget the lines after its checkpoint.

    Attributes:
        crc32: of all its bytes.

    Raises:
        DiskError: it cannot be written.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        with disk_errors(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._descriptor, offset)
            self.crc32 = crc32_of(path)
            self._size = offset

    def write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        with disk_errors(self._path):
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        self._size += len(line)
        self.crc32 = zlib.crc32(line, self.crc32)

    def mark(self) -> tuple[int, int]:
        """The size in bytes and the CRC-32 of what has been written."""
        return self._size, self.crc32

    def sync(self) -> int:
        """Forces the lines to the disk and returns their size in bytes."""
        with disk_errors(self._path):
            flush(self._descriptor, self._path)
        return self._size

    def close(self) -> None:
        os.close(self._descriptor)


def check_out(path: Path) -> None:
    """
    Raises:
        RunError: the path cannot become a run's directory, and is none.
    """
    for parent in path.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise RunError(f"{parent} is a file: give a directory for the run")
            break
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file: give a directory for the run")
    if path.is_dir() and not (path / "run.json").exists() and _foreign(path):
        raise RunError(f"{path} is not empty and holds no run: give another --out")


def another_run(path: Path, key: str, there: Any, here: Any) -> RunError:
    return RunError(
        f"{path} holds another run: {key} is {_shown(there)} there and {_shown(here)} here; give another --out"
    )


def _shown(value: Any) -> str:
    """A value in a message; of a digest so much as tells two apart."""
    return f"{value[:8]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else repr(value)


def _lock(path: Path) -> FolderLock:
    return FolderLock(path, in_use(path), file=".lock")


def _foreign(path: Path) -> bool:
    ours = {".lock", "config.yaml", VALIDATION_NAME, *_OLD_TEMPORARY, *(file.name for file in temporary_files(path))}
    return not ours.issuperset(os.listdir(path))


def _remove_beginning(path: Path) -> None:
    """Removes what a run without a checkpoint has written, run.json after the rest: at any instant it is a run, or as
    good as empty."""
    if (path / "run.json").exists():
        for name in ("checkpoints", "tensorboard", "wandb"):
            remove_tree(path / name)
        for name in ("metrics.jsonl", "last", "best", "run.json"):
            (path / name).unlink(missing_ok=True)
        sync_folder(path)
    remove_leftovers(path)


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
