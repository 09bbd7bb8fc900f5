"""Checks on a finished study: what a careful reader would ask about, each with a code, what it found and what to do.
The codes are documented in docs/study.md."""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from penstock.engine.data.clusters import ClusterOverlap
from penstock.engine.data.overlap import Overlap
from penstock.engine.statistics.clusters import FEW
from penstock.engine.statistics.mcnemar import holm
from penstock.engine.statistics.verdict import kind_of
from penstock.engine.study.answer import what_would_tell
from penstock.engine.study.break_even import THRESHOLD
from penstock.engine.study.classes import class_rows
from penstock.engine.study.costs import Cost
from penstock.engine.study.families import FAMILIES, REFERENCE, learns
from penstock.engine.study.names import name_of
from penstock.engine.study.table import Point, Table
from penstock.engine.study.trials import AT_THE_END

CHEAP = ("majority", "linear", "bag")  # that a well trained encoder is not worse than
COUNTING = ("linear", "bag")  # what there is of n-grams
_LEVEL = 0.05
_NAMED = 3  # at most, of what there are many of


@dataclass(frozen=True)
class Check:
    """
    Attributes:
        code: PS and three digits; a code keeps its meaning.
        found: what is the matter. advice: what to do.
    """

    code: str
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.code} {self.found}: {self.advice}"

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def run_checks(study: Mapping[str, Any], table: Table, costs: Mapping[str, Cost]) -> list[Check]:
    """What there is to say, in the order of the codes.

    Args:
        study: the contents of study.json.
    """
    found = [
        *_encoder_worse(table),
        *_ill_behaved(table),
        *_overlap(study),
        *_test_set_too_small(table),
        *_at_the_edge(table),
        *_never_predicted(table),
        *_not_done(table),
        *_busy(study, costs),
        *_one_seed(table),
        *_no_better_than_guessing(table),
        *_shared_clusters(study),
        *_few_clusters(table),
        *_counting_is_better(table),
        *_better_than_its_teacher(table),
    ]
    return sorted(found, key=lambda check: check.code)


def _sizes_ahead(table: Table, family: str) -> str:
    """Where the family is better than the encoder by more than seeds and test rows explain; empty if nowhere."""
    gaps = [(point.size, point.gap) for point in _compared(table, family)]
    return _listed(
        f"{size:,}{'' if gap.over_seeds else ' (one seed)'}"
        for size, gap in gaps
        if gap is not None and gap.high is not None and gap.high < 0
    )


def _encoder_worse(table: Table) -> Iterator[Check]:
    for family in CHEAP:
        if sizes := _sizes_ahead(table, family):
            yield Check(
                "PS001",
                f"the fine-tuned encoder is worse than {name_of(family)} with {sizes} labels",
                "see that its training converged (encoder.training.epochs, encoder.training.learning_rate) and that it "
                "reads as much of each text, before believing the gap",
            )


def _ill_behaved(table: Table) -> Iterator[Check]:
    """Accuracy that falls from one size to a larger one by more than seeds and test rows explain."""
    for family in table.families:
        points = table.points(family)
        pairs = list(itertools.combinations(points, 2))
        p_values = [_p_of_rising(table, small, large) for small, large in pairs]
        known = [(pair, p) for pair, p in zip(pairs, p_values, strict=True) if p is not None]
        for ((small, large), _), adjusted in zip(known, holm([p for _, p in known]), strict=True):
            if adjusted < _LEVEL:
                yield Check(
                    "PS002",
                    f"{name_of(family)} gets worse with more labels: {_accuracy(small)} with {small.size:,} and "
                    f"{_accuracy(large)} with {large.size:,}",
                    "its settings do not suit one of the two sizes; no curve or break-even through them can be trusted",
                )
                break


def _p_of_rising(table: Table, small: Point, large: Point) -> float | None:
    """One-sided, of the accuracy not falling; None where nothing tells, as of one seed what others would do."""
    if small.accuracy is None or large.accuracy is None or not learns(small.family):
        return None
    draws = [table.paired.accuracies.get((point.family, point.size)) for point in (small, large)]
    if draws[0] is not None and draws[1] is not None:
        if not draws[0].over_seeds or not draws[1].over_seeds:
            return None
        rises = draws[1].draws - draws[0].draws
        return float((np.count_nonzero(rises >= 0) + 1) / (len(rises) + 1))
    own, theirs = (list(point.accuracies.values()) for point in (small, large))
    if len(own) < 2 or len(theirs) < 2:
        return None
    if max(np.std(own), np.std(theirs)) < 1e-9:
        return 0.0 if theirs[0] < own[0] else 1.0
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of seeds that agree in all but the last digits
        return float(ttest_ind(theirs, own, equal_var=False, alternative="less").pvalue)


def _overlap(study: Mapping[str, Any]) -> Iterator[Check]:
    if "overlap" not in study:
        return
    overlap = Overlap(**study["overlap"])
    if overlap.shared:
        yield Check(
            "PS003",
            f"{overlap.shared:,} of {overlap.test_rows:,} test rows ({overlap.shared / overlap.test_rows:.1%}) are "
            "among the training data",
            "whoever learns by heart is rewarded; remove them from one of the two (penstock inspect TRAIN --against "
            "TEST shows them)",
        )


def _shared_clusters(study: Mapping[str, Any]) -> Iterator[Check]:
    if "cluster_overlap" not in study:
        return
    found = ClusterOverlap(**study["cluster_overlap"])
    if found.shared:
        yield Check(
            "PS011",
            str(found),
            "what holds for groups seen in training need not hold for new ones: split train and test by that column, "
            "or take the accuracies for those of known groups",
        )


def _few_clusters(table: Table) -> Iterator[Check]:
    paired = table.paired
    if paired.column is not None and paired.clusters < FEW:
        yield Check(
            "PS012",
            f"the test rows belong to {paired.clusters:,} groups by {paired.column!r}",
            f"intervals that rest on fewer than {FEW} groups are rough, most of them too narrow: give test "
            "rows of more groups",
        )


def _test_set_too_small(table: Table) -> Iterator[Check]:
    lines = []
    paired = table.paired
    groups = 0 if paired.column is None else paired.clusters
    for family in table.families:
        compared = _compared(table, family)
        if not compared or not learns(family):
            continue
        point = compared[-1]
        assert point.gap is not None
        if point.gap.low is None or point.gap.high is None or point.test is None:
            continue
        if kind_of(-point.gap.high, -point.gap.low, THRESHOLD) != "cannot tell":
            continue
        would = what_would_tell(point.gap, point.test.pairs, paired.rows, groups)
        if would != "more seeds":
            lines.append(f"{name_of(family)} with {point.size:,} labels ({would} would)")
    if lines:
        within = f" in {groups:,} groups by {paired.column!r}" if groups else ""
        yield Check(
            "PS004",
            f"{paired.rows:,} test rows{within} are too few to tell the encoder from {_listed(lines)}",
            f"give {'test rows of more groups' if groups else 'more test rows'}, or take the difference for unknown",
        )


def _at_the_edge(table: Table) -> Iterator[Check]:
    notes: dict[str, list[str]] = {}
    for result in table.results:
        for note in result.notes:
            notes.setdefault(note, []).append(result.trial.name)
    for note, names in notes.items():
        yield Check(
            "PS005",
            f"{note} ({_listed(names)})",
            "a better value may lie outside of what was tried: widen the range, or set it"
            if AT_THE_END in note
            else "its figures there are those of what it could do, not of all the data: compare with that in mind",
        )


def _never_predicted(table: Table) -> Iterator[Check]:
    missed: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for family in filter(learns, table.families):
        rows = [row for row in class_rows(table) if row.family == family and row.never_predicted_by]
        for by_all in (True, False):  # what no seed predicts, and what some do
            if own := [row for row in rows if row.never_predicted == by_all]:
                most, seeds = max(row.never_predicted_by for row in own), own[0].seeds
                by = "" if by_all else f"{'one' if most == 1 else f'up to {most}'} of the {seeds} seeds of "
                families = missed.setdefault((by, tuple(row.name for row in own)), [])
                families.append(f"{name_of(family)} with {own[0].size:,} labels")
    for (by, names), families in missed.items():
        classes = "a class" if len(names) == 1 else f"{len(names):,} classes"
        yield Check(
            "PS006",
            f"{classes} that the test data has ({_listed(names)}): never predicted by {by}{_listed(families)}",
            "accuracy hides it: look at macro-F1; training.class_weights or more examples of them may help",
        )


def _not_done(table: Table) -> Iterator[Check]:
    for status, advice in (
        ("diverged", "a lower learning rate may help; what remains are the seeds that went well, a choice by result"),
        ("failed", "the same penstock study tries them again; until then their points rest on fewer seeds"),
    ):
        lost = [result for result in table.results if result.status == status]
        if lost:
            named = _listed(f"{result.trial.name} ({result.error})" for result in lost)
            yield Check("PS007", f"{len(lost):,} {'trial' if len(lost) == 1 else 'trials'} {status}: {named}", advice)


def _busy(study: Mapping[str, Any], costs: Mapping[str, Cost]) -> Iterator[Check]:
    busy = {family: cost for family, cost in costs.items() if cost.busy}
    if busy:
        most = max(cost.others or 0.0 for cost in busy.values())
        yield Check(
            "PS008",
            f"other processes kept up to {most:.1f} cores busy while costs were measured "
            f"({_listed(name_of(family) for family in busy)})",
            "latencies and texts a second are too slow; remove the study's folder costs and run it again on a quiet "
            "machine",
        )


def _one_seed(table: Table) -> Iterator[Check]:
    single: dict[int, list[str]] = {}
    borrowed = []
    for family in table.families:
        points = table.points(family)
        if learns(family) and points and len(points[-1].accuracies) == 1:
            single.setdefault(points[-1].size, []).append(name_of(family))
            borrowed.append(points[-1].accuracy is not None and points[-1].accuracy.borrowed)
    if single:
        named = "; ".join(f"with {size:,} labels {_listed(families)}" for size, families in single.items())
        yield Check(
            "PS009",
            f"one seed only: {named}",
            "intervals there are over test rows alone; another seed (--seeds) shows how much initial weights and "
            "subsets matter"
            if not all(borrowed)
            else "intervals there take it from other sizes and families how much seeds differ; another seed (--seeds) "
            "shows it",
        )


def _no_better_than_guessing(table: Table) -> Iterator[Check]:
    """At the family's largest size, by its evaluation: what always saying the most frequent class would reach."""
    for family in table.families:
        points = table.points(family)
        if not points or not learns(family) or points[-1].accuracy is None:
            continue
        shares = [
            result.evaluation["majority_share"]
            for result in table.trials(family, points[-1].size)
            if result.evaluation is not None and "majority_share" in result.evaluation
        ]
        best = points[-1].accuracy
        if shares and (best.mean if best.low is None else best.low) <= shares[0]:
            yield Check(
                "PS010",
                f"{name_of(family)} with {points[-1].size:,} labels ({_accuracy(points[-1])}) is not surely better "
                f"than always saying the most frequent class ({100 * shares[0]:.1f}%)",
                "it has learned little: more labels, more epochs, or a look at the labels themselves",
            )


def _counting_is_better(table: Table) -> Iterator[Check]:
    """An LSTM that a model of n-grams beats at the largest size that both have, by more than seeds and test rows
    explain."""
    for family in table.families:
        if FAMILIES[family].kind != "lstm":
            continue
        better = []
        for cheap in COUNTING:
            sizes = [point.size for point in table.points(cheap) if (family, point.size) in table.paired.accuracies]
            key = (cheap, max(sizes, default=0))
            if key not in table.paired.accuracies:
                continue
            ours, theirs = table.paired.accuracies[key], table.paired.accuracies[family, key[1]]
            if (ours.draws - theirs.draws <= 0).mean() < _LEVEL / 2:
                better.append((ours.mean, theirs.mean, *key))
        if better:
            ours_mean, theirs_mean, cheap, size = max(better)
            yield Check(
                "PS013",
                f"{name_of(cheap)} is better than {name_of(family)} with {size:,} labels ({100 * ours_mean:.1f} "
                f"against {100 * theirs_mean:.1f}%{_cpu_share(table, cheap, family, size)})",
                f"use {cheap} here: it counts what an LSTM has to learn; with few labels, or short texts in many "
                "classes, the LSTM does not catch up",
            )


def _better_than_its_teacher(table: Table) -> Iterator[Check]:
    """By more than seeds and test rows explain."""
    for family in table.families:
        if FAMILIES[family].teacher != REFERENCE:
            continue
        if sizes := _sizes_ahead(table, family):
            yield Check(
                "PS014",
                f"{name_of(family)} is better than its teacher with {sizes} labels",
                "look for a leak first: test texts that differ from training texts in a word or two are not found by "
                "content (penstock inspect TRAIN --against TEST), and groups on both sides (--cluster) help a student "
                "that reads all texts; then see that the teacher's training converged (PS001)",
            )


def _cpu_share(table: Table, cheap: str, family: str, size: int) -> str:
    """How the two compare in processor time, where that is known."""
    own, theirs = (
        [result.all_cpu_seconds for result in table.trials(name, size) if result.all_cpu_seconds]
        for name in (cheap, family)
    )
    if not own or not theirs:
        return ""
    return f", in {sum(own) / len(own):,.0f} and {sum(theirs) / len(theirs):,.0f} CPU seconds"


def _compared(table: Table, family: str) -> list[Point]:
    """The family's points that have a gap to the encoder."""
    if family == REFERENCE or family not in table.families:
        return []
    return [point for point in table.points(family) if point.gap is not None]


def _accuracy(point: Point) -> str:
    assert point.accuracy is not None
    return f"{100 * point.accuracy.mean:.1f}%"


def _listed(names: Iterator[str] | Sequence[str]) -> str:
    """The first few, and how many more."""
    names = list(names)
    more = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED])
    return shown if more <= 0 else f"{shown} and {more:,} more"
