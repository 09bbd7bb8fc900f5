"""Sources that are read as earlier data was: from the same columns, where they are there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engine.data.progress import print_line
from penstock.engine.data.sources.base import PLAIN_READING, NoColumn, Reading, Source
from penstock.engine.data.sources.open import open_sources
from penstock.engine.data.store import Store


@dataclass(frozen=True)
class Columns:
    """What earlier data was read from.

    Attributes:
        text, label: the columns; label is None where there was none. is_pair: whether a row has two texts.
        where: what a line for the user calls that data.
    """

    text: str
    label: str | None
    is_pair: bool
    where: str

    @classmethod
    def of(cls, store: Store) -> "Columns":
        """Those that a store was prepared from."""
        first = store.manifest.sources[0]
        return cls(first.text, first.label or None, store.is_pair, str(store.path))


def open_alike(
    given: Any,
    like: Columns,
    *,
    text: str | None = None,
    label: str | None = None,
    need_label: bool = True,
    reading: Reading = PLAIN_READING,
    say: Callable[[str], None] = print_line,
    out: Path | None = None,
) -> list[Source]:
    """As `open_sources`; columns that are not named are those of the earlier data. Where a source lacks one of them,
    the usual one is taken instead; one that is there and cannot be read is an error.

    Args:
        say: is told which.

    Raises:
        SourceError: as `open_sources`.
    """
    texts = [text] if text is not None else [like.text] if like.is_pair else [like.text, None]  # pairs have no usual
    labels = [label] if label is not None or like.label is None or not need_label else [like.label, None]
    choices = [(own_text, own_label) for own_text in texts for own_label in labels]
    for place, (own_text, own_label) in enumerate(choices):
        try:
            sources = open_sources(
                given, text=own_text, label=own_label, need_label=need_label, reading=reading, out=out
            )
        except NoColumn:
            if place < len(choices) - 1:
                continue
            raise  # which lists the columns that are there
        if place and text is None:
            _say_other(say, "texts", [(one, one.text) for one in sources], like.text, like.where)
        if place and label is None:
            _say_other(say, "labels", [(one, one.label) for one in sources], like.label, like.where)
        break
    return sources


def _say_other(
    say: Callable[[str], None], what: str, read: Sequence[tuple[Source, str | None]], wanted: str | None, where: str
) -> None:
    named = [(source, column) for source, column in read if source.named_columns and source.columns != ["text"]]
    other = [(source, column) for source, column in named if column not in (None, wanted)]
    if other:  # one column in all sources, for want of the other one in at least one of them
        source, column = next((one for one in other if wanted not in one[0].columns), other[0])
        said = f"note: {source.name}: {what} are read from column {column!r}; there is none called {wanted!r}"
        say(f"{said}, as in {where}")
