"""Rows as lines of CSV that every reader takes apart as they were."""

import csv
from collections.abc import Iterable, Sequence
from typing import Any


class _Lines(list[str]):
    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def csv_text(rows: Iterable[Sequence[Any]], delimiter: str = ",") -> str:
    """The rows' lines, each with its newline.

    Python's csv quotes of line ends those alone that it writes: a lone carriage return, which readers take for the end
    of a row, is quoted because it is told to write both.
    """
    lines = _Lines()
    csv.writer(lines, delimiter=delimiter, lineterminator="\r\n").writerows(rows)
    return "".join(lines)
