"""What difference in accuracy a number of test rows can settle, before or after anything is trained."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from penstock.engine.statistics.mcnemar import resolvable, rows_needed
from penstock.engine.study.break_even import THRESHOLD, rounded
from penstock.engine.study.families import learns
from penstock.engine.study.names import name_of
from penstock.engine.study.paired import Paired
from penstock.engine.study.trials import TrialResult

CORRELATION = 0.4  # of two models' being right on a row, where nothing tells: what is hard for one is so for the other
_ACCURACIES = (0.6, 0.9)


@dataclass(frozen=True)
class Resolution:
    """
    Attributes:
        rows: test rows. clusters: groups that they belong to; None where they are independent.
        accuracy: a model's. discordant: the share of rows that exactly one of two such models has right.
        difference: what the rows settle with 80% power at the 5% level, a share; None if not even the largest
            difference that there can be.
        rows_for_threshold: how many settle one point.
        of: the family that was compared with the encoder; None where the correlation is assumed.
    """

    rows: int
    accuracy: float
    discordant: float
    difference: float | None
    rows_for_threshold: int | None
    of: str | None = None

    @classmethod
    def at(cls, rows: int, accuracy: float, discordant: float, of: str | None = None) -> "Resolution":
        found = resolvable(discordant, rows) if discordant > 0 else 0.0
        return cls(
            rows,
            accuracy,
            discordant,
            found if found < 0.999 * discordant else None,
            rows_needed(discordant, THRESHOLD) if discordant > THRESHOLD else None,
            of,
        )


def assumed(rows: int) -> list[Resolution]:
    """For two models that have about as many rows right as each other, at two accuracies."""
    return [Resolution.at(rows, share, discordant_share(share)) for share in _ACCURACIES]


def discordant_share(accuracy: float, correlation: float = CORRELATION) -> float:
    """The share of rows that exactly one of two models with this accuracy has right."""
    return 2 * accuracy * (1 - accuracy) * (1 - correlation)


def measured(trials: Path, results: Iterable[TrialResult], rows: int) -> list[Resolution]:
    """By the study's own trials, where the encoder and another family are finished: the closest one at the largest size
    that both have. Empty where there are none that kept their predictions.

    Args:
        trials: the folder of the results. rows: of the test data that are evaluated.
    """
    results = list(results)
    paired = Paired.of(trials, results)
    keys = [key for key in paired.tests if learns(key[0])]
    if not keys:
        return []
    size = max(size for _, size in keys)
    family, _ = min((key for key in keys if key[1] == size), key=lambda key: abs(paired.gaps[key].mean))
    pairs = paired.tests[family, size].pairs
    accuracies = [
        result.accuracy
        for result in results
        if result.status == "done"
        and result.accuracy is not None
        and result.trial.family == family
        and result.trial.size == size
    ]
    discordant = (pairs.first + pairs.second) / max(pairs.pairs, 1)
    return [Resolution.at(rows, sum(accuracies) / len(accuracies), discordant, family)]


def resolution_lines(found: list[Resolution], clusters: int | None, column: str | None) -> list[str]:
    """In sentences.

    Args:
        clusters: groups of test rows that belong together, by `column`; None where that is not known.
    """
    first = found[0]
    line = f"{first.rows:,} test rows settle {_points(first)} {_where(first)}"
    others = [f"{_points(one)} at {one.accuracy:.0%}" for one in found[1:]]
    line += f" ({', '.join(others)})" if others else ""
    line += ", with 80% power"
    if first.rows_for_threshold is None:
        line += "."
    else:
        line += f"; one point takes about {rounded(first.rows_for_threshold)} rows"
        more = [
            f"{rounded(one.rows_for_threshold)} at {one.accuracy:.0%}"
            for one in found[1:]
            if one.rows_for_threshold is not None
        ]
        line += f" ({', '.join(more)})." if more else "."
    if first.of is None:
        line += (
            f" This assumes that two models' right answers correlate by {CORRELATION:g}; finished trials will tell, "
            "and seeds add their own spread."
        )
    else:
        line += (
            f" This is by the finished trials of {name_of(first.of)}: exactly one of it and the encoder has "
            f"{first.discordant:.0%} of the rows right. Seeds add their own spread."
        )
    if column is not None and clusters is not None and clusters < first.rows:
        return [
            line,
            f"The rows belong to {clusters:,} groups by {column!r}, and rows within a group count less: what can be "
            "settled is coarser than that.",
        ]
    if column is None:
        return [line, "Rows that belong together (of one film, one case) count less: --cluster COLUMN says which do."]
    return [line]


def _points(one: Resolution) -> str:
    if one.difference is None:
        return "no difference"
    return f"{100 * one.difference:.1f} points"


def _where(one: Resolution) -> str:
    return f"where about {one.accuracy:.0%} of answers are right"
