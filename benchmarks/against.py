"""Is it faster or slower than in an earlier run? A verdict for each case that knows the noise of both.

What is compared is ours over a reference in each round: the multipliers' rate at that moment, and a peer, timed beside
it, so that a host which runs slower in one of the two runs does not count. Where there are both, both must say the
same: neighbours that fill the memory's bandwidth slow a peer, not the multipliers. The p-values of exact rank tests
(Mann and Whitney) are held to 5% over all cases of the run together (Holm), and a change below SMALLEST is none.
Without a reference nobody can tell a slower program from a slower hour, and the verdict says so.
"""

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any

from penstock.benchmarks.suite import OURS
from penstock.engine.errors import ConfigError

ALARMS = 0.05  # of all comparisons of unchanged code end in at least one "faster" or "slower"
SMALLEST = 0.03  # a smaller change is within what memory layout alone does from process to process
FEWEST = 4  # rounds of each

FASTER, SLOWER, CANNOT_TELL = "faster", "slower", "cannot tell"


@dataclass(frozen=True)
class Comparison:
    """Attributes: ratio: new / old time of ours, both over the reference; low, high: its 95% interval."""

    case: str
    ratio: float
    low: float
    high: float
    p: float
    verdict: str
    why: str


def check_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises:
    ConfigError: the earlier run is of another suite or machine, so no ratio of the two means anything.
    """
    for key, what in (("suite", "suite"), ("processor", "machine"), ("cores", "machine")):
        if old.get(key) != new.get(key):
            unit = " cores" if key == "cores" else ""
            raise ConfigError(
                f"--against is of another {what}: {old.get(key)}{unit}, this is {new.get(key)}{unit}; "
                f"measure both on one machine with the same suite"
            )


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["case"], row.get("threads"), row.get("isa")


def compare(old_rows: list[dict[str, Any]], new_rows: list[dict[str, Any]]) -> list[Comparison]:
    """The cases that both runs have, in the order of the new one."""
    old = {key_of(row): row for row in old_rows}
    pairs = [(old[key_of(row)], row) for row in new_rows if key_of(row) in old]
    found = [_compare(before, after) for before, after in pairs]
    return _judge(found)


def _compare(old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    """By the reference that is least sure."""
    names = _references(old, new)
    found = [_over(old, new, name) for name in names or [None]]
    if any((one.ratio > 1) != (found[0].ratio > 1) for one in found):
        why = f"it is slower over {' and faster over '.join(_spoken(name) for name in _by_ratio(names, found))}"
        return replace(found[0], p=1.0, why=why)
    return max(found, key=lambda one: one.p)


def _over(old: dict[str, Any], new: dict[str, Any], reference: str | None) -> Comparison:
    from scipy.stats import mannwhitneyu

    before, after = _relative(old, reference), _relative(new, reference)
    differences = sorted(b - a for a in before for b in after)
    ratio, (low, high) = math.exp(statistics.median(differences)), _interval(differences, len(before), len(after))
    if reference is None:
        p, why = 1.0, "nothing was timed beside it in both runs"
    elif min(len(before), len(after)) < FEWEST:
        p, why = 1.0, f"fewer than {FEWEST} rounds"
    else:
        p, why = float(mannwhitneyu(before, after, method="exact").pvalue), f"over {_spoken(reference)}"
    return Comparison(new["case"], ratio, low, high, p, CANNOT_TELL, why)


PROBE = "probe"


def _references(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The probe and the first peer, of those that both runs have."""
    probed = all(row.get("probe") and len(row["probe"]) == len(row["seconds"][OURS]) for row in (old, new))
    shared = [name for name in new["seconds"] if name in old["seconds"] and not name.startswith(OURS)]
    return [PROBE] * probed + shared[:1]


def _spoken(reference: str) -> str:
    return "the machine's peak" if reference == PROBE else reference


def _by_ratio(names: list[str], found: list[Comparison]) -> list[str]:
    return [name for _, name in sorted(zip((-one.ratio for one in found), names, strict=True))]


def _relative(row: dict[str, Any], reference: str | None) -> list[float]:
    """Logarithms of ours over the reference in each round."""
    ours = row["seconds"][OURS]
    if reference is None:
        return [math.log(own) for own in ours]
    theirs = [1 / rate for rate in row["probe"]] if reference == PROBE else row["seconds"][reference]
    return [math.log(own / other) for own, other in zip(ours, theirs, strict=True)]


def _interval(differences: list[float], old: int, new: int) -> tuple[float, float]:
    """Hodges and Lehmann's, about 95%: the pairwise differences that the rank test would not reject."""
    pairs = old * new
    spread = 1.96 * math.sqrt(pairs * (old + new + 1) / 12)
    first = max(0, math.floor(pairs / 2 - spread))
    return math.exp(differences[first]), math.exp(differences[pairs - 1 - first])


def _judge(found: list[Comparison]) -> list[Comparison]:
    verdicts = dict.fromkeys(range(len(found)), CANNOT_TELL)
    for place, index in enumerate(sorted(verdicts, key=lambda index: found[index].p)):
        one = found[index]
        if one.p * (len(found) - place) > ALARMS:
            break
        if abs(math.log(one.ratio)) >= math.log1p(SMALLEST):
            verdicts[index] = SLOWER if one.ratio > 1 else FASTER
    return [replace(one, verdict=verdicts[index]) for index, one in enumerate(found)]
