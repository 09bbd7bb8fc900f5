"""Fields inside of objects, named as columns are: `ticket.subject` is the field `subject` of the objects in `ticket`.

A column whose own name has dots is found first, and so is such a field.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeAlias

from penstock.engine.data.sources.labels import MISSING

LISTED = 20  # fields that a message names: the keys of an object may be as many as its rows

Steps: TypeAlias = tuple[str, ...]  # the name of a column, then those of the fields that lead further in


class Names:
    """What can be read from a source, by the names that one writes.

    Args:
        columns: those there are.
        inside: the names of the fields of the objects to which some steps lead, none where it is not known of any.
    """

    def __init__(self, columns: Collection[str], inside: Callable[[Steps], Collection[str]]) -> None:
        self._columns, self._inside = columns, inside

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.steps(name) is not None

    def steps(self, name: str, outer: Steps = ()) -> Steps | None:
        """What leads to a column or a field; None where there is no such. Of outer names the longest is taken.

        Args:
            outer: leads to the objects whose field it is.
        """
        if name in self._at(outer):
            return (*outer, name)
        found = (self.steps(rest, (*outer, first)) for first, rest in self._cut(name, outer))
        return next((steps for steps in found if steps is not None), None)

    def are_double(self, steps: Steps) -> bool:
        """Whether one of these names stands twice where it is."""
        return any(list(self._at(steps[:depth])).count(name) > 1 for depth, name in enumerate(steps))

    def there_are(self, name: str) -> str:
        """For a message that there is no such column or field: which there are where it was looked for."""
        outer: Steps = ()
        while cut := next((cut for cut in self._cut(name, outer) if self._at((*outer, cut[0]))), None):
            outer, name = (*outer, cut[0]), cut[1]
        present = list(map(str, self._at(outer)))
        if not outer:
            return f"there are: {', '.join(map(_shown, present)) or 'none'}"
        more = f" and {len(present) - LISTED:,} more" if len(present) > LISTED else ""
        said = f"in {'.'.join(outer)!r} there are: {', '.join(map(_shown, present[:LISTED]))}{more}"
        return said.encode("utf-8", "backslashreplace").decode()  # half a character in a name cannot be shown

    def _at(self, outer: Steps) -> Collection[str]:
        return self._inside(outer) if outer else self._columns

    def _cut(self, name: str, outer: Steps) -> Iterator[tuple[str, str]]:
        """The name in two at a dot, where the first part is there; the longest first part first."""
        present = self._at(outer)
        for place in range(len(name) - 1, -1, -1):
            if name[place] == "." and name[:place] in present:
                yield name[:place], name[place + 1 :]


def _shown(name: str) -> str:
    """A name in a list of names: in quotes where one would not see where it begins and ends."""
    return name if name and not any(letter.isspace() or letter == "," for letter in name) else repr(name)


def value_at(value: Any, steps: Steps) -> Any:
    """What stands where the steps lead from an object: None too where one on the way is null, and `MISSING` where one
    is missing or no object."""
    for name in steps:
        if not isinstance(value, dict):
            return None if value is None else MISSING
        value = value.get(name, MISSING)
    return value


def objects_in(record: dict[str, Any], asked: Collection[str], outer: Steps = ()) -> list[tuple[Steps, dict]]:
    """An object, then those inside of it, each with the steps to it.

    Args:
        asked: what columns are to be read; inside of it only objects of which one of these may name a field.
    """
    found = [(outer, record)]
    if asked:
        for name, value in record.items():
            steps = (*outer, name)
            if isinstance(value, dict) and any(f"{'.'.join(steps)}." in one for one in asked):
                found += objects_in(value, asked, steps)
    return found
