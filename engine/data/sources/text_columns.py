"""Which columns make a row's text: one column, several joined, or two texts that belong together.

`title` is a column; `title+body` is one text, the columns' joined by a newline; `title,body` is a pair of texts, each
made of one column or of several joined. A column whose own name holds a comma or a plus is found first. Fields
inside of objects are columns too, see `fields.Names`.
"""

import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

JOINT = "\n"  # between the columns of one text

Text: TypeAlias = str | tuple[str, str]  # of one row: all rows of a source have texts, or pairs


class NoSuchColumn(ValueError):
    """A part of what was asked for is no column."""


class TooManyTexts(ValueError):
    """Three columns or more are asked for as texts of their own."""


@dataclass(frozen=True)
class TextColumns:
    """
    Attributes:
        texts: for the one text, or for both of a pair, the names of its columns.
    """

    texts: tuple[tuple[str, ...], ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All columns, in order, each as often as it was named."""
        return tuple(name for columns in self.texts for name in columns)

    @property
    def is_pair(self) -> bool:
        return len(self.texts) == 2

    @property
    def is_plain(self) -> bool:
        """Whether a row's text is what stands in one column."""
        return len(self.names) == 1

    @cached_property
    def combine(self) -> Callable[[Any], Any]:
        """From a row's values of `names` to its text, or its pair of texts."""
        if not self.is_pair:
            return JOINT.join
        if len(self.names) == 2:
            return tuple
        first = len(self.texts[0])
        return lambda values: (JOINT.join(values[:first]), JOINT.join(values[first:]))


def plain(name: str) -> TextColumns:
    return TextColumns(((name,),))


def text_columns(given: str, present: Container[str]) -> TextColumns:
    """What `given` means where these columns are present.

    Raises:
        NoSuchColumn: a part of it is no column; its text is that part.
        TooManyTexts: there are three texts in it or more.
    """
    if given in present:
        return plain(given)
    parts = re.split(r"([,+])", given)  # names at even places, what stands between them at odd ones
    found = _columns(parts, present)
    if found is None:
        missing = [part.strip() for part in parts[::2] if part.strip() not in present]
        raise NoSuchColumn(missing[0] if missing else given)
    texts: list[tuple[str, ...]] = [()]
    for mark, name in found:
        if mark == ",":
            texts.append(())
        texts[-1] += (name,)
    if len(texts) > 2:
        raise TooManyTexts(given)
    return TextColumns(tuple(texts))


def _columns(parts: list[str], present: Container[str], mark: str = "") -> list[tuple[str, str]] | None:
    """The columns with the mark before each, the longest names first; None if these are not all there."""
    for count in range(len(parts), 0, -2):
        written = "".join(parts[:count])
        for name in (written, written.strip()):
            if name in present:
                rest = parts[count:]
                if not rest:
                    return [(mark, name)]
                more = _columns(rest[1:], present, rest[0])
                if more is not None:
                    return [(mark, name), *more]
    return None


def parts_of(text: Text) -> tuple[str, ...]:
    """A row's one text, or both."""
    return (text,) if isinstance(text, str) else text


def single_texts(texts: Sequence[Text]) -> Sequence[str]:
    """Pairs one text after the other; single texts as they are."""
    return list(chain.from_iterable(texts)) if texts and isinstance(texts[0], tuple) else texts  # type: ignore
