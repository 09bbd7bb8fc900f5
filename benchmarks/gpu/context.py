"""What a part of the benchmark knows, and how it reports."""

import json
import math
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

# A part's lines: a row of its results; what it is about to call and for how long that may take; a cell that is
# finished. Every other line goes to the log.
ROW, AT, DONE = "@row ", "@at ", "@done "
PATIENCE = 30.0  # seconds for one call, and what it compiles, before it counts as hanging

NO_GPU, WRONG, FAILED = 11, 12, 13  # exit codes; those below are the command line's own


_writing = threading.Lock()


class WrongResultError(Exception):
    """A kernel's result is not what it must be: nothing of it may be timed."""


def key(operation: str, contestant: str) -> str:
    """By what a contestant of an operation is switched off: "lstm/cuda", "lstm/cudnn packed fp16"."""
    return f"{operation}/{contestant.removeprefix('penstock ')}"


@dataclass
class Context:
    """Handed from the command to each part's process, as JSON.

    Attributes:
        smoke: no GPU: tiny sizes on the CPU, only to run every line.
        deadline: by time.monotonic(), which all processes of a machine share: the part should end before it.
        rates: "bytes" and one for each of "bf16", "fp16", "tf32": the machine's ceilings a second, once measured.
        tested: "operation/backend" of the GPU kernels whose correctness tests have passed in this run.
        without: backends that are left out.
        checkouts: where the sources of peers lie that no package brings.
        scratch: a folder for what is built on the way.
        operations: those that the parts behind the tests call; none for all.
        off: {key of a contestant: why it is not called any more in this run}.
        done: the cells that this part has finished before it had to begin again.
    """

    smoke: bool
    deadline: float
    scratch: str
    rates: dict[str, float] = field(default_factory=dict)
    tested: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    checkouts: dict[str, str] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    off: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.smoke else "cuda")

    @property
    def folder(self) -> Path:
        return Path(self.scratch)

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def share(self, cells: int) -> float:
        """Seconds for each of the `cells` that are left."""
        return max(0.0, self.left()) / max(1, cells)

    def rate(self, name: str) -> float:
        """One of `rates`; not a number where it could not be measured, and so is every fraction of it."""
        return self.rates.get(name, math.nan)

    def at(self, what: str = "", seconds: float = PATIENCE) -> None:
        """Says what is called next, a `key`: the part is ended, and begun again without it, if it takes longer."""
        _say(AT, {"what": what, "seconds": 0.5 * seconds if self.smoke else seconds})

    def switch_off(self, what: str, why: str) -> None:
        """A contestant gave a wrong result: neither this part nor a later one calls it."""
        self.off[what] = why
        emit(kind="wrong", off=what, what=why)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Context":
        return cls(**json.loads(text))


def emit(**row: Any) -> None:
    """Reports one row; from then on a crash cannot lose it."""
    _say(ROW, row)


def finished(cell: str) -> None:
    """A part that begins again leaves this cell out."""
    _say(DONE, cell)


def _say(prefix: str, content: Any) -> None:
    with _writing:
        sys.stdout.write(prefix + json.dumps(content) + "\n")
        sys.stdout.flush()


def reason(error: BaseException) -> str:
    """The first line of an error's message, for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
