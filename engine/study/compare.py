"""Two classifiers on the same test rows: what they have right, what they differ in, and what that difference means."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from penstock.engine.data.clusters import check_several
from penstock.engine.errors import SourceError
from penstock.engine.statistics.clusters import FEW, Clusters
from penstock.engine.statistics.mcnemar import Discordant, mcnemar
from penstock.engine.statistics.resample import Drawn, Series, draw_groups
from penstock.engine.statistics.verdict import MARGIN, Verdict, verdict

EXIT_CODES = {"better": 0, "no worse": 0, "worse": 20, "cannot tell": 21}  # of a verdict; errors have others


@dataclass(frozen=True)
class Judged:
    """One classifier's predictions.

    Attributes:
        name: as the user gave it.
        rows: int64, ascending: the rows of the test data that it predicted; None for all.
        labels: integers, one for each of those rows: numbers of `Truth.label_names`.
    """

    name: str
    rows: np.ndarray | None
    labels: np.ndarray


@dataclass(frozen=True)
class Truth:
    """The test data.

    Attributes:
        name: as the user gave it.
        labels: int64, (rows,), the class of each row.
        label_names: of the classes; those of the two classifiers that occur in no row too.
        clusters: of each row, a number, (rows,); None where all are independent.
        texts: gives the texts of rows, ascending. cluster: the column that the clusters are by.
    """

    name: str
    labels: np.ndarray
    label_names: Sequence[str]
    clusters: np.ndarray | None
    texts: Callable[[np.ndarray], list[str]]
    cluster: str = ""


@dataclass(frozen=True)
class Comparison:
    """
    Attributes:
        rows: int64: the test rows that both predicted.
        first, second: accuracies. difference: first minus second, paired; of independent rows its interval is Tango's,
            and it holds 0 unless the exact test of `pairs` rejects that.
        pairs: rows that exactly one has right, with McNemar's exact test, of groups where rows belong together.
        flips: int64: the test rows that the two predict differently, those that exactly one has right first.
        labels: of both, for each of `rows`.
        notes: lines that the user should read.
    """

    rows: np.ndarray
    first: Drawn
    second: Drawn
    difference: Drawn
    pairs: Discordant
    verdict: Verdict
    flips: np.ndarray
    labels: tuple[np.ndarray, np.ndarray]
    notes: list[str]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict.kind]


def compare(truth: Truth, first: Judged, second: Judged, margin: float = MARGIN) -> Comparison:
    """
    Args:
        margin: how much worse still counts as no worse, a share.

    Raises:
        SourceError: the two predicted different rows, or none, or all rows belong together.
    """
    rows, notes = _common_rows(truth, first, second)
    if truth.clusters is not None:
        check_several(truth.clusters[rows], truth.cluster, truth.name)
    labels = [own.labels if own.rows is not None else own.labels[rows] for own in (first, second)]
    right = [own == truth.labels[rows] for own in labels]
    clusters = Clusters.single(len(rows)) if truth.clusters is None else Clusters.of(truth.clusters[rows])
    scores = [own.astype(np.float64)[None] for own in right]
    shares = {number: Series(own, 1) for number, own in enumerate(scores)}
    differences = {0: Series(scores[0] - scores[1], 1)}
    accuracies, drawn = draw_groups([(shares, "share"), (differences, "difference")], clusters)
    pairs = mcnemar(right[0], right[1], clusters)
    difference = replace(drawn[0], exact=pairs.p_value)
    if truth.clusters is not None and clusters.count < FEW:
        notes.append(
            f"the rows belong to {clusters.count:,} groups by {truth.cluster!r}: intervals that rest on fewer than "
            f"{FEW} are rough, most of them too narrow, and so is the verdict"
        )
    differ = np.flatnonzero(labels[0] != labels[1])
    flips = differ[np.argsort(right[0][differ] == right[1][differ], kind="stable")]
    return Comparison(
        rows=rows,
        first=accuracies[0],
        second=accuracies[1],
        difference=difference,
        pairs=pairs,
        verdict=verdict(difference, "A", "B", margin),
        flips=rows[flips],
        labels=(labels[0], labels[1]),
        notes=notes,
    )


def flip_records(truth: Truth, found: Comparison, limit: int | None = None) -> list[dict[str, Any]]:
    """The first flips, or all of them: row (from 0), text, truth, a, b, and who is right: A, B or neither."""
    flips = found.flips[:limit]
    places = np.searchsorted(found.rows, flips)
    order = np.argsort(flips)
    texts = dict(zip(flips[order].tolist(), truth.texts(flips[order]), strict=True))
    records = []
    for row, place in zip(flips.tolist(), places.tolist(), strict=True):
        true, a, b = (int(label) for label in (truth.labels[row], found.labels[0][place], found.labels[1][place]))
        records.append(
            {
                "row": row,
                "text": texts[row],
                **{name: truth.label_names[label] for name, label in (("truth", true), ("a", a), ("b", b))},
                "right": "A" if a == true else "B" if b == true else "neither",
            }
        )
    return records


def _common_rows(truth: Truth, first: Judged, second: Judged) -> tuple[np.ndarray, list[str]]:
    everything = np.arange(len(truth.labels))
    for own in (first, second):
        if own.rows is None and len(own.labels) != len(everything):
            raise SourceError(f"{own.name}: {len(own.labels):,} rows, and {truth.name} has {len(everything):,}")
    known = [own for own in (first, second) if own.rows is not None]
    if len(known) == 2 and not np.array_equal(known[0].rows, known[1].rows):  # type: ignore[arg-type]
        raise SourceError(f"{first.name} and {second.name} predicted different rows of {truth.name}: nothing is paired")
    rows = everything if not known or known[0].rows is None else known[0].rows
    if not len(rows):
        raise SourceError(f"{truth.name}: there are no rows to compare on")
    notes = []
    if len(rows) < len(everything):
        notes.append(f"compared on the {len(rows):,} of {len(everything):,} rows that {known[0].name} predicted")
    return rows, notes
