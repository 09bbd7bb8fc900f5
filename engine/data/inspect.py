"""Looking at labelled texts before training on them: lengths, classes, duplicates, contradictions, overlap.

Texts are read once and never kept: of each row there remain two 64-bit hashes, of the text and of its normal form, its
label's number and its place, 28 bytes. Two texts count as the same where both hashes agree; as the same after
normalisation (NFKC, case, white space) where the second does.
"""

import hashlib
import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from penstock.engine.data.sources import Source
from penstock.engine.data.sources.labels import KINDS, LabelNames, kind_of, merged_spellings
from penstock.engine.data.sources.text_columns import Text, parts_of
from penstock.engine.data.survey import MAX_LABELS
from penstock.engine.errors import SourceError

NO_LABELS = "(none)"  # the name of an empty list
PAIR_MARK = "\0"  # between the texts of a pair
QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "99%": 0.99, "max": 1.0}
FIRST_BAD = 5  # rows that cannot be used, shown with their places


class Lengths:
    """How many texts have each length."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, lengths: list[int]) -> None:
        self._counts.update(lengths)

    def summary(self) -> dict[str, float]:
        """{"mean": ..., and each of QUANTILES}, a length that occurs; empty without texts."""
        if not self._counts:
            return {}
        values = np.array(sorted(self._counts), np.int64)
        counts = np.array([self._counts[int(value)] for value in values], np.int64)
        ends = np.cumsum(counts)
        ranks = [min(int(np.ceil(share * ends[-1])), int(ends[-1])) for share in QUANTILES.values()]
        found = values[np.searchsorted(ends, np.maximum(ranks, 1))]
        mean = float((values * counts).sum() / ends[-1])
        return {"mean": mean} | {name: int(value) for name, value in zip(QUANTILES, found, strict=True)}


@dataclass
class Looked:
    """What was seen of one or more sources, read one after the other.

    Attributes:
        sources: in order; starts: the first row of each, and the number of rows at the end.
        exact, normal: uint64, (rows,): hashes of the texts and of their normal forms.
        labels: int32, (rows,): numbers of label names; -1 without labels.
        positions: int64, (rows,): lines or rows in their source, from 1.
        label_counts: rows of each label, by number; label_names: of the first MAX_LABELS of them.
        label_spellings: of each class the spellings with their rows, as `labels.merged_spellings` has them; in lists,
            of each label. Empty where there are more than MAX_LABELS classes, which stay as they are spelled.
        empty: rows whose text is empty or white space.
        bad: number of rows that cannot be used; bad_rows: the first of them, "place: reason".
    """

    sources: Sequence[Source]
    starts: list[int]
    exact: np.ndarray
    normal: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    label_names: list[str]
    label_counts: np.ndarray
    characters: Lengths
    words: Lengths
    empty: np.ndarray
    bad: int = 0
    bad_rows: list[str] = field(default_factory=list)
    label_spellings: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.exact)

    @property
    def has_labels(self) -> bool:
        return self.sources[0].label is not None

    def source_of(self, row: int) -> Source:
        return self.sources[int(np.searchsorted(self.starts, row, side="right")) - 1]

    def place(self, row: int) -> str:
        """`source: line N`."""
        return self.source_of(row).position(int(self.positions[row]))

    def label_of(self, row: int) -> str:
        number = int(self.labels[row])
        return self.label_names[number] if 0 <= number < len(self.label_names) else ""


def look(
    sources: Sequence[Source], advance: Callable[[int], None] = lambda rows: None, like: Looked | None = None
) -> Looked:
    """Reads the sources once.

    Args:
        like: a training set, whose classes these labels are where they can be.

    Raises:
        SourceError: one cannot be read.
    """
    characters, words = Lengths(), Lengths()
    numbers: dict[Spelled, int] = {}
    exact, normal, labels, positions, empty = [], [], [], [], []
    starts, bad, rows = [0], 0, 0
    bad_rows: list[str] = []
    for source in sources:
        for batch in source.rows():
            texts = batch.texts
            found = [_hashes(text) for text in texts]
            hashes = np.frombuffer(b"".join(found), np.uint64).reshape(-1, 2)
            exact.append(hashes[:, 0].copy())
            normal.append(hashes[:, 1].copy())
            if source.label is None:
                labels.append(np.full(len(texts), -1, np.int32))
            else:
                spelled = map(_in_order, batch.labels) if source.multi_label else batch.labels
                labels.append(np.array([_number(label, numbers) for label in spelled], np.int32))
            positions.append(np.fromiter(batch.positions, np.int64, len(texts)))
            characters.add([sum(map(len, parts_of(text))) for text in texts])
            own_words = [sum(len(part.split()) for part in parts_of(text)) for text in texts]
            words.add(own_words)
            empty.append(rows + np.flatnonzero(np.array(own_words, np.int64) == 0))
            bad += len(batch.bad)
            shown = batch.bad[: max(0, FIRST_BAD - len(bad_rows))]
            bad_rows += [f"{source.position(row.position)}: {row.reason}{source.advice(row)}" for row in shown]
            rows += len(texts)
            advance(len(texts) + len(batch.bad))
        starts.append(rows)
    names, all_labels, spellings = _classes(list(numbers), _join(labels, np.int32), like)
    return Looked(
        sources=sources,
        starts=starts,
        exact=_join(exact, np.uint64),
        normal=_join(normal, np.uint64),
        labels=all_labels,
        positions=_join(positions, np.int64),
        label_names=names,
        label_counts=np.unique(all_labels[all_labels >= 0], return_counts=True)[1],
        characters=characters,
        words=words,
        empty=_join(empty, np.int64),
        bad=bad,
        bad_rows=bad_rows,
        label_spellings=spellings,
    )


def require_rows(looked: Looked) -> None:
    """Raises SourceError: there are rows, and none of them can be used."""
    if looked.bad and not looked.starts[-1]:
        raise SourceError(f"{looked.bad_rows[0]}; none of the {looked.bad:,} rows can be used")


Spelled: TypeAlias = str | tuple[str, ...]  # a row's label, or all labels of its list in one order


def _in_order(labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(labels))


def list_name(labels: Iterable[str]) -> str:
    """One name for a row's labels, whatever their order, that no other labels have: rows are compared by it."""
    return " + ".join(sorted(map(_quoted, labels))) or NO_LABELS


def _quoted(label: str) -> str:
    return repr(label) if "+" in label or label == NO_LABELS or label[:1] in ("'", '"') else label


def _name(spelled: Spelled, names: Mapping[str, str]) -> str:
    """The class of a row, by the names of the single labels."""
    return names[spelled] if isinstance(spelled, str) else list_name({names[one] for one in spelled})


def _classes(
    spelled: list[Spelled], labels: np.ndarray, like: Looked | None
) -> tuple[list[str], np.ndarray, dict[str, dict[str, int]]]:
    """Names of the classes, their numbers by row, and their spellings, from the spellings and their numbers by row.

    Which spellings are one class shows only when the whole column has been read.
    """
    counts: Counter[str] = Counter()
    if not spelled or int(labels.max(initial=-1)) >= len(spelled):
        return [one if isinstance(one, str) else list_name(one) for one in spelled], labels, {}
    for one, rows in zip(spelled, np.bincount(labels, minlength=len(spelled)).tolist(), strict=True):
        counts.update(dict.fromkeys([one] if isinstance(one, str) else one, rows))
    if like is not None and like.label_spellings:
        known = list(like.label_spellings)
        named, rule = LabelNames(known), KINDS[kind_of(known)]
        merged: dict[str, dict[str, int]] = {}
        for spelling, rows in counts.items():
            merged.setdefault(named(spelling) or rule(spelling) or spelling.strip(), {})[spelling] = rows
    else:
        merged = merged_spellings(counts)
    names = {spelling: name for name in merged for spelling in merged[name]}
    numbers: dict[str, int] = {}
    for one in sorted(spelled):
        numbers.setdefault(_name(one, names), len(numbers))
    return list(numbers), np.array([numbers[_name(one, names)] for one in spelled], np.int32)[labels], merged


def normal_form(text: str) -> str:
    """What two texts that a reader would call the same have in common: NFKC, case folded, single spaces."""
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


@dataclass(frozen=True)
class Groups:
    """Rows that belong together, by the text they share.

    Attributes:
        rows: int64: of all groups, group by group, each in the order of the rows.
        bounds: int64, (groups + 1,): where each begins in `rows`.
    """

    rows: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        for begin, end in itertools.pairwise(self.bounds):
            yield self.rows[begin:end]

    def differ(self, values: np.ndarray) -> np.ndarray:
        """bool (groups,): whether the rows of a group have different ones of `values`, (all rows,)."""
        own = values[self.rows]
        return np.minimum.reduceat(own, self.bounds[:-1]) != self.largest(values) if len(self) else np.empty(0, bool)

    def largest(self, values: np.ndarray) -> np.ndarray:
        """(groups,): of `values`, (all rows,)."""
        own = values[self.rows]
        return np.maximum.reduceat(own, self.bounds[:-1]) if len(self) else own

    def where(self, wanted: np.ndarray) -> "Groups":
        """The groups for which the bool (groups,) is true."""
        sizes = np.diff(self.bounds)
        return Groups(self.rows[np.repeat(wanted, sizes)], np.concatenate([[0], np.cumsum(sizes[wanted])]))


@dataclass(frozen=True)
class Duplicates:
    """
    Attributes:
        exact: rows of the same text and label. surplus: how many of them say nothing that an earlier row did not.
        contradictions: rows of the same text with different labels.
        normal: rows whose texts differ, but not after normalisation; more: how many texts fewer there are after it.
        normal_contradictions: those of `normal` with different labels where no text on its own has them.
    """

    exact: Groups
    surplus: int
    contradictions: Groups
    normal: Groups
    more: int
    normal_contradictions: Groups


def duplicates(looked: Looked) -> Duplicates:
    order, same_text, same_label, same_form = _sorted(looked)
    exact = _runs(order, same_text & same_label)
    texts = _runs(order, same_text)
    contradictions = texts.where(texts.differ(looked.labels))
    torn = np.zeros(looked.rows, np.int8)
    torn[contradictions.rows] = 1
    forms = _runs(order, same_form)
    normal = forms.where(forms.differ(looked.exact))
    return Duplicates(
        exact=exact,
        surplus=len(exact.rows) - len(exact),
        contradictions=contradictions,
        normal=normal,
        more=int((same_form & ~same_text).sum()),
        normal_contradictions=normal.where(normal.differ(looked.labels) & (normal.largest(torn) == 0)),
    )


@dataclass(frozen=True)
class SharedTexts:
    """Rows of a test set whose text is also in a training set.

    Attributes:
        exact, normal: int64: rows of the test set: with the very text, and further ones after normalisation.
        exact_twin, normal_twin: int64, beside them: a training row of that text, with the same label if there is one.
        other_label: rows of both kinds whose label no such training row has.
    """

    exact: np.ndarray
    normal: np.ndarray
    exact_twin: np.ndarray
    normal_twin: np.ndarray
    other_label: int


def shared_texts(train: Looked, test: Looked) -> SharedTexts:
    compared = train.has_labels and test.has_labels
    ours, theirs = _numbered_alike(train, test) if compared else (train.labels, np.full(test.rows, -1, np.int64))
    twin, agrees = _twins(train.exact, train.normal, ours, test.exact, test.normal, theirs)
    form_twin, form_agrees = _twins(train.normal, train.normal, ours, test.normal, test.normal, theirs)
    exact = np.flatnonzero(twin >= 0)
    normal = np.flatnonzero((twin < 0) & (form_twin >= 0))
    other = int((~agrees[exact]).sum() + (~form_agrees[normal]).sum()) if compared else 0
    return SharedTexts(exact, normal, twin[exact], form_twin[normal], other)


def _numbered_alike(train: Looked, test: Looked) -> tuple[np.ndarray, np.ndarray]:
    """The labels of both, int64, in one numbering: the training set's, unless one of the two has more labels than have
    numbers."""
    if any(int(each.labels.max(initial=-1)) >= len(each.label_names) for each in (train, test)):
        return _all_hashed(train), _all_hashed(test)
    numbers = {name: number for number, name in enumerate(train.label_names)}
    to_train = np.array([numbers.get(name, -2 - i) for i, name in enumerate(test.label_names)], np.int64)
    return train.labels, to_train[test.labels]


def _all_hashed(looked: Looked) -> np.ndarray:
    known = len(looked.label_names)
    to_hash = np.array([*map(_hashed, looked.label_names), 0], np.int64)
    return np.where(looked.labels < known, to_hash[np.minimum(looked.labels, known)], looked.labels)


def _hashes(text: Text) -> bytes:
    """Two times 8 bytes: of the text, and of its normal form; of a pair, of both texts."""
    form = PAIR_MARK.join(map(normal_form, parts_of(text)))
    text = PAIR_MARK.join(parts_of(text))
    first = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return first + (first if form == text else hashlib.blake2b(form.encode(), digest_size=8).digest())


def _number(label: Spelled, numbers: dict[Spelled, int]) -> int:
    """The label's number; beyond MAX_LABELS labels, numbers are hashes, and names are not kept."""
    number = numbers.get(label)
    if number is None:
        if len(numbers) < MAX_LABELS:
            number = numbers[label] = len(numbers)
        else:
            number = _hashed(label if isinstance(label, str) else list_name(label))
    return number


def _hashed(label: str) -> int:
    hashed = int.from_bytes(hashlib.blake2b(label.encode(), digest_size=4).digest(), "little")
    return MAX_LABELS + hashed % (2**31 - 1 - MAX_LABELS)


def _join(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _sorted(looked: Looked) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(all rows by form, text, label, place; whether each has the text, the label, the form of the one before)"""
    order = np.lexsort((looked.labels, looked.exact, looked.normal))

    def repeats(values: np.ndarray) -> np.ndarray:
        values = values[order]
        return np.concatenate([[False], values[1:] == values[:-1]]) if len(values) else np.empty(0, bool)

    same_form = repeats(looked.normal)
    return order, same_form & repeats(looked.exact), repeats(looked.labels), same_form


def _runs(order: np.ndarray, same: np.ndarray) -> Groups:
    """The runs in which each row is the same as the one before, by their first rows."""
    if not same.any():
        return Groups(np.empty(0, np.int64), np.zeros(1, np.int64))
    inside = same | np.append(same[1:], False)
    rows, begins = order[inside], np.flatnonzero(~same[inside])
    sizes = np.diff(np.append(begins, len(rows)))
    first = np.minimum.reduceat(rows, begins)
    return Groups(
        rows[np.lexsort((rows, np.repeat(first, sizes)))], np.concatenate([[0], np.cumsum(sizes[np.argsort(first)])])
    )


def _twins(
    train_keys: np.ndarray,
    train_checks: np.ndarray,
    train_labels: np.ndarray,
    test_keys: np.ndarray,
    test_checks: np.ndarray,
    test_labels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(a training row with the key of each test row, -1 without one; whether one with its label, too, was found)"""
    twin, agrees = np.full(len(test_keys), -1, np.int64), np.zeros(len(test_keys), bool)
    candidates = np.flatnonzero(np.isin(train_keys, test_keys))
    if not len(candidates):
        return twin, agrees
    order = candidates[np.lexsort((train_labels[candidates], train_keys[candidates]))]
    keys, first = np.unique(train_keys[order], return_index=True)
    found = np.minimum(np.searchsorted(keys, test_keys), len(keys) - 1)
    is_there = (keys[found] == test_keys) & (train_checks[order[first[found]]] == test_checks)
    twin[is_there] = order[first[found[is_there]]]
    # key and label as one number
    pairs = (np.searchsorted(keys, train_keys[order]) << 33) + train_labels[order] + (1 << 32)
    wanted = (found << 33) + test_labels + (1 << 32)
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    agrees = is_there & (pairs[place] == wanted)
    twin[agrees] = order[place[agrees]]
    return twin, agrees
