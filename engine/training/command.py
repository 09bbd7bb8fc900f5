"""What `penstock train` and `pretrain` were asked for, read and checked before anything slow is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.engine.data.hub_names import why_missing
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, ModelError, RunError, StoreError
from penstock.engine.setting import split_key_value
from penstock.engine.training.run_directory import check_out
from penstock.engine.training.run_record import check_kind, has_checkpoint, objective_of, read_record
from penstock.engine.training.settings import OVERRIDE_FORM, Settings, load_saved_settings, load_settings, parse_value

DEFAULT_OBJECTIVE = "masked"
_OPTIONS = {"model.kind": "--model", "model.encoder": "--encoder", "model.start_from": "--from"}


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
    pretrains: bool = False,
) -> TrainCommand:
    """Reads the settings and opens the stores; what is left out is taken from the run in `out`, if there is one.

    Args:
        options: {"section.key": what an option of its own says, or None}.
        overrides: `section.key=value`, above the options and the file.
        pretrains: learns from texts without labels.

    Raises:
        ConfigError, ModelError, RunError, StoreError: an option, a path, a name or a setting is wrong.
    """
    check_out(out)
    given = {key: value for key, value in options.items() if value is not None}
    for override in overrides:
        key, text = split_key_value(override, OVERRIDE_FORM)
        if key in given and parse_value(text) != given[key]:
            raise ConfigError(f"{_OPTIONS[key]} {given[key]} contradicts {override}: leave one out")
    stated = [*(f"{key}={value}" for key, value in given.items()), *overrides]
    settings = load_settings(config, stated, _objective(out) if pretrains else None)
    if settings.pretrains and not pretrains:
        raise ConfigError("pretraining.objective is for penstock pretrain: leave it out")
    encoder = settings.model.encoder
    if encoder is not None and not has_checkpoint(out) and (reason := why_missing(encoder)):
        raise ModelError(f"encoder {encoder}: {reason}")
    if train is not None:
        return TrainCommand(settings, Store.open(train), Store.open(test) if test is not None else None)
    if not (out / "run.json").exists():
        option = "--texts" if pretrains else "--train"
        raise ConfigError(f"there is no run in {out} to resume: give {option} STORE for a new one")
    record = read_record(out, described=True)
    check_kind(out, record, pretrains)
    store = _stored(out, record["data"]["store"], "training", record["identity"].get("training data"))
    if test is None and record["identity"].get("test data") is not None:
        if "test" not in record["data"]:
            raise RunError(f"{out} was begun with a test set, whose place it did not note: give --eval STORE again")
        test_store: Store | None = _stored(out, record["data"]["test"], "test", record["identity"]["test data"])
    else:
        test_store = Store.open(test) if test is not None else None
    if not has_checkpoint(out):
        # nothing to go on from: the run begins again, with what it was begun with
        if given or overrides or config:
            option = "--texts" if pretrains else "--train"
            raise ConfigError(f"{out} has no checkpoint yet: to begin it with other settings, give {option} too")
        settings = load_saved_settings(out / "config.yaml")
    return TrainCommand(settings, store, test_store)


def _objective(out: Path) -> dict[str, str]:
    """How a pretraining run learns unless told otherwise: as the run that is there, if there is one."""
    there = objective_of(read_record(out)) if (out / "run.json").exists() else None
    return {"pretraining.objective": there or DEFAULT_OBJECTIVE}


def _stored(out: Path, place: str, what: str, fingerprint: str | None) -> Store:
    option = "--train" if what == "training" else "--eval"
    try:
        store = Store.open(place)
    except StoreError as error:
        raise StoreError(f"the {what} data of {out}: {error}; give {option} STORE if it is elsewhere") from None
    if fingerprint not in (None, store.fingerprint):
        raise StoreError(f"{place} is no longer the {what} data that {out} was begun with")
    return store
