"""The texts to classify: a source, or what comes from a pipe."""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.engine.data.progress import print_line
from penstock.engine.data.sources import PLAIN_READING, Reading, Source
from penstock.engine.errors import ConfigError, SourceError
from penstock.engine.files import disk_errors
from penstock.engine.training.run_record import open_like_training

PIPE_FORMATS = ("csv", "tsv", "jsonl", "txt", "parquet")


@contextmanager
def opened_for_predicting(
    name: str, format: str | None, data: dict[str, Any], text: str | None, reading: Reading = PLAIN_READING
) -> Iterator[list[Source]]:
    """Opens sources for texts alone. What comes from a pipe is copied to a temporary file first: it is read twice.

    Args:
        name: as for `open_like_training`, or "-" for stdin.
        format: of a pipe: csv, tsv, jsonl, txt or parquet.
        data: the entry `data` of run.json.

    Raises:
        SourceError: it cannot be opened, or has no such column. ConfigError: a pipe without a format.
    """
    if not is_pipe(name):
        yield open_like_training(name, data, text=text, need_label=False, reading=reading)
        return
    shown = "stdin" if name == "-" else name
    if format not in PIPE_FORMATS:
        given = "say" if format is None else f"--format {format}: unknown; say"
        raise ConfigError(f"{shown}: {given} what form it has: --format {'|'.join(PIPE_FORMATS)}")
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        path = Path(folder) / f"texts.{format}"
        with disk_errors(path), open(path, "wb") as copy:
            if name == "-":
                shutil.copyfileobj(sys.stdin.buffer, copy, 1 << 20)
            else:
                with open(name, "rb") as pipe:
                    shutil.copyfileobj(pipe, copy, 1 << 20)

        def say(line: str) -> None:
            print_line(line.replace(str(path), shown))

        try:
            (source,) = open_like_training(str(path), data, text=text, need_label=False, reading=reading, say=say)
        except SourceError as error:
            raise SourceError(str(error).replace(str(path), shown)) from None
        source.name = shown
        yield [source]


def is_pipe(name: str) -> bool:
    """Whether a source is stdin or another pipe, whose form nothing says."""
    if name == "-":
        return True
    try:
        mode = os.stat(name).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
