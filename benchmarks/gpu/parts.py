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
        tests: whether it times kernels of ours, so that their correctness tests come first: those that this `-k`
            expression selects ("" for all of them), None for no tests.
        checkout: the option that names a peer's sources; without it the part is not run.
    """

    module: str
    weight: int
    tests: str | None = None
    checkout: str | None = None
    function: str = "run"


# In this order: what needs no kernel of ours comes before their tests, which may end the run.
PARTS = {
    "machine": Part("machine", 15),
    "probes": Part("probes", 90),
    "tests": Part("correctness", 220),
    "lstm": Part("lstm", 110, tests="lstm or cell"),
    "attention": Part("attention", 45, tests="attention"),
    "rowwise": Part("rowwise", 25, tests="norm or gelu or geglu or rotary or pool"),
    "train-lstm": Part("training_lstm", 60, tests=""),
    "train-encoder": Part("training_encoder", 70, tests=""),
    "flashrnn": Part("lstm_peers", 300, checkout="flashrnn", function="flashrnn"),
    "haste": Part("lstm_peers", 60, checkout="haste", function="haste"),
}


def plan(only: list[str], checkouts: dict[str, str]) -> list[str]:
    """The parts to run, in order: those asked for, or all that need no option, and what must come before them."""
    wanted = set(only or [name for name, part in PARTS.items() if part.checkout is None or part.checkout in checkouts])
    if wanted - {"machine", "tests"}:
        wanted.add("machine")
    if any(PARTS[name].tests is not None for name in wanted):
        wanted.add("tests")
    return [name for name in PARTS if name in wanted]


def test_expression(names: list[str]) -> str:
    """The `-k` expression that selects the tests which these parts need; "" for all."""
    expressions = {PARTS[name].tests for name in names if PARTS[name].tests is not None}
    if "tests" in names and not expressions:
        return ""
    return "" if "" in expressions else " or ".join(sorted(filter(None, expressions)))


def limit(name: str, left: list[str], seconds: float) -> float:
    """How many of the seconds that are left a part may take, when `left` (itself among them) are still to run."""
    return seconds * PARTS[name].weight / sum(PARTS[other].weight for other in left)


def call(name: str, context: Context) -> None:
    part = PARTS[name]
    module = importlib.import_module(f"penstock.benchmarks.gpu.{part.module}")
    getattr(module, part.function)(context)
