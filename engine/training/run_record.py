"""What a run's folder says of itself, read without torch: so that mistakes show at once."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penstock.engine.checked import SEAL_NAME, DamageError, crc32_of, without_checksum
from penstock.engine.data.cut import texts_cut_short
from penstock.engine.data.job import JOB_NAME
from penstock.engine.data.manifest import MANIFEST_NAME, Truncation
from penstock.engine.data.progress import print_line
from penstock.engine.data.sources import PLAIN_READING, Reading, Source
from penstock.engine.data.sources.alike import Columns, open_alike
from penstock.engine.data.sources.open import check_once
from penstock.engine.data.store import Store
from penstock.engine.errors import RunError, SourceError, StoreError
from penstock.engine.records import check_entries, check_range, read_json

_ENTRIES: dict[str, Any] = {
    "status": Literal["running", "complete"],
    "identity": dict,
    "data": dict,
    "versions": dict,
    "result": dict | None,
    "config": list[int],
}
_DATA: dict[str, Any] = {
    "store": str,
    "tokenizer": str,
    "label_names": list[str],
    "max_length": int,
    "truncation": Truncation,
    "text": str,
    "label": str,
    "multi_label": bool,
    "label_separator": str | None,
    "is_pair": bool,
    "stored": str,
    "test": str,
    "distillation": dict,
}
_ALWAYS = ("store", "tokenizer", "label_names", "max_length", "truncation", "text", "label")

FORMAT = 2  # of a run: 1 had no checksums
_REMEDY = "put it back from a copy, or train into another --out"


def read_record(path: Path | str, described: bool = False) -> dict[str, Any]:
    """The contents of RUN/run.json.

    Args:
        described: its data is to be read again, and has to be described in full.

    Raises:
        RunError: the path holds no run, or a damaged one.
    """
    file = Path(path) / "run.json"
    try:
        record = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path} holds no run: there is no run.json") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}; {_REMEDY}") from None
    if not isinstance(record, dict) or record.get("format") not in (1, FORMAT):
        raise RunError(f"{file} was written by another version of penstock, or is damaged; {_REMEDY}")
    if "crc32" in record:  # whoever edits the file on purpose takes the entry out
        try:
            record = without_checksum(record, str(file))
        except DamageError as damage:
            raise RunError(f"{damage}; {_REMEDY}") from None
    try:
        check_entries(record, _ENTRIES, ("status", "identity", "data"))
        check_entries(record["data"], _DATA, _ALWAYS if described else (), "data")
        check_range("data.max_length", record["data"].get("max_length", 1), 1, (1 << 31) - 1)
        if record["status"] == "complete" and not isinstance(record.get("result"), dict):
            raise ValueError("it is complete, and result is missing")
    except ValueError as error:
        raise RunError(f"{file} is damaged: {error}; {_REMEDY}") from None
    if "config" in record:
        _check_config(file.with_name("config.yaml"), record["config"])
    return record


def _check_config(file: Path, checksums: list[int]) -> None:
    try:
        crc32 = crc32_of(file)
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}; {_REMEDY}") from None
    if crc32 not in checksums:
        raise RunError(
            f"{file} is damaged or was edited: its checksum is not that of what was written. Put it back from a copy "
            "(settings that may change are given on the command line), or train into another --out"
        )


def has_checkpoint(run: Path) -> bool:
    """Whether a run has come as far as a checkpoint, which may be damaged by now."""
    if any(os.path.lexists(run / name) for name in ("last", "best")):
        return True
    return any((run / "checkpoints").glob("step-*"))


def in_use(path: Path) -> RunError:
    return RunError(f"{path} is in use by another process: wait for it or give another --out")


def check_kind(path: Path | str, record: dict[str, Any], pretrains: bool) -> None:
    """
    Args:
        record: of the run in `path`. pretrains: whether it is to be one that learns from texts without labels.

    Raises:
        RunError: it is a run of the other kind.
    """
    there = objective_of(record) is not None
    if there and not pretrains:
        raise RunError(
            f"{path} is a pretraining run, which has no classifier: penstock train --from {path} makes one of it"
        )
    if pretrains and not there:
        raise RunError(f"{path} is a run that trains a classifier, not a pretraining run: give another --out")


def objective_of(record: dict[str, Any]) -> str | None:
    """How the run learns from texts without labels; None for one that trains a classifier."""
    return record["identity"].get("pretraining.objective")


def read_trained_record(path: Path | str) -> dict[str, Any]:
    """As `read_record`, of a run that has a classifier.

    Raises:
        RunError: also if it has none yet, or pretrains.
    """
    record = read_record(path, described=True)
    check_kind(path, record, pretrains=False)
    best = Path(path) / "best"
    if not best.is_dir():
        if os.path.lexists(best):
            raise RunError(f"{best} leads to no checkpoint: put it back from a copy, or train into another --out")
        if record["status"] == "complete":
            raise RunError(f"{best} is missing: put it back from a copy, or train into another --out")
        raise RunError(f"{path} has no model yet: train it first")
    if record["format"] == FORMAT and not (best / SEAL_NAME).is_file():
        raise RunError(f"{best / SEAL_NAME} is missing: {_REMEDY}")
    return record


def check_fits(store: Store, data: dict[str, Any], *, labels: bool = True) -> None:
    """
    Args:
        labels: whether the store's are to be used.

    Raises:
        StoreError: the store has another tokenizer or other labels than the training data, or pairs of texts where that
            had single ones.
    """
    more = "" if labels else "--unlabelled "
    for what, here, there in (
        ("tokenizer", store.manifest.tokenizer.fingerprint, data["tokenizer"]),
        ("labels", store.label_names if labels else data["label_names"], data["label_names"]),
        ("columns of text", store.is_pair, data.get("is_pair", False)),
    ):
        if here != there:
            raise StoreError(
                f"{store.path} was prepared with other {what} than the training data: "
                f"prepare it with {more}--like {data['store']}"
            )
    if labels and store.multi_label != data.get("multi_label", False):
        here, there = ("lists of labels", "one label") if store.multi_label else ("one label", "lists of labels")
        raise StoreError(
            f"{store.path} has {here} a row, the training data had {there}: prepare it with --like {data['store']}"
        )


def as_trained(
    store: Store, data: dict[str, Any], *, labels: bool = True, say: Callable[[str], None] = print_line
) -> Store:
    """A store as the run reads it, its texts cut where those of the training data were.

    Args:
        data: the entry `data` of run.json. labels: whether the store's are to be used.
        say: is told where that cannot be had, for texts were cut to less when the store was prepared.

    Raises:
        StoreError: as `check_fits`. ConfigError: its pairs of texts are longer than those of the training data.
    """
    check_fits(store, data, labels=labels)
    if (line := about_cut(store, data)) is not None:
        say(line)
    return store.cut_to(data["max_length"], data["truncation"])


def how_stored(store: Store) -> str:
    """Where the texts of a store were cut when it was prepared."""
    return f"{store.manifest.max_length:,} tokens ({store.manifest.truncation})"


def about_cut(store: Store, data: dict[str, Any]) -> str | None:
    """A line about texts of a store of which less is left than the run reads; None where there are none.

    Args:
        data: the entry `data` of run.json.
    """
    length, truncation, stored = data["max_length"], data["truncation"], how_stored(store)
    if stored == data.get("stored") or not (cut := texts_cut_short(store, length, truncation)):
        return None
    return (
        f"warning: {store.path}: {cut:,} of its {store.num_examples:,} texts were cut to {stored} when it was "
        f"prepared; the run reads {length:,} tokens ({truncation}), which these no longer have: prepare it with --like "
        f"{data['store']}"
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
        config = read_json(file)
        check_entries(config, {"thresholds": list[float] | None})
        kept = config.get("thresholds")
        if kept is not None and len(kept) != num_labels:
            raise ValueError(f"it has {len(kept)} thresholds for {num_labels} labels")
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}; {_REMEDY}") from None
    return np.full(num_labels, 0.5) if kept is None else np.asarray(kept, np.float64)


def is_store(path: str) -> bool:
    """A folder is a store, finished or not, or meant to be one: it has a store's files or none at all."""
    folder = Path(path)
    if not path or not folder.is_dir():  # an empty name is not the current folder
        return False
    return any((folder / name).exists() for name in (MANIFEST_NAME, JOB_NAME)) or not any(folder.iterdir())


def open_like_training(
    name: str,
    data: dict[str, Any],
    *,
    text: str | None = None,
    label: str | None = None,
    need_label: bool = True,
    reading: Reading = PLAIN_READING,
    say: Callable[[str], None] = print_line,
) -> list[Source]:
    """Raw sources, with the training data's column names and separator of labels where none are given.

    Args:
        name: of a file, a data set, or a folder or pattern, whose files are read one after the other.
        data: the entry `data` of run.json.
        say: is told where a source has no such columns, and others are read.

    Raises:
        SourceError: one cannot be opened, has no such columns, or would be counted twice.
    """
    if reading.label_separator is None:
        reading = replace(reading, label_separator=data.get("label_separator"))
    like = Columns(data["text"], data["label"], data.get("is_pair", False), "training")
    sources = open_alike(name, like, text=text, label=label, need_label=need_label, reading=reading, say=say)
    if need_label:
        check_once(sources)
    check_texts(sources, data)
    return sources


def check_texts(sources: Sequence[Source], data: dict[str, Any]) -> None:
    """Raises SourceError if the sources have pairs of texts and the training data had none, or the other way round."""
    for source in sources:
        if source.is_pair and not data.get("is_pair", False):
            raise SourceError(
                f"{source.name}: {source.text} are pairs of texts, and the run was trained on single ones: name one "
                "column with --text, or join several with '+'"
            )
        if data.get("is_pair", False) and not source.is_pair:
            raise SourceError(
                f"{source.name}: {source.text} are single texts, and the run was trained on pairs ({data['text']}): "
                "name the two columns with --text FIRST,SECOND"
            )


def files_of(sources: Sequence[Source]) -> list[Path]:
    """The files that the sources are read from."""
    return [source.path for source in sources if source.path is not None]
