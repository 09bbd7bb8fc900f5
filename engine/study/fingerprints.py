"""What each trial was made from, and whether that is still what is there: one report shows trials of one kind."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.engine.data.manifest import digest
from penstock.engine.errors import ModelError

if TYPE_CHECKING:
    from penstock.engine.study.baselines.settings import BaselineSettings
    from penstock.engine.training.settings import Settings

FORMAT = 1  # of a trial; a higher number when the same data and settings give figures of another meaning
_NO_CONTENT = ("_name_or_path", "transformers_version")  # of a config.json: where it came from and who wrote it


@dataclass(frozen=True)
class MadeFrom:
    """
    Attributes:
        train, test: fingerprints of the two stores.
        settings: {"section.key": value}, resolved, of all settings that change a run's result.
        encoder: fingerprint of the encoder's configuration and weights; None for a model that reads none.
        max_test: number of test rows that were read; None for all.
        precision: what the model computes in, "auto" resolved on the machine; None for a model that has no choice, and
            in trials of an earlier penstock.
        teacher: a digest of what the trial that it learns from was made from; None where there is none.
        pretraining: a digest of what the pretraining that it begins with was made from; None where there is none.
    """

    train: str
    test: str
    settings: dict[str, Any]
    encoder: str | None
    max_test: int | None
    format: int = FORMAT
    precision: str | None = None
    teacher: str | None = None
    pretraining: str | None = None


def made_from(
    settings: "Settings | BaselineSettings",
    train: str,
    test: str,
    max_test: int | None,
    teacher: "Settings | BaselineSettings | None" = None,
    pretraining: str | None = None,
) -> MadeFrom:
    """
    Args:
        settings: of the training run, resolved, or of a baseline. train, test: the stores' fingerprints.
        teacher: the settings of the trial that it learns from; None for none.
        pretraining: see `MadeFrom`.

    Raises:
        ModelError: the encoder cannot be found or read.
        ConfigError: this machine cannot compute in the precision asked for.
    """
    encoder, theirs = settings.flat().get("model.encoder"), None
    if teacher is not None:
        theirs = _digest(made_from(teacher, train, "", None))
    return MadeFrom(
        train,
        test,
        result_settings(settings),
        None if encoder is None else encoder_fingerprint(encoder),
        max_test,
        precision=precision_here(settings.precision),
        teacher=theirs,
        pretraining=pretraining,
    )


def _digest(trial: MadeFrom) -> str:
    """Leaves out where the encoder lies, which does not matter, and settings at their defaults, of which a later
    penstock may have more."""
    from penstock.engine.training.settings import Settings

    usual = Settings().flat() | {"model.encoder": trial.settings.get("model.encoder")}
    settings = {key: value for key, value in trial.settings.items() if value != usual.get(key)}
    return digest({**asdict(trial), "settings": settings})


def precision_here(precision: str | None) -> str | None:
    """What a precision means on this machine; None of a model that has none.

    Raises:
        ConfigError: the machine cannot compute in it.
    """
    import torch

    from penstock.engine.training.precision import resolve_precision

    if precision is None:
        return None
    return resolve_precision(precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def result_settings(settings: "Settings | BaselineSettings") -> dict[str, Any]:
    """{"section.key": value} of resolved settings as JSON gives it back, without what changes no result."""
    from penstock.engine.training.setting_use import FREE_KEYS

    flat = {key: value for key, value in settings.flat().items() if key not in FREE_KEYS}
    return json.loads(json.dumps(flat))


def difference(then: MadeFrom, now: MadeFrom) -> str | None:
    """In what the two differ, "... then, ... now"; None if they are the same."""
    for what, a, b in (
        ("the format of trials", then.format, now.format),
        ("the training data", then.train, now.train),
        ("the test data", then.test, now.test),
        ("--max-test", then.max_test, now.max_test),
        ("the encoder's files", then.encoder, now.encoder),
        ("what its teacher was made from", then.teacher, now.teacher),
        ("what its pretraining was made from", then.pretraining, now.pretraining),
    ):
        if a != b:
            return changed(what, a, b)
    return changed_setting(then.settings, now.settings) or changed_precision(then.precision, now.precision)


def changed_precision(then: str | None, now: str | None) -> str | None:
    """As `difference`; what an earlier penstock did not record is not compared."""
    if None in (then, now) or then == now:
        return None
    return changed("the precision that this machine computes in", then, now)


def changed_setting(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """As `difference`. A setting that an earlier penstock did not have was at its default. Where the encoder and the
    pretraining lie does not matter: their content has a fingerprint."""
    from penstock.engine.study.baselines.settings import default_values
    from penstock.engine.training.reading import LENGTH, WHOLE
    from penstock.engine.training.settings import settings_from

    model = {key: now.get(key) for key in ("model.kind", "model.embeddings", "model.encoder")}
    usual = settings_from({key: value for key, value in model.items() if value is not None}).flat()
    usual |= {LENGTH: WHOLE, **default_values(now)}  # whole: all that the store keeps
    for key, value in now.items():
        if key in ("model.encoder", "model.start_from"):
            continue
        if then.get(key, usual.get(key)) != value:
            return changed(key, then.get(key, "unknown"), value)
    return None


def changed(what: str, then: Any, now: Any) -> str:
    return f"{what}: {_short(then)} then, {_short(now)} now"


def _short(value: Any) -> str:
    """Enough of a fingerprint to tell it from another."""
    return value[:12] if isinstance(value, str) and len(value) >= 32 else str(value)


def encoder_fingerprint(name: str) -> str:
    """Identifies an encoder's configuration and weights: their content, in a local folder, or the hub's revision.

    Raises:
        ModelError: there is no such encoder.
    """
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and _matters(path, folder)]
        states = tuple((str(path), (stat := path.stat()).st_size, stat.st_ctime_ns, stat.st_ino) for path in files)
        return _content(states)
    from huggingface_hub import try_to_load_from_cache

    from penstock.engine.models.loading import load_config

    load_config(name)  # brings the hub's newest revision into its cache, where that can be had
    config = try_to_load_from_cache(name, "config.json")
    return f"{name}@{Path(config).parent.name}" if isinstance(config, str) else name


def _matters(path: Path, folder: Path) -> bool:
    """Configuration and weights: pickled ones only where there are no others, as transformers chooses."""
    if path.name == "config.json" or path.name.endswith(("safetensors", "safetensors.index.json")):
        return True
    return path.name.endswith((".bin", ".bin.index.json")) and not any(folder.glob("*.safetensors"))


@functools.lru_cache(maxsize=32)
def _content(states: tuple[tuple[str, int, int, int], ...]) -> str:
    """blake2b of the files; their sizes and times are there for the cache only."""
    digest = hashlib.blake2b(digest_size=16)
    for name, *_ in states:
        path = Path(name)
        try:
            content = _config(path) if path.name == "config.json" else _file_digest(path)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _config(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        config = json.loads(content)
        return json.dumps(
            {key: value for key, value in config.items() if key not in _NO_CONTENT}, sort_keys=True
        ).encode()
    except (ValueError, AttributeError):
        return content
