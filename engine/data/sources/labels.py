"""From what stands in a label column to the names of the classes.

A row gives a *spelling*: `1`, `1.0`, `True`, `pos `. Which spellings are one class is a fact of the whole column, over
all its files and rows, whatever their order: 1 and 1.0 are one number where everything is a number, and two versions
beside a `beta`.
"""

import datetime
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Context, Decimal
from typing import Any

import numpy as np

MISSING = object()  # a column that a row does not have, as against one that is null

MIN_ROWS_FOR_SINGLES = 50  # fewer rows may well have a class each: somebody tries something out
LISTED = 8  # how many of anything a notice lists

_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]{0,399})(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,3})?")
# How tables, languages and spreadsheets write that there is nothing, or no number.
_NOTHING = {
    *("nan", "nat", "null", "none", "nil", "na", "n/a", "#n/a", "#na", "<na>", "#null!", "#value!", "#ref!", "#div/0!"),
    *("inf", "+inf", "-inf", "infinity", "-infinity", "-", "--", "?"),
}


def spelling(label: Any, column: str) -> str:
    """A row's label as text, as it stands there; numbers as Python writes them, truth values "true" and "false".

    Raises:
        ValueError: there is none, or it is nothing that names a class.
    """
    if label is MISSING:
        raise ValueError(f"no field {column!r}")
    if isinstance(label, np.bool_ | np.integer | np.floating):
        label = label.item()
    if label is None or (isinstance(label, float) and math.isnan(label)):
        raise ValueError(f"{column!r} is null")
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, float):
        if math.isinf(label):
            raise ValueError(f"{column!r} is infinite")
        return repr(float(label))
    if isinstance(label, int | Decimal | datetime.date | datetime.time | datetime.timedelta):
        return str(label)
    if not isinstance(label, str):
        raise ValueError(f"{column!r} is {kind_of_value(label)}, not a number or a string")
    if not label.strip():
        raise ValueError(f"{column!r} is empty")
    return label


def list_items(label: Any, column: str, separator: str | None) -> list[Any]:
    """The labels of one row of a column that holds several a row; none for an empty list, or an empty text.

    Args:
        label: a list; a text, where there is a separator; a number or truth value, which then stands alone.
        separator: between the labels in a text; None where there are lists alone.

    Raises:
        ValueError: it is neither; or it says of each label whether the row has it.
    """
    if isinstance(label, np.ndarray):
        label = label.tolist()
    if isinstance(label, list | tuple) and len(label) > 1 and _marks(label):
        raise ValueError(f"{column!r} has a 0 or 1 for each label, {label!r:.60}: give the names of a row's labels")
    if isinstance(label, list | tuple | set | frozenset):
        return sorted(label, key=repr) if isinstance(label, set | frozenset) else list(label)
    if label is MISSING:
        raise ValueError(f"no field {column!r}")
    if separator is not None and isinstance(label, str):
        pieces = [one.strip() for one in label.split(separator)] if label.strip() else []
        if "" in pieces:
            raise ValueError(f"{column!r} has an empty label beside a {separator!r}")
        return pieces
    if label is None or (isinstance(label, float) and math.isnan(label)):
        raise ValueError(f"{column!r} is null; an empty list says that a row has no label")
    if separator is not None:
        return [label]
    raise ValueError(f"{column!r} is {kind_of_value(label)} where other rows have lists of labels")


def _marks(items: Sequence[Any]) -> bool:
    """Whether these are a row of a matrix that says of each label whether a text has it, not labels: zeros and ones,
    one of them more than once."""
    try:
        distinct = set(items)
    except TypeError:  # of lists, say, which are refused as labels
        return False
    return len(distinct) < len(items) and distinct <= {0, 1}


def kind_of_value(value: Any) -> str:
    """What a value is, in words for a message."""
    kinds: dict[type, str] = {dict: "an object", list: "a list", tuple: "a list", str: "a string"}
    kinds |= {int: "a number", float: "a number", bool: "a truth value"}
    return kinds.get(type(value), type(value).__name__)


def number_name(spelled: str) -> str | None:
    """The one name of a finite number (1, 1.0, "1.00" and "1e0" are "1"); None for anything else, "007" too."""
    spelled = spelled.strip()
    if not _NUMBER.fullmatch(spelled):
        return None
    number = Decimal(spelled)
    number = number.normalize(Context(prec=max(1, len(number.as_tuple().digits))))
    if not number:
        return "0"
    return format(number, "f") if -7 <= number.adjusted() <= 400 else str(number)


def truth_name(spelled: str) -> str | None:
    """ "true" or "false", however it is capitalised; None for anything else."""
    spelled = spelled.strip().lower()
    return spelled if spelled in ("true", "false") else None


# Kinds of columns, the narrower first, each with the rule that gives a spelling its name, or None if it is no such.
KINDS: dict[str, Callable[[str], str | None]] = {
    "numbers": number_name,
    "truth values": truth_name,
    "text": str.strip,
}


def kind_of(spellings: Iterable[str]) -> str:
    """The kind of a column in which these, and no others, occur."""
    spellings = list(spellings)
    return next(kind for kind, rule in KINDS.items() if all(rule(spelled) is not None for spelled in spellings))


class LabelNames:
    """The known classes, by the spellings of new data: read as the column was from which they come.

    Args:
        names: of the classes, as a store or a run has them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._rule = KINDS[kind_of(names)]
        self._known = {name: name for name in names}
        rewritten = defaultdict(list)
        for name in names:
            rewritten[self._rule(name)].append(name)
        # Older stores told 2.5 from 2.50: what could be either of two is neither.
        self._by_rule = {rule_name: alike[0] for rule_name, alike in rewritten.items() if len(alike) == 1}

    def __call__(self, spelled: str) -> str | None:
        """The class; None if there is no such."""
        known = self._known.get(spelled)
        return known if known is not None else self._by_rule.get(self._rule(spelled))


def sort_labels(names: Sequence[str]) -> list[str]:
    """Numbers by value where all are numbers, otherwise all by code point: never by the order in which they came."""
    if all(number_name(name) is not None for name in names):
        return sorted(names, key=lambda name: (Decimal(name), name))
    return sorted(names)


def merged_spellings(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """For each class its spellings with their rows."""
    rule = KINDS[kind_of(counts)]
    merged: dict[str, dict[str, int]] = {}
    for spelled in sorted(counts):
        name = rule(spelled)
        assert name is not None
        merged.setdefault(name, {})[spelled] = counts[spelled]
    return merged


def known_spellings(counts: Mapping[str, int], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """As `merged_spellings`, of labels that are among the known classes."""
    named = LabelNames(names)
    merged: dict[str, dict[str, int]] = {}
    for spelled in sorted(counts):
        name = named(spelled)
        assert name is not None
        merged.setdefault(name, {})[spelled] = counts[spelled]
    return merged


def merged_notices(column: str, merged: Mapping[str, Mapping[str, int]]) -> list[str]:
    """As `notices`, of merged labels alone: of data whose classes those of other data are."""
    joined = {name: spelled for name, spelled in merged.items() if len(spelled) > 1}
    listed = [
        " and ".join(f"{one!r} ({rows:,} rows)" for one, rows in spelled.items()) + f" as {name!r}"
        for name, spelled in joined.items()
    ]
    return [f"column {column!r}: labels that are one class: {_listed(listed, '; ')}"] if listed else []


def notices(column: str, merged: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Lines about labels that are, or may not be, what was meant: merged ones, words for nothing, several in one,
    lookalikes.

    Args:
        column: the label column's name.
        merged: as `merged_spellings` gives them.
    """
    lines = merged_notices(column, merged)
    counts = {name: sum(spelled.values()) for name, spelled in merged.items()}
    nothing = [f"{name!r} ({rows:,} rows)" for name, rows in counts.items() if name.lower() in _NOTHING]
    if nothing:
        lines.append(
            f"warning: column {column!r}: labels that may mean that there is none: {_listed(nothing)}; they are kept "
            "as classes: take those rows out if they are not"
        )
    for separator in ",;|":
        made = sorted(name for name in counts if separator in name)
        parts = {part.strip() for name in made for part in name.split(separator)}
        if made and parts <= counts.keys():
            lines.append(
                f"warning: column {column!r}: labels made of other labels: {_listed([repr(name) for name in made])}; "
                f"they are classes of their own: --label-separator '{separator}' gives a row several"
            )
    alike = defaultdict(list)
    for name, rows in counts.items():
        alike[_look(name)].append(f"{name!a} ({rows:,} rows)")
    pairs = [" and ".join(names) for names in alike.values() if len(names) > 1]
    if pairs:
        lines.append(
            f"warning: column {column!r}: labels that differ only in case, blanks or the form of their letters: "
            f"{_listed(pairs, '; ')}; they are different classes"
        )
    return lines


def mostly_single(counts: Mapping[str, int]) -> int:
    """How many rows have a class of their own, if that is more than half of them, of 50 at least; otherwise 0.

    A class with one example can be neither learned and checked nor split: such a column holds numbers of rows, titles
    or measurements. Two examples of each class, however many classes, are a small training set, and pass.
    """
    rows, single = sum(counts.values()), sum(count == 1 for count in counts.values())
    return single if rows >= MIN_ROWS_FOR_SINGLES and 2 * single > rows else 0


def _look(name: str) -> str:
    visible = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", visible).casefold().split()))


def _listed(items: Sequence[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - LISTED:,} more" if len(items) > LISTED else ""
    return separator.join(items[:LISTED]) + more
