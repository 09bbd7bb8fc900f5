"""What a part of the benchmark knows, and how it reports."""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

ROW = "@row "  # a child's line that begins so is a row of its part; every other line goes to the log

NO_GPU, WRONG, FAILED = 11, 12, 13  # exit codes; those below are the command line's own


class WrongResultError(Exception):
    """A kernel's result is not what it must be: nothing of it may be timed."""


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
    """

    smoke: bool
    deadline: float
    scratch: str
    rates: dict[str, float] = field(default_factory=dict)
    tested: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    checkouts: dict[str, str] = field(default_factory=dict)
    tests: str = ""

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

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Context":
        return cls(**json.loads(text))


def emit(**row: Any) -> None:
    """Reports one row; from then on a crash cannot lose it."""
    sys.stdout.write(ROW + json.dumps(row) + "\n")
    sys.stdout.flush()


def reason(error: BaseException) -> str:
    """The first line of an error's message, for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
