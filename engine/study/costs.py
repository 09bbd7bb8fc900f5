"""What a model costs to keep and to ask: parameters, bytes on the disk and in memory, latency, texts a second."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from penstock.engine.checked import read_checked, write_checked
from penstock.engine.errors import RunError
from penstock.engine.machine import is_busy
from penstock.engine.records import read_record
from penstock.engine.study.fingerprints import MadeFrom

BATCH_SIZES = (1, 32)


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        parameters: of the whole model; embedding_parameters: of its token embeddings alone.
        bytes_on_disk: of what a prediction needs besides the tokenizer.
        latency_ms, latency_p95_ms, latency_p99_ms: {batch size: the median, 95th and 99th percentile, in milliseconds,
            of one prediction for that many test texts, already tokenized}. A percentile that there were too few runs to
            tell is missing, and all but the median in files of an earlier penstock; so are the figures below.
        runs: {batch size: predictions measured}.
        device, threads: what it ran on.
        texts_per_second: from raw texts to labels, tokenizing included; texts: how many it was measured on.
        memory_bytes: the most that the process held while it predicted, Python and its libraries included.
        others: how many cores other processes kept busy meanwhile; None where the system does not tell.
        made_from: fingerprints of the stores, the model's settings and the encoder; None from an earlier penstock.
    """

    family: str
    parameters: int
    embedding_parameters: int
    bytes_on_disk: int
    latency_ms: dict[int, float]
    runs: dict[int, int]
    device: str
    threads: int
    made_from: MadeFrom | None = None
    latency_p95_ms: dict[int, float] = field(default_factory=dict)
    latency_p99_ms: dict[int, float] = field(default_factory=dict)
    texts_per_second: float | None = None
    texts: int = 0
    memory_bytes: int | None = None
    others: float | None = None

    @property
    def busy(self) -> bool:
        """Whether other processes took a share of the machine that spoils the figures."""
        return is_busy(self.others)


def write_cost(path: Path, cost: Cost) -> None:
    write_checked(path, dataclasses.asdict(cost))


def read_cost(path: Path) -> Cost:
    """
    Raises:
        RunError: the file does not hold a cost.
    """
    try:
        return read_record(Cost, read_checked(path))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a measurement of costs ({error}); remove it to measure again") from None
