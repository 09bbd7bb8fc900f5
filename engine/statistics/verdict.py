"""What a difference in accuracy means, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from penstock.engine.statistics.resample import Drawn

MARGIN = 0.01  # one point of accuracy
Kind = Literal["better", "worse", "no worse", "cannot tell"]


@dataclass(frozen=True)
class Verdict:
    """
    Attributes:
        kind: "better" or "worse", the interval of first - second excludes 0; "no worse", it does not reach below
            -margin; "cannot tell", it does.
        text: a sentence with the figures.
    """

    kind: Kind
    text: str


def kind_of(low: float, high: float, margin: float = MARGIN) -> Kind:
    """What an interval of first - second, from low to high, says of the first."""
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "no worse" if low >= -margin else "cannot tell"


def decimals(low: float, high: float, edges: Sequence[float]) -> int:
    """With how many decimals in points an interval's ends lie where they do: below, on or above the edges that a
    verdict goes by. 0.04 is no 0.0 where the interval is said to exclude that."""

    def sides(*ends: float) -> list[bool]:
        return [test for end in ends for edge in edges for test in (end > edge, end < edge)]

    exact = sides(low, high)
    return next((n for n in range(1, 6) if sides(round(100 * low, n) / 100, round(100 * high, n) / 100) == exact), 6)


def verdict(difference: Drawn, first: str, second: str, margin: float = MARGIN) -> Verdict:
    """
    Args:
        difference: the accuracy of `first` minus that of `second`, a share.
        margin: how much worse still counts as no worse, a share.
    """
    low, high = difference.interval
    shown = f"+z.{decimals(low, high, (-margin, 0.0))}f"
    figures = f"{100 * difference.mean:{shown}} points, 95% interval {100 * low:{shown}} to {100 * high:{shown}}"
    points = f"{100 * margin:g} point" + ("" if margin == 0.01 else "s")
    kind = kind_of(low, high, margin)
    if kind in ("better", "worse"):
        return Verdict(kind, f"{first} is {kind} than {second} ({figures})")
    if kind == "no worse":
        return Verdict(kind, f"{first} is no worse than {second} by {points} ({figures})")
    rows = f"{difference.rows:,} rows" + (
        "" if difference.clusters == difference.rows else f" in {difference.clusters:,} clusters"
    )
    return Verdict(kind, f"{rows} cannot tell {first} and {second} apart, nor within {points} ({figures})")
