"""What a run reads: its rows of the stores, cut as its settings say, and what identifies them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.data.store import Store
from penstock.engine.data.transfer_set import TransferSet
from penstock.engine.errors import RunError
from penstock.engine.training.reading import Reading, read_by
from penstock.engine.training.run_directory import VALIDATION_NAME
from penstock.engine.training.run_record import about_cut, as_trained, how_stored
from penstock.engine.training.setting_use import FREE_KEYS
from penstock.engine.training.settings import Settings, load_saved_settings
from penstock.engine.training.split import split_rows


@dataclass(frozen=True)
class RunData:
    """
    Attributes:
        train: the training store as it is read, its texts cut. test: the test store likewise; None for none.
        rows, validation_rows: int64, of the training store.
        reading: how much of its texts is read.
    """

    train: Store
    rows: np.ndarray
    validation_rows: np.ndarray
    test: Store | None
    reading: Reading

    @classmethod
    def of(
        cls,
        settings: Settings,
        train: Store,
        test: Store | None = None,
        rows: np.ndarray | None = None,
        validation_rows: np.ndarray | None = None,
    ) -> "RunData":
        """
        Args:
            settings: resolved. train, test: whole. rows, validation_rows: as `train` takes them.

        Raises:
            ConfigError: the rows cannot be split, or texts not be cut as the settings say.
            StoreError: the test store has other labels or another tokenizer than the training store.
        """
        train = read_by(settings, train.read_with(settings.data.reader))
        rows, validation_rows = split_rows(settings, train, rows, validation_rows)
        if test is not None:
            test = as_trained(test.read_with(settings.data.reader), describe_data(train), say=lambda line: None)
        return cls(train, rows, validation_rows, test, Reading.of(train, np.concatenate([rows, validation_rows])))

    @property
    def stores(self) -> list[Store]:
        """Those on the disk that are read."""
        read = list(self.train.parts) if isinstance(self.train, TransferSet) else [self.train]
        return read if self.test is None else [*read, self.test]

    @property
    def about_test(self) -> list[str]:
        """Lines about a test set of which less is left than the run reads, or that is the training set."""
        if self.test is None:
            return []
        cut = about_cut(self.test, describe_data(self.train))
        lines = [] if cut is None else [cut]
        if self.test.fingerprint in [store.fingerprint for store in self.stores[:-1]]:
            lines.append(f"warning: {self.test.path} is the training data: accuracy there says nothing of other texts")
        return lines

    def description(self) -> dict[str, Any]:
        """The entry `data` of run.json."""
        place = {} if self.test is None else {"test": str(self.test.path.resolve())}
        return {**describe_data(self.train), "reads": self.reading.to_json(), **place}

    def places(self) -> dict[str, Any]:
        """The part of `description` that says where the stores are."""
        return {key: place for key, place in self.description().items() if key in ("store", "distillation", "test")}

    def identity(self, settings: Settings) -> dict[str, Any]:
        """All that decides a run's result."""
        return {key: value for key, value in settings.flat().items() if key not in FREE_KEYS} | self.own_identity()

    def own_identity(self) -> dict[str, Any]:
        """The part of `identity` that is no setting."""
        joined = {}
        if isinstance(self.train, TransferSet):  # whose fingerprint has the teachers' logits in it
            joined["stores"] = " + ".join(part.fingerprint for part in self.train.parts)
        return {
            "training data": self.train.fingerprint,
            **joined,
            "training rows": digest_of(self.rows),
            "validation rows": digest_of(self.validation_rows),
            "test data": self.test.fingerprint if self.test else None,
        }


def describe_data(store: Store) -> dict[str, Any]:
    """What run.json keeps of the training data, so that new data can be read the same way.

    Args:
        store: as the run reads it.
    """
    manifest = store.manifest
    lists = {"multi_label": True, "label_separator": manifest.label_separator} if store.multi_label else {}
    origin = {"distillation": store.origin} if isinstance(store, TransferSet) else {}
    return {
        "store": store.origin["like"] if isinstance(store, TransferSet) else str(store.path.resolve()),
        "tokenizer": manifest.tokenizer.fingerprint,
        "label_names": store.label_names,
        "max_length": store.max_length,
        "truncation": store.truncation,
        "stored": how_stored(store),
        "text": manifest.sources[0].text,
        "label": manifest.sources[0].label,
        **lists,
        **({"is_pair": True} if manifest.is_pair else {}),
        **origin,
    }


def validation_rows_of(run: Path, train: Store) -> np.ndarray:
    """int64: the rows by which a run chose its best model.

    Args:
        train: its training store. An earlier penstock's run says nothing of its rows: these are then those that a run
            on all of the store has.

    Raises:
        RunError: the file with them is damaged.
    """
    file = run / VALIDATION_NAME
    try:
        return np.load(file, allow_pickle=False)
    except FileNotFoundError:
        return split_rows(load_saved_settings(run / "config.yaml"), train, None, None)[1]
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{file} is damaged: {error}; put it back from a copy") from None


def digest_of(rows: np.ndarray) -> str:
    """One line of text for row numbers."""
    return f"{len(rows)} rows, {hashlib.blake2b(rows.astype(np.int64).tobytes(), digest_size=8).hexdigest()}"
