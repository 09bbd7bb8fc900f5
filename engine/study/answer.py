"""The answer that a study gives, in plain sentences: does fine-tuning the encoder still pay, against what, and until
when."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from penstock.engine.statistics.mcnemar import Discordant, rows_needed
from penstock.engine.statistics.verdict import decimals, kind_of
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
            size}, of all that are rivals.
        best_beyond: the largest size of all and who is best there, where that is larger than `size`.
        encoder_beyond: the encoder there; None where it was not trained.
        all_seeds: whether the encoder and the rival have no other seeds at `size` than those that both have.
        taught: whether there are families too that need the encoder as their teacher, which are no rivals.
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
    taught: bool = False

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
        if self.kind == "cannot tell":
            return f"{capital(what_would_tell(self.gap, self.pairs, self.rows, self.groups))} would."
        return self._equivalent()

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
            return self._none_reaches(aim)
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

    def _none_reaches(self, aim: str) -> str:
        """Each family by what it had: one that was stopped at 8,000 labels was not tried with 200,000."""
        families: dict[int, list[str]] = {}
        for name in self.needed:
            families.setdefault(self.largest[name], []).append(name_of(name))
        none = f"{'But for those that it teaches, no' if self.taught else 'No'} other family tried"
        if len(families) == 1:
            return f"{none}, with up to {max(families):,} labels, is as accurate as {aim}."
        tried = "; ".join(f"{', '.join(names)} with up to {most:,}" for most, names in sorted(families.items()))
        return f"{none} is as accurate as {aim}: {tried}."

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
        if self.gap.borrowed:
            return "This is one seed: how much others would differ is taken from sizes and families that have several."
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
        taught=any(_is_student(family) and table.points(family) for family in table.families),
    )
    return contest.answer()


def what_would_tell(gap: Estimate, pairs: Discordant | None, rows: int, groups: int) -> str:
    """What would settle a gap whose interval holds both nothing and the threshold.

    Args:
        pairs, rows, groups: as in `Contest`.
    """
    needed = settling_rows(gap.mean, pairs)
    if pairs is not None and pairs.first + pairs.second == 0:
        return f"more {'groups of ' if groups else ''}test rows"  # on these both always agree
    if groups:
        # an interval of rows alone tells how much less than independent ones they count
        width = None if pairs is None or gap.over_seeds else _of_rows(gap, pairs, rows)
        if needed is None or not width or gap.half_width is None:
            return "more groups of test rows, or more seeds,"
        more = groups * needed / rows * (gap.half_width / width) ** 2
        return f"about {rounded(more)} groups of test rows" if more > groups else "more groups of test rows"
    if needed is None or needed <= rows or (pairs is not None and _seeds_prevail(gap, pairs, rows)):
        return "more seeds"
    return f"about {rounded(needed)} test rows"


def settling_rows(gap: float, pairs: Discordant | None) -> int | None:
    """How many independent test rows would settle, with 80% power, whether a gap of this size is above nothing or below
    the threshold, whichever it is farther from; None where that is not known."""
    if pairs is None or not pairs.pairs:
        return None
    discordant = (pairs.first + pairs.second) / pairs.pairs
    difference = max(gap, THRESHOLD - gap)
    return rows_needed(discordant, difference) if 0 < difference < discordant else None


def _seeds_prevail(gap: Estimate, pairs: Discordant, rows: int) -> bool:
    """Whether the interval of a gap is mostly of seeds, so that more independent test rows would not narrow it: it is
    half as wide again as that of one pair of models."""
    if not gap.over_seeds or gap.half_width is None or not rows:
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
    digits = decimals(gap.low, gap.high, (0.0, THRESHOLD))
    return f", 95% interval {_signed(gap.low, digits)} to {_signed(gap.high, digits)}"


def _signed(share: float, digits: int = 1) -> str:
    text = f"{100 * share:+z.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
