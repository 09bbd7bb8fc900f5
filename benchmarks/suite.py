"""What a benchmark suite is: cases, each with contestants that do the same work, the first of them penstock."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

OURS = "penstock"
DTYPES = ("float32", "bfloat16")
HONOURED = frozenset({"shape", "dtype", "isa", "threads", "peers", "rounds", "quick"})

Contestant = Callable[[], object]


@dataclass(frozen=True)
class Options:
    """What the command line asks for; `shapes`, `dtypes` and `rounds` are the suite's own where they are empty.

    Attributes:
        seconds: about how long one case may take, first calls not counted.
    """

    quick: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()
    dtypes: tuple[str, ...] = ()
    peers: bool = True
    rounds: int | None = None
    isa: str | None = None
    threads: int | None = None

    @property
    def seconds(self) -> float:
        return 4.0 if self.quick else 60.0


@dataclass
class Case:
    """One shape in one type.

    Attributes:
        what: which of the suite's measurements, e.g. "train, ragged". shape: a number for each letter.
        dtype: e.g. "bfloat16". make: draws the problem and returns {name: one unit of work}, penstock first; a peer
            that cannot take part is the reason, a string. work: operations or bytes of a unit, None where unknown.
        measured: instead of `make`, where the contestants cannot be called one by one: times them in rounds of its own
            and returns {name: seconds of a unit in each round}, penstock first.
        unit: "FLOP" or "bytes". pause: seconds to wait, and one untimed call, before each contestant is timed (for
            peers whose idle threads spin). calls: how many of each contestant's follow in a round, timed one by one;
            with several, what matters is how long one waits, and the 99th percentile is told too.
    """

    what: str
    shape: dict[str, int]
    dtype: str
    make: Callable[[bool], Mapping[str, Contestant | str]] | None = None
    work: float | None = None
    unit: str = "FLOP"
    pause: float = 0.0
    calls: int = 1
    measured: Callable[[], dict[str, list[float]]] | None = None

    @property
    def name(self) -> str:
        sizes = " ".join(f"{letter}{size}" for letter, size in self.shape.items())
        return " ".join(part for part in (self.what, sizes, self.dtype) if part)


@dataclass(frozen=True)
class Suite:
    """A line of `penstock bench`.

    Attributes:
        letters: what `--shape` gives, e.g. "B,T,I,H", of pytest's suites one number, its `--rows`; empty where the
            suite's sizes are its own.
        module: its `cases(options)`; empty where `pytest` or `command` runs it.
        pytest: file under benchmarks/ and the tests' names. quick: more arguments of pytest with `--quick`.
    """

    name: str
    line: str
    letters: str = ""
    module: str = ""
    pytest: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    honours: frozenset[str] = field(default=HONOURED)

    def cases(self, options: Options) -> Iterator[Case]:
        from importlib import import_module

        module: Any = import_module(self.module)
        yield from module.cases(options)


_OF_PYTEST = HONOURED - {"shape", "dtype"}
SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "lstm",
            "one bidirectional layer; nn.LSTM packed and padded, onnxruntime",
            "B,T,I,H",
            f"{__package__}.lstm.cases",
        ),
        Suite(
            "attention",
            "ragged attention, forward and backward; SDPA padded, nested, one by one",
            "B,T,H,D",
            f"{__package__}.attention.cases",
        ),
        Suite(
            "rowwise",
            "residual norm, GELU, rotary, pooling; torch's plain composition",
            "N,C",
            f"{__package__}.rowwise.cases",
        ),
        Suite("linear", "a weight's gradient; torch's product", "N,O,I", f"{__package__}.encoder.cases"),
        Suite(
            "loader",
            "batches, plans and fill from a store; numpy, DataLoader, MosaicML streaming",
            "ROWS",
            pytest=("data/bench_loader.py", "data/bench_fill.py", "data/bench_plan.py"),
            quick=("-k", "test_ragged_batches", "--rows=20000", "--read-ahead=0.3"),
            honours=(_OF_PYTEST | {"shape"}) - {"threads"},
        ),
        Suite(
            "prepare",
            "tokenizing a table; datasets.map with two processes",
            "ROWS",
            pytest=("data/bench_prepare.py",),
            quick=("--rows=10000",),
            honours=(_OF_PYTEST | {"shape"}) - {"threads"},
        ),
        Suite(
            "encoder",
            "whole fine-tuning steps; padded loops, the HF Trainer",
            pytest=("training/bench_training.py", "-k", "test_encoder"),
            quick=("--texts=1000", "--padded-batch=8"),
            honours=_OF_PYTEST,
        ),
        Suite(
            "training",
            "whole LSTM training; the plain PyTorch script",
            pytest=("training/bench_training.py", "-k", "test_lstm"),
            quick=(),
            honours=_OF_PYTEST,
        ),
        Suite(
            "overhead",
            "what the engine adds to a step, in CPU seconds; the model's own step",
            "TOKENS",
            f"{__package__}.training.overhead",
            honours=HONOURED - {"peers"},
        ),
        Suite(
            "predict",
            "raw texts to labels, in bulk and a few at a time; transformers' pipeline, onnxruntime in float32 and int8",
            "TEXTS",
            f"{__package__}.predict.cases",
        ),
        Suite("gpu", "everything on an NVIDIA GPU, after its tests (gpu/README.md)", honours=frozenset({"quick"})),
    )
}


def shapes_of(letters: str, default: list[tuple[int, ...]], quick: list[tuple[int, ...]], options: Options):
    """[{letter: size}] of the cases: those asked for, else the suite's."""
    chosen = options.shapes or (quick if options.quick else default)
    return [dict(zip(letters.split(","), shape, strict=True)) for shape in chosen]
