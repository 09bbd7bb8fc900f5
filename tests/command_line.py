"""The command line on file descriptors of its own, in this process: what a shell sees, without a start of Python's."""

import contextlib
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engine import cli


@dataclass(frozen=True)
class Finished:
    returncode: int
    stdout: str
    stderr: str
    raw: bytes  # what was written to stdout


@contextlib.contextmanager
def _descriptors(files: dict[int, Any]) -> Iterator[None]:
    """0, 1 and 2, and `sys.stdin`, `stdout` and `stderr` on them."""
    names = ("stdin", "stdout", "stderr")
    before = {number: (os.dup(number), getattr(sys, names[number])) for number in files}
    try:
        for number, file in files.items():
            os.dup2(file.fileno(), number)
            raw = io.FileIO(number, "w" if number else "r", closefd=False)
            buffered = io.BufferedWriter(raw) if number else io.BufferedReader(raw)
            setattr(sys, names[number], io.TextIOWrapper(buffered, encoding="utf-8", line_buffering=number == 2))
        yield
    finally:
        for number, (descriptor, stream) in before.items():
            with contextlib.suppress(ValueError):
                getattr(sys, names[number]).flush()
            os.dup2(descriptor, number)
            os.close(descriptor)
            setattr(sys, names[number], stream)


def penstock(*arguments: Any, stdin: bytes | Path = b"", append_to: Path | None = None) -> Finished:
    """Runs `penstock` with these arguments.

    Args:
        stdin: a pipe's content, or the file that stdin is. append_to: the file that stdout is (a shell's `>>`).
    """
    given = sys.argv
    with contextlib.ExitStack() as stack:
        source, out, error = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        if isinstance(stdin, Path):
            source = stack.enter_context(stdin.open("rb"))
        else:
            source.write(stdin)
            source.seek(0)
        if append_to is not None:
            out = stack.enter_context(append_to.open("ab+"))
        sys.argv = ["penstock", *map(str, arguments)]
        code: Any = 0
        try:
            with _descriptors({0: source, 1: out, 2: error}):
                try:
                    cli.main()
                except SystemExit as exit:
                    code = exit.code or 0
                except Exception:
                    traceback.print_exc()
                    code = 1
        finally:
            sys.argv = given
        written = []
        for file in (out, error):
            file.seek(0)
            written.append(file.read())
    return Finished(code, written[0].decode(errors="replace"), written[1].decode(errors="replace"), written[0])
