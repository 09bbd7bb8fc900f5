"""The answer that a study gives, in plain sentences: does fine-tuning the encoder still pay, against what, and until
when."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from penstock.engine.statistics.mcnemar import Discordant, rows_needed
from penstock.engine.statistics.verdict import kind_of
from penstock.engine.study.break_even import THRESHOLD, BreakEven, rounded
from penstock.engine.study.families import FAMILIES, REFERENCE, learns
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.names import capital, name_of
from penstock.engine.study.table import Point, Table

Kind = Literal[
    "pays",
    "pays little",
    "no longer pays",
    "cannot tell",
    "no interval",
    "no common size",
    "only the encoder",
    "no encoder",
]
Needed = tuple[float, float | None, float | None]  # size, low, high: as `equivalent_size` gives them


@dataclass(frozen=True)
class Answer:
    """
    Attributes:
        kind: what it says, for programs. "pays little": by less than a point, surely. "no interval": neither seeds nor
            predictions tell how the figures vary.
        sentences: the first one is the answer.
        size: training examples that it is about; rival: the family that the encoder is measured against.
    """

    kind: Kind
    sentences: tuple[str, ...]
    size: int | None = None
    rival: str | None = None


@dataclass(frozen=True)
class Contest:
    """The encoder against the best of the others, at the largest size that both were trained on.

    Attributes:
        encoder: its name in a sentence. rival: the family.
        accuracies: the encoder's and the rival's, means over the seeds that both have.
        gap: the first minus the second.
        pairs: test rows that exactly one of them has right; None where predictions were not kept.
        rows: test rows; 0 likewise. groups: that they belong to; 0 where they are independent.
        break_even: of the rival.
        needed: {family: examples that it needs to be as accurate as the encoder is here}; largest: {family: its largest
            size}.
        best_beyond: the largest size of all and who is best there, where that is larger than `size`.
        encoder_beyond: the encoder there; None where it was not trained.
        all_seeds: whether the encoder and the rival have no other seeds at `size` than those that both have.
    """

    encoder: str
    rival: str
    size: int
    accuracies: tuple[float, float]
    gap: Estimate
    pairs: Discordant | None
    rows: int
    break_even: BreakEven
    needed: dict[str, Needed]
    largest: dict[str, int]
    best_beyond: Point | None = None
    encoder_beyond: Point | None = None
    groups: int = 0
    all_seeds: bool = True

    @property
    def kind(self) -> Kind:
        if self.gap.low is None or self.gap.high is None:
            return "no interval"
        of_rival = kind_of(-self.gap.high, -self.gap.low, THRESHOLD)
        if of_rival == "worse":
            return "pays little" if self.gap.high < THRESHOLD else "pays"
        return "cannot tell" if of_rival == "cannot tell" else "no longer pays"

    def answer(self) -> Answer:
        sentences = [self._first(), self._until(), self._beyond(), self._leaves_out()]
        return Answer(self.kind, tuple(filter(None, sentences)), self.size, self.rival)

    def _first(self) -> str:
        begin = {
            "pays": "fine-tuning still pays",
            "pays little": "fine-tuning is still ahead, but by less than one point",
            "no longer pays": "fine-tuning no longer pays",
            "cannot tell": f"these {self.rows:,} test rows cannot tell whether fine-tuning still pays"
            if self.rows
            else "these seeds cannot tell whether fine-tuning still pays",
            "no interval": f"fine-tuning is {'ahead' if self.gap.mean > 0 else 'not ahead'}, as far as one seed tells",
        }[self.kind]
        own, theirs = self.accuracies
        return (
            f"With {self.size:,} labels {begin}: {_percent(own)}% for {self.encoder} against {_percent(theirs)}% for "
            f"{name_of(self.rival)} ({_signed(self.gap.mean)} points{_ends(self.gap)}"
            f"{'' if self.all_seeds else _over_shared(self.gap)})."
        )

    def _until(self) -> str:
        if self.kind == "no longer pays":
            return self._since()
        return self._would_tell() if self.kind == "cannot tell" else self._equivalent()

    def _would_tell(self) -> str:
        needed = settling_rows(self.gap.mean, self.pairs)
        if self.pairs is not None and self.pairs.first + self.pairs.second == 0:
            return f"More {'groups of ' if self.groups else ''}test rows would."  # on these both always agree
        if self.groups:
            # the interval of one seed is of rows alone, and so tells how much less than independent ones they count
            width = None if self.pairs is None or self.gap.count > 1 else _of_rows(self.gap, self.pairs, self.rows)
            if needed is None or not width or self.gap.half_width is None:
                return "More groups of test rows would, or more seeds."
            groups = self.groups * needed / self.rows * (self.gap.half_width / width) ** 2
            return f"About {rounded(groups)} groups of test rows would."
        if needed is None or needed <= self.rows:
            return "More seeds would."
        if self.pairs is not None and seeds_prevail(self.gap, self.pairs, self.rows, clustered=False):
            return "More seeds would."
        return f"About {rounded(needed)} test rows would."

    def _since(self) -> str:
        found, lead = self.break_even, f"the lead over {name_of(self.rival)} is below one point"
        if found.size is None:
            return self._equivalent()
        if found.size == 0:
            text = f"On average {lead} at every size measured, from {found.smallest:,} labels on"
        else:
            text = f"From about {rounded(found.size)} labels on {lead}"
        if found.reliable is None:
            return text + "."
        where = "at all of these too" if found.reliable == 0 else "not within the sizes measured"
        if 0 < found.reliable < math.inf:
            where = f"from about {rounded(found.reliable)}"
        return f"{text}, reliably (in 95% of draws) {where}."

    def _equivalent(self) -> str:
        """How many labels the others need for the encoder's accuracy: of that one which needs the fewest."""
        if not self.needed:
            return ""
        family = min(self.needed, key=lambda name: (self.needed[name][0], name != self.rival))
        size, low, high = self.needed[family]
        aim = f"{self.encoder} is with {self.size:,}"
        if math.isinf(size):
            most = max(self.largest[name] for name in self.needed)
            return f"No other family tried, with up to {most:,} labels, is as accurate as {aim}."
        if size == 0:
            return ""
        bounds = ""
        if low is not None and high is not None:
            ends = (
                "fewer" if low == 0 else rounded(low),
                f"more than {self.largest[family]:,}" if math.isinf(high) else rounded(high),
            )
            bounds = f" (95% interval {ends[0]} to {ends[1]})"
        return f"{capital(name_of(family))} is as accurate as {aim} from about {rounded(size)} labels on{bounds}."

    def _beyond(self) -> str:
        best, own = self.best_beyond, self.encoder_beyond
        if best is None or best.accuracy is None:
            return ""
        if own is None:
            where = f"which {self.encoder} was not trained on"
        elif own.accuracy is None:
            where = f"where no trial of {self.encoder} is done"
        else:
            where = f"where {self.encoder} shares no seed with another family"
        return (
            f"With {best.size:,}, {where}, {name_of(best.family)} reaches "
            f"{_percent(best.accuracy.mean)}%{_interval(best.accuracy)}."
        )

    def _leaves_out(self) -> str:
        if self.gap.count > 1:
            return ""
        over = "the interval is over test rows alone and" if self.gap.low is not None else "it"
        return f"This is one seed: {over} leaves out what another subset or other initial weights would change."


def answer(
    table: Table,
    encoder: str,
    break_evens: dict[str, BreakEven],
    equivalents: dict[str, dict[int, Needed]],
) -> Answer:
    """
    Args:
        encoder: its name in a sentence.
        break_evens, equivalents: as `Findings` has them.
    """
    found = _answer(table, encoder, break_evens, equivalents)
    return replace(found, sentences=(*found.sentences, *_of_students(table, found.size)))


def _of_students(table: Table, size: int | None) -> Iterator[str]:
    """What learns from the encoder is no rival of it: it needs it fine-tuned first."""
    for family in filter(_is_student, table.families):
        point = None if size is None else table.get(family, size)
        if size is not None and point is not None and point.gap is not None and point.accuracy is not None:
            shared = "" if _all_shared(table, point) else _over_shared(point.gap)
            yield (
                f"{capital(name_of(family))}, which needs that as its teacher, reaches "
                f"{_percent(point.accuracy.mean)}% (the encoder is ahead by {_signed(point.gap.mean)} "
                f"points{_ends(point.gap)}{shared})."
            )


def _is_student(family: str) -> bool:
    return FAMILIES[family].teacher == REFERENCE


def _answer(
    table: Table,
    encoder: str,
    break_evens: dict[str, BreakEven],
    equivalents: dict[str, dict[int, Needed]],
) -> Answer:
    rivals = [
        family
        for family in table.families
        if family != REFERENCE and learns(family) and not _is_student(family) and table.points(family)
    ]
    own = table.points(REFERENCE) if REFERENCE in table.families else []
    if not own:
        return _without_encoder(table, rivals)
    if not rivals:
        best, others = own[-1], [family for family in table.families if family != REFERENCE and learns(family)]
        why = "there is no other family to compare"
        if any(map(_is_student, others)):
            why = "there is no family to compare that does without it"
        if not all(map(_is_student, others)):
            why = "no trial of a family to compare is done"
        return Answer(
            "only the encoder",
            (f"With {best.size:,} labels {encoder} reaches {_reached(best)}; {why}.",),
            best.size,
        )
    common = [size for size in table.sizes if any(_has_gap(table, family, size) for family in rivals)]
    if not common:
        both = any(table.get(REFERENCE, size) and table.get(family, size) for family in rivals for size in table.sizes)
        why = "have no seed of one size that is done by both" if both else "were trained on no common size"
        return Answer(
            "no common size",
            (f"{capital(encoder)} and the other families {why}: there is no gap to report.",),
        )
    size = common[-1]
    at_size = [point for family in rivals if (point := table.get(family, size)) is not None and point.gap is not None]
    best = min(at_size, key=lambda point: point.gap.mean if point.gap is not None else math.inf)
    assert best.gap is not None
    reference = table.get(REFERENCE, size)
    assert reference is not None
    means = [sum(point.accuracies[seed] for seed in best.gaps) / len(best.gaps) for point in (reference, best)]
    beyond = [point for family in rivals for point in table.points(family) if point.size > size]
    largest = max((point.size for point in beyond), default=0)
    contest = Contest(
        encoder=encoder,
        rival=best.family,
        size=size,
        accuracies=(means[0], means[1]),
        gap=best.gap,
        pairs=None if best.test is None else best.test.pairs,
        rows=table.paired.rows if best.gap.rows else 0,
        break_even=break_evens[best.family],
        needed={family: equivalents[family][size] for family in rivals if size in equivalents.get(family, {})},
        largest={family: table.points(family)[-1].size for family in rivals},
        best_beyond=_most_accurate([point for point in beyond if point.size == largest]),
        encoder_beyond=table.get(REFERENCE, largest),
        groups=0 if table.paired.column is None else table.paired.clusters,
        all_seeds=_all_shared(table, best),
    )
    return contest.answer()


def settling_rows(gap: float, pairs: Discordant | None) -> int | None:
    """How many independent test rows would settle, with 80% power, whether a gap of this size is above nothing or below
    the threshold, whichever it is farther from; None where that is not known."""
    if pairs is None or not pairs.pairs:
        return None
    discordant = (pairs.first + pairs.second) / pairs.pairs
    difference = max(gap, THRESHOLD - gap)
    return rows_needed(discordant, difference) if 0 < difference < discordant else None


def seeds_prevail(gap: Estimate, pairs: Discordant, rows: int, clustered: bool) -> bool:
    """Whether the interval of a gap is mostly of seeds, so that more test rows would not narrow it: it is half as wide
    again as that of one pair of models. Of rows in groups that is not known, and taken not to be so."""
    if gap.count < 2 or gap.half_width is None or clustered or not rows:
        return False
    return gap.half_width > 1.5 * _of_rows(gap, pairs, rows)


def _of_rows(gap: Estimate, pairs: Discordant, rows: int) -> float:
    """Half of the interval that one pair of models has on that number of independent rows."""
    discordant = (pairs.first + pairs.second) / pairs.pairs
    return 1.96 * math.sqrt(max(discordant - gap.mean**2, 0.0) / rows)


def _without_encoder(table: Table, rivals: Sequence[str]) -> Answer:
    points = [table.points(family)[-1] for family in rivals or table.families if table.points(family)]
    largest = max(point.size for point in points)
    best = _most_accurate([point for point in points if point.size == largest])
    assert best is not None
    others = "" if len(rivals) < 2 else ", the most accurate of the families trained on them"
    why = (
        "no trial of the fine-tuned encoder is done"
        if REFERENCE in table.families
        else "there is no fine-tuned encoder"
    )
    return Answer(
        "no encoder",
        (
            f"With {best.size:,} labels {name_of(best.family)} reaches {_reached(best)}{others}; {why} to measure a "
            "gap from.",
        ),
        best.size,
        best.family,
    )


def _all_shared(table: Table, point: Point) -> bool:
    """Whether the family and the encoder have the same seeds at the size."""
    reference = table.get(REFERENCE, point.size)
    return reference is not None and point.gaps.keys() == point.accuracies.keys() == reference.accuracies.keys()


def _over_shared(gap: Estimate) -> str:
    return f", over the {'one seed' if gap.count == 1 else f'{gap.count} seeds'} that both have"


def _has_gap(table: Table, family: str, size: int) -> bool:
    point = table.get(family, size)
    return point is not None and point.gap is not None


def _most_accurate(points: Sequence[Point]) -> Point | None:
    return max(points, key=lambda point: point.accuracy.mean if point.accuracy else -1.0, default=None)


def _reached(point: Point) -> str:
    assert point.accuracy is not None
    return f"{_percent(point.accuracy.mean)}%{_interval(point.accuracy)}"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" ({_percent(estimate.low)} to {_percent(estimate.high)})"


def _ends(gap: Estimate) -> str:
    if gap.low is None or gap.high is None:
        return ""
    return f", 95% interval {_signed(gap.low)} to {_signed(gap.high)}"


def _signed(share: float) -> str:
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
