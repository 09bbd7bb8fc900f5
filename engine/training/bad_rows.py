"""What is done with rows that cannot be used when a trained model reads raw data."""

import json
import sys
from typing import Any

from penstock.engine.data.sources import BadRow, Source
from penstock.engine.errors import SourceError

SHOWN = 3  # bad rows told of singly


class BadRowReport:
    """Counts bad rows, by the choice of `--bad-rows`.

    Args:
        choice: "fail", or what the caller does with them ("keep", "skip", "quarantine").
        quarantine: for the last: the name of a file and the file, for one JSON object a row.

    Attributes:
        count: bad rows so far.
    """

    def __init__(self, choice: str, quarantine: tuple[str, Any] | None = None) -> None:
        self.count = 0
        self._choice = choice
        self._quarantine = quarantine
        self._examples: list[str] = []

    def __call__(self, source: Source, bad: list[BadRow]) -> None:
        """
        Raises:
            SourceError: the choice is "fail"; it names the first row and its fault.
        """
        if self._choice == "fail":
            place, reason = source.position(bad[0].position), bad[0].reason + source.advice(bad[0])
            raise SourceError(f"{place}: {reason} (--bad-rows says what else to do with such rows)")
        self.count += len(bad)
        for row in bad[: max(0, SHOWN - len(self._examples))]:
            self._examples.append(f"{source.position(row.position)}: {row.reason}{source.advice(row)}")
        if self._quarantine is not None:
            for row in bad:
                entry = {"source": source.name, source.unit: row.position, "reason": row.reason, "excerpt": row.excerpt}
                self._quarantine[1].write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")

    def print_examples(self) -> None:
        """The first bad rows and how many more there are, on stderr; nothing if there was none."""
        for example in self._examples:
            print(f"penstock: {example}", file=sys.stderr)
        if self.count > len(self._examples):
            print(f"penstock: and {self.count - len(self._examples):,} more such rows", file=sys.stderr)
        if self.count and self._quarantine is not None:
            print(f"penstock: set aside in {self._quarantine[0]}", file=sys.stderr)
