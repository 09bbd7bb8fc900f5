"""What is to be reached, on an H200, and what a run says about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from penstock.benchmarks.gpu.rows import Row

# One bidirectional layer, (H, B): times the better of cuDNN's types packed, and padded; microseconds of a forward step.
LAYER = {
    (256, 32): (4.0, 2.0, 1.5),
    (256, 128): (4.0, 2.0, 1.5),
    (256, 512): (3.0, 2.0, 2.5),
    (512, 32): (4.0, 1.5, 1.5),
    (512, 128): (3.0, 1.5, 2.5),
    (512, 512): (2.0, 1.5, 6.0),
    (1024, 32): (2.0, 1.1, None),
    (1024, 128): (1.5, 1.1, None),
    (1024, 512): (1.2, 1.1, None),
}
TRAINING_TOKENS, TRAINING_RATIO = 4e6, 3.0  # lstm-4-256: real tokens a second; times the plain script


@dataclass(frozen=True)
class Outcome:
    """One target: `value` is None where the run did not measure it; `at_most` where less is better."""

    what: str
    target: float
    value: float | None
    unit: str
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


def verdict(outcome: Outcome) -> Row:
    """A target, what was measured and what that comes to, in words."""
    sign = "<=" if outcome.at_most else ">="
    words = {None: "not measured", True: "reached", False: "missed"}
    target = f"{sign} {outcome.target:g} {outcome.unit}"
    return {"wanted": target, "measured": outcome.value, "so": words[outcome.reached]}


def proven(rows: list[Row]) -> list[str]:
    """The kernels of which a test has passed and none gone wrong, among finished parts' rows."""
    found = [row for row in rows if row.get("kind") == "kernel"]
    bad = {row["kernel"] for row in found if "off" in row}
    return sorted({row["kernel"] for row in found if row["passed"]} - bad)


def void(parts: dict[str, Any]) -> dict[str, str]:
    """{kernel: why} of what the tests behind the timing found wrong: "lstm/cuda", say."""
    found = [row for row in parts.get("tests", {}).get("rows", []) if row.get("kind") == "kernel"]
    return {row["kernel"]: row["what"] for row in found if "off" in row}


def outcomes(parts: dict[str, Any]) -> list[Outcome]:
    """Every target beside what `results.json`'s parts say."""
    layer = [row for part in ("lstm", "lstm-more") for row in parts.get(part, {}).get("rows", [])]
    training = [row for row in parts.get("train-lstm", {}).get("rows", []) if "tokens_per_second" in row]
    wrong = {f"penstock {kernel.removeprefix('lstm/')}" for kernel in void(parts) if kernel.startswith("lstm/")}
    training = [row for row in training if row["contestant"] not in wrong]
    out = []
    for (hidden, batch), (packed, padded, step) in LAYER.items():
        cell = {
            row["phase"]: {name: figures for name, figures in row["contestants"].items() if name not in wrong}
            for row in layer
            if is_cell(row, hidden, batch)
        }
        where, timed = f"H={hidden} B={batch}", cell.get("training", {})
        for form, target in (("packed", packed), ("padded", padded)):
            ratio = divided(fastest(timed, f"cudnn {form}"), fastest(timed, "penstock"))
            out.append(Outcome(f"{where} over cuDNN {form}", target, ratio, "x"))
        if step is not None:
            best = fastest(cell.get("forward", {}), "penstock", "us_per_step")
            out.append(Outcome(f"{where} forward", step, best, "us a step", at_most=True))
    ours, plain = (best_rate(training, start) for start in ("penstock", "nn.LSTM"))
    out.append(Outcome("lstm-4-256 training", TRAINING_TOKENS / 1e6, divided(ours, 1e6), "M tokens/s"))
    out.append(Outcome("lstm-4-256 over the plain script", TRAINING_RATIO, divided(ours, plain), "x"))
    return out


def is_cell(row: Row, hidden: int, batch: int) -> bool:
    return row.get("kind") == "lstm" and (row["hidden"], row["batch"]) == (hidden, batch) and "contestants" in row


def fastest(contestants: dict[str, Row], start: str, figure: str = "ms") -> float | None:
    """The least time among those whose name starts so."""
    times = (figures.get(figure) for name, figures in contestants.items() if name.startswith(start))
    return min((time for time in times if time is not None), default=None)


def best_rate(rows: Iterable[Row], start: str) -> float | None:
    return max((row["tokens_per_second"] for row in rows if row["contestant"].startswith(start)), default=None)


def divided(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b
