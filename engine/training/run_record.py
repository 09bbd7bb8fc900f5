"""What a run's folder says of itself, read without torch: so that mistakes show at once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.data.job import JOB_NAME
from penstock.engine.data.manifest import MANIFEST_NAME
from penstock.engine.data.sources import Reading, Source, open_source
from penstock.engine.data.store import Store
from penstock.engine.errors import RunError, SourceError, StoreError


def read_record(path: Path | str) -> dict[str, Any]:
    """The contents of RUN/run.json.

    Raises:
        RunError: the path holds no run, or a damaged one.
    """
    file = Path(path) / "run.json"
    try:
        record = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path} holds no run: there is no run.json") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}") from None
    if not isinstance(record, dict) or record.get("format") != 1:
        raise RunError(f"{file} was written by another version of penstock")
    return record


def read_trained_record(path: Path | str) -> dict[str, Any]:
    """As `read_record`, of a run that has a model.

    Raises:
        RunError: also if it has none yet.
    """
    record = read_record(path)
    if not (Path(path) / "best").exists():
        raise RunError(f"{path} has no model yet: train it first")
    return record


def check_fits(store: Store, data: dict[str, Any]) -> None:
    """Raises StoreError unless the store has the training data's tokenizer and labels."""
    for what, here, there in (
        ("tokenizer", store.manifest.tokenizer.fingerprint, data["tokenizer"]),
        ("labels", store.label_names, data["label_names"]),
    ):
        if here != there:
            raise StoreError(
                f"{store.path} was prepared with other {what} than the training data: "
                f"prepare it with --like {data['store']}"
            )

    if store.multi_label != data.get("multi_label", False):
        here, there = ("lists of labels", "one label") if store.multi_label else ("one label", "lists of labels")
        raise StoreError(
            f"{store.path} has {here} a row, the training data had {there}: prepare it with --like {data['store']}"
        )


def check_labels(source: Source, data: dict[str, Any]) -> None:
    """Raises SourceError unless the source has lists of labels if the training data had, and else single ones."""
    there = data.get("multi_label", False)
    if source.multi_label != there:
        what = "one label a row, the training data had lists" if there else "lists of labels, the training data had one"
        more = ": --label-separator says what stands between the labels of a text" if there else " a row"
        raise SourceError(f"{source.name}: column {source.label!r} has {what}{more}")


def saved_thresholds(path: Path | str, num_labels: int) -> np.ndarray:
    """float64 (num_labels,): of the run's best model, see `multi_label.thresholds_of`.

    Raises:
        RunError: the model's configuration cannot be read.
    """
    file = Path(path) / "best" / "config.json"
    try:
        kept = json.loads(file.read_text()).get("thresholds")
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}") from None
    return np.full(num_labels, 0.5) if kept is None else np.asarray(kept, np.float64)


def is_store(path: str) -> bool:
    """A folder is a store, finished or not, or meant to be one: it has a store's files or none at all."""
    folder = Path(path)
    if not folder.is_dir():
        return False
    return any((folder / name).exists() for name in (MANIFEST_NAME, JOB_NAME)) or not any(folder.iterdir())


def open_like_training(
    name: str,
    data: dict[str, Any],
    *,
    text: str | None = None,
    label: str | None = None,
    need_label: bool = True,
    label_separator: str | None = None,
) -> Source:
    """A raw source, with the training data's column names and separator of labels where none are given.

    Args:
        data: the entry `data` of run.json.

    Raises:
        SourceError: it cannot be opened, or has no such columns.
    """
    separator = label_separator if label_separator is not None else data.get("label_separator")
    given: dict[str, Any] = {"need_label": need_label, "reading": Reading(label_separator=separator)}
    try:
        return open_source(name, text=text or data["text"], label=label or data["label"], **given)
    except SourceError:
        # other columns than in training: the usual names, or a message that lists what is there
        return open_source(name, text=text, label=label, **given)


def files_of(sources: Sequence[Source]) -> list[Path]:
    """The files that the sources are read from."""
    return [source.path for source in sources if source.path is not None]
