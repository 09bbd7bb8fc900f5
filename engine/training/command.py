"""What `penstock train` and `pretrain` were asked for, read and checked before anything slow is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engine.data.hub_names import why_missing
from penstock.engine.data.progress import print_line
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, ModelError, RunError, StoreError
from penstock.engine.setting import notes_on_overruled, split_key_value
from penstock.engine.training.run_directory import check_out
from penstock.engine.training.run_record import check_kind, has_checkpoint, read_record
from penstock.engine.training.settings import OVERRIDE_FORM, Settings, load_saved_settings, load_settings, parse_value

_OPTIONS = {"model.kind": "--model", "model.encoder": "--encoder", "model.start_from": "--from"}
_OPTIONS |= {"distillation.drop_overlap": "--drop-overlap"}


@dataclass(frozen=True)
class TrainCommand:
    """
    Attributes:
        train, test: the stores, open; test is None where none was asked for.
    """

    settings: Settings
    train: Store
    test: Store | None


def read_command(
    out: Path,
    train: Path | None,
    test: Path | None,
    config: Path | None,
    options: Mapping[str, str | None],
    overrides: Sequence[str],
    pretraining: Mapping[str, Any] | None = None,
) -> TrainCommand:
    """Reads the settings and opens the stores; what is left out is taken from the run in `out`, if there is one.

    Args:
        options: {"section.key": what an option of its own says, or None}.
        overrides: `section.key=value`, above the options and the file.
        pretraining: {"section.key": value} of a run that learns from texts without labels, where nothing else is
            stated; None for one that trains a classifier.

    Raises:
        ConfigError, ModelError, RunError, StoreError: an option, a path, a name or a setting is wrong.
    """
    check_out(out)
    settings = read_settings(config, options, overrides, out, pretraining)
    option = "--train" if pretraining is None else "--texts"
    if train is not None:
        store = Store.open(train, labelled=pretraining is None)
        return TrainCommand(settings, store, Store.open(test) if test is not None else None)
    if not (out / "run.json").exists():
        raise ConfigError(f"there is no run in {out} to resume: give {option} STORE for a new one")
    record = read_record(out, described=True)
    check_kind(out, record, pretraining is not None)
    if "distillation" in record["data"]:
        raise ConfigError(f"{out} learns from teachers: penstock distil --out {out} goes on with it")
    fingerprint = record["identity"].get("training data")
    store = _stored(out, record["data"]["store"], "training", fingerprint, labelled=pretraining is None)
    if test is None and record["identity"].get("test data") is not None:
        if "test" not in record["data"]:
            raise RunError(f"{out} was begun with a test set, whose place it did not note: give --eval STORE again")
        test_store: Store | None = _stored(out, record["data"]["test"], "test", record["identity"]["test data"])
    else:
        test_store = Store.open(test) if test is not None else None
    if not has_checkpoint(out):
        # nothing to go on from: the run begins again, with what it was begun with
        if any(value is not None for value in options.values()) or overrides or config:
            raise ConfigError(f"{out} has no checkpoint yet: to begin it with other settings, give {option} too")
        settings = load_saved_settings(out / "config.yaml")
    return TrainCommand(settings, store, test_store)


def read_settings(
    config: Path | None,
    options: Mapping[str, str | None],
    overrides: Sequence[str],
    out: Path | None,
    usual: Mapping[str, Any] | None = None,
) -> Settings:
    """As `read_command` has them.

    Args:
        out: of the run, which, once begun, needs neither its encoder nor the run that it started from; None for none.
        usual: {"section.key": value} of a run that learns from texts without labels, where nothing else is stated.

    Raises:
        ConfigError, ModelError, RunError: an option, a name or a setting is wrong.
    """
    for line in notes_on_overruled(overrides, OVERRIDE_FORM):
        print_line(line)
    given = {key: value for key, value in options.items() if value is not None}
    for override in overrides:
        key, text = split_key_value(override, OVERRIDE_FORM)
        if key in given and parse_value(text) != parse_value(given[key]):
            raise ConfigError(f"{_OPTIONS[key]} {given[key]} contradicts {override}: leave one out")
    begun = out if out is not None and has_checkpoint(out) else None
    stated = [*(f"{key}={value}" for key, value in given.items()), *overrides]
    settings = load_settings(config, stated, usual, begun=begun)
    if settings.pretrains and usual is None:
        raise ConfigError("pretraining.objective is for penstock pretrain: leave it out")
    encoder = settings.model.encoder
    loads = encoder is not None and begun is None and settings.model.start_from is None
    if encoder is not None and loads and (reason := why_missing(encoder)):
        raise ModelError(f"encoder {encoder}: {reason}")
    return settings


def _stored(out: Path, place: str, what: str, fingerprint: str | None, labelled: bool = True) -> Store:
    option = "--eval" if what == "test" else "--train" if labelled else "--texts"
    try:
        store = Store.open(place, labelled=labelled)
    except StoreError as error:
        raise StoreError(f"the {what} data of {out}: {error}; give {option} STORE if it is elsewhere") from None
    if fingerprint not in (None, store.fingerprint):
        raise StoreError(f"{place} is no longer the {what} data that {out} was begun with")
    return store
