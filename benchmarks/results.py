"""A run's results.jsonl: the machine in the first line, then a line for each case, written as it ends."""

import json
import os
from pathlib import Path
from typing import Any

from penstock.engine.errors import ConfigError, DiskError
from penstock.engine.files import disk_errors

FILE = "results.jsonl"
FORMAT = 1


class Results:
    """Appends to OUT/results.jsonl; every line is on the disk when `add` returns, so that a kill leaves it.

    Raises:
        DiskError: the folder holds something, or cannot be written.
    """

    def __init__(self, out: Path, suite: str, machine: dict[str, Any]) -> None:
        self.path = out / FILE
        self.rows: list[dict[str, Any]] = []
        empty_folder(out)
        with disk_errors(self.path):
            self._file = self.path.open("x", encoding="utf-8")
        self._write({"format": FORMAT, "suite": suite, **machine})

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._write(row)

    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        with disk_errors(self.path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def empty_folder(out: Path) -> None:
    """Makes the folder if it is not there.

    Raises:
        DiskError: it holds something, or cannot be made or written.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise DiskError(f"{out} is not empty: choose another folder with --out")
    if not os.access(out, os.W_OK):
        raise DiskError(f"cannot write {out}: permission denied")


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine and the rows of an earlier run, given its folder or file; a line cut off by a kill is left out.

    Raises:
        ConfigError: there is none, or it is of something else.
    """
    file = path / FILE if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"{file}: no results to compare with: {reason}") from error
    parsed: list[Any] = []
    for number, line in enumerate(lines):
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines) - 1 or number == 0:
                raise ConfigError(f"{file}, line {number + 1}: no line of penstock bench's results") from None
    if not parsed or not isinstance(parsed[0], dict) or parsed[0].get("format") != FORMAT:
        raise ConfigError(f"{file}: no results of this version of penstock bench")
    parsed = [row for row in parsed if not (isinstance(row, dict) and {"failed", "skipped"} & row.keys())]
    if not all(isinstance(row, dict) and "case" in row and "seconds" in row for row in parsed[1:]):
        raise ConfigError(f"{file}: a line is no case of penstock bench's results")
    return parsed[0], parsed[1:]
