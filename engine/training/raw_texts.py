"""Texts without labels that a command is given as they are, and prepares beside its run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engine.data.hub_names import is_same, settled
from penstock.engine.data.progress import RowProgress
from penstock.engine.data.sources import Reading, open_sources
from penstock.engine.data.store import Store
from penstock.engine.data.survey import survey
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
            raise _other_texts(name, place) from None

    def as_begun(self, name: str, place: Path) -> Store | None:
        """The store that a run was begun with, if it has the tokenizer that is asked for. That may be gone by now, so
        the texts alone are compared.

        Args:
            name: of the sources.

        Raises:
            OtherDataError: `place` has a store of other texts. PenstockError: they cannot be read, or the store cannot.
        """
        store = Store.open(place, labelled=False)
        origin = store.manifest.tokenizer.origin
        if self.tokenizer is not None and not is_same(settled(self.tokenizer), origin):
            return None
        opened = open_sources(name, text=self.text, need_label=False, reading=self.reading, out=place)
        with RowProgress("reading") as bar:
            found = survey(opened, quarantine=None, advance=bar.advance)
        if (found.rows, found.content) != (store.num_examples, store.manifest.content):
            raise _other_texts(name, place)
        return store


def _other_texts(name: str, place: Path) -> OtherDataError:
    return OtherDataError(
        f"{place} was prepared from other texts or settings than {name} gives now: give another --out, or remove it if "
        "no run needs it"
    )
