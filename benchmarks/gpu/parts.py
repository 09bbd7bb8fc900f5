"""The parts of the benchmark: what each needs, and how the time is shared out."""

import importlib
from dataclasses import dataclass

from penstock.benchmarks.gpu.context import Context


@dataclass(frozen=True)
class Part:
    """One process of the run.

    Attributes:
        module, function: what it runs.
        weight: its share of the time; what it leaves of that goes to the parts behind it.
        times: the operations of ours that it times, so that their quick tests come first; none where it times none.
        checkout: the option that names a peer's sources; without it the part is not run.
    """

    module: str
    weight: int
    function: str = "run"
    times: tuple[str, ...] = ()
    checkout: str | None = None


_ATTENTION, _POOLING = ("varlen_attention",), ("segment_pool",)
_ROWWISE = ("residual_norm", "bias_gelu", "geglu", "rotary")

# In this order: the quick tests, what is most wanted, the other tests, and last what no kernel of ours takes part in.
PARTS = {
    "machine": Part("machine", 12),
    "quick": Part("correctness", 55, "quick"),
    "lstm": Part("lstm", 60, times=("lstm", "lstm_cell")),
    "attention": Part("attention", 50, times=_ATTENTION),
    "train-lstm": Part("training_lstm", 60, times=("lstm", "lstm_cell", *_POOLING)),
    "train-encoder": Part("training_encoder", 70, times=(*_ATTENTION, *_ROWWISE)),
    "rowwise": Part("rowwise", 30, times=(*_ROWWISE, *_POOLING)),
    "lstm-more": Part("lstm", 55, "more", times=("lstm", "lstm_cell")),
    "tests": Part("correctness", 60),
    "probes": Part("probes", 45),
    "flashrnn": Part("lstm_peers", 300, "flashrnn", times=("lstm",), checkout="flashrnn"),
    "haste": Part("lstm_peers", 60, "haste", times=("lstm",), checkout="haste"),
}


def plan(only: list[str], checkouts: dict[str, str]) -> list[str]:
    """The parts to run, in order: those asked for, or all that need no option, and what must come before them."""
    wanted = set(only or [name for name, part in PARTS.items() if part.checkout is None or part.checkout in checkouts])
    if wanted - {"machine", "quick", "tests"}:
        wanted.add("machine")
    if any(PARTS[name].times for name in wanted):
        wanted.add("quick")
    return [name for name in PARTS if name in wanted]


def operations(names: list[str]) -> list[str]:
    """Those whose tests these parts need; none for all, as where the tests are what was asked for."""
    if "tests" in names or names == ["quick"]:
        return []
    return sorted({operation for name in names for operation in PARTS[name].times})


def limit(name: str, left: list[str], seconds: float) -> float:
    """How many of the seconds that are left a part may take, when `left` (itself among them) are still to run."""
    return seconds * PARTS[name].weight / sum(PARTS[other].weight for other in left)


def call(name: str, context: Context) -> None:
    part = PARTS[name]
    module = importlib.import_module(f"penstock.benchmarks.gpu.{part.module}")
    getattr(module, part.function)(context)
