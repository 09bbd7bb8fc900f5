"""Long tables of cases: a regular sample, so that the slow tests end in time; all with PENSTOCK_WHOLE_TABLES=1."""

import os
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")
WHOLE = bool(os.environ.get("PENSTOCK_WHOLE_TABLES"))


def sampled(cases: Iterable[T], every: int) -> list[T]:
    """One case of each `every`, the first among them; all of them where the environment asks for that."""
    return list(cases)[:: 1 if WHOLE else every]
