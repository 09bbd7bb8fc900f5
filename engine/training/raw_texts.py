"""Texts without labels that a command is given as they are, and prepares beside its run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engine.data.sources import Reading
from penstock.engine.data.store import Store
from penstock.engine.errors import OtherDataError


@dataclass(frozen=True)
class RawTexts:
    """How texts are prepared that are no store: as `prepare` has it.

    Attributes:
        tokenizer: None for the usual one.
    """

    text: str | None
    reading: Reading
    tokenizer: str | None = None

    @property
    def stated(self) -> list[str]:
        """The options that were given."""
        given = {
            "--tokenizer": self.tokenizer,
            "--text": self.text,
            "--separator": self.reading.separator,
            "--encoding": self.reading.encoding,
        }
        return [option for option, value in given.items() if value is not None]

    def prepare(self, sources: Any, name: str, place: Path, **choices: Any) -> Store:
        """
        Args:
            name: of the sources, for messages. choices: as `prepare` takes them.

        Raises:
            OtherDataError: `place` has a store of other texts. PenstockError: as `prepare`.
        """
        from penstock.engine.data.prepare import prepare

        try:
            return prepare(sources, place, reading=self.reading, unlabelled=True, **choices)
        except OtherDataError:
            raise OtherDataError(
                f"{place} was prepared from other texts or settings than {name} gives now: remove it, or give another "
                "--out"
            ) from None
