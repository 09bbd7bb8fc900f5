"""The configuration of a run: defaults, under a YAML file, under `section.key=value` from the command line."""

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from penstock.engine.errors import ConfigError
from penstock.engine.models.settings import ModelSettings


def setting(default: Any, help: str, *, minimum: float | None = None, maximum: float | None = None) -> Any:
    """A field with a help line and the closed range of its numeric value."""
    return field(default=default, metadata={"help": help, "minimum": minimum, "maximum": maximum})


@dataclass(frozen=True)
class DataSettings:
    tokens_per_batch: int = setting(8192, "tokens in one batch at most, padding never counts", minimum=1)
    batches_per_step: int = setting(1, "batches in one optimizer step: ranks x accumulation", minimum=1)
    mode: Literal["auto", "pack", "bucket"] = setting(
        "auto", "pack in shuffled order, or group by length; auto: by model"
    )
    validation_fraction: float = setting(
        0.1, "share of the training rows kept for validation", minimum=0.0, maximum=0.5
    )
    validation_max: int = setting(5000, "rows kept for validation at most", minimum=1)


@dataclass(frozen=True)
class TrainingSettings:
    epochs: int | None = setting(None, "passes over the training rows; lstm 10, encoder 3", minimum=1)
    max_steps: int | None = setting(None, "optimizer steps at most", minimum=1)
    learning_rate: float | None = setting(None, "peak learning rate; lstm 2e-3, encoder 5e-5", minimum=0.0)
    weight_decay: float = setting(0.01, "AdamW's decoupled decay, not on biases and norms", minimum=0.0)
    layer_decay: float | None = setting(
        None, "encoder: a layer's learning rate as a share of the one above it, such as 0.9", minimum=0.0, maximum=1.0
    )
    warmup: float = setting(0.06, "share of the run in which the learning rate rises", minimum=0.0, maximum=1.0)
    schedule: Literal["linear", "cosine", "constant"] = setting("linear", "how the learning rate falls after warm-up")
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm; 0: never", minimum=0.0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "auto: bf16 where the device computes in it, else fp16 on a GPU, fp32 on a CPU"
    )
    compile: bool = setting(False, "run the model through torch.compile")
    seed: int = setting(
        0, "of the initial weights, the order, dropout and the validation split", minimum=0, maximum=2**63 - 1
    )
    evaluate_every_steps: int = setting(0, "steps between evaluations; 0: after every epoch", minimum=0)
    metric: Literal["accuracy", "macro_f1", "loss"] = setting("accuracy", "what chooses the best model")
    patience: int | None = setting(
        None, "evaluations without a better one before stopping; 0: never; lstm 3, encoder 0", minimum=0
    )
    checkpoint_every_steps: int = setting(0, "steps between checkpoints; 0: about every five minutes", minimum=0)
    log_every_steps: int = setting(10, "steps between lines of metrics.jsonl", minimum=1)
    tensorboard: bool = setting(True, "write TensorBoard events where it is installed")
    wandb_project: str | None = setting(None, "log to this Weights & Biases project")


# What does not change the run's result: a run may go on with other values of these.
FREE_KEYS = frozenset(
    f"training.{key}" for key in ("checkpoint_every_steps", "log_every_steps", "tensorboard", "wandb_project")
)

_BY_KIND: dict[str, dict[str, dict[str, Any]]] = {
    "lstm": {
        "data": {"mode": "bucket"},
        "training": {"epochs": 10, "learning_rate": 2e-3, "patience": 3},
    },
    "encoder": {
        "data": {"mode": "pack"},
        "training": {"epochs": 3, "learning_rate": 5e-5, "patience": 0},
    },
}


@dataclass(frozen=True)
class Settings:
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def resolve(self) -> "Settings":
        """The same settings with every choice that depends on the model's kind made.

        Raises:
            ConfigError: a setting is for the other kind of model.
        """
        chosen = _BY_KIND[self.model.kind]
        if self.training.layer_decay is not None and self.model.kind != "encoder":
            raise ConfigError("training.layer_decay is for encoders; leave it out, or set model.kind=encoder")

        def fill(section: Any, defaults: dict[str, Any]) -> Any:
            unset = {key: value for key, value in defaults.items() if getattr(section, key) in (None, "auto")}
            return dataclasses.replace(section, **unset)

        training = chosen["training"]
        if self.training.max_steps is not None:
            # a limit in steps alone ends the run: epochs stays open
            training = {key: value for key, value in training.items() if key != "epochs"}
        return dataclasses.replace(self, data=fill(self.data, chosen["data"]), training=fill(self.training, training))

    def flat(self) -> dict[str, Any]:
        """{"section.key": value} of every setting."""
        return {
            f"{section.name}.{name}": value
            for section in dataclasses.fields(self)
            for name, value in dataclasses.asdict(getattr(self, section.name)).items()
        }

    def to_yaml(self) -> str:
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)


def load_settings(file: Path | str | None = None, overrides: Iterable[str] = ()) -> Settings:
    """Defaults, under the YAML file's values, under overrides of the form `section.key=value`.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, or a value has the wrong type or lies out of range.
    """
    values: dict[str, tuple[Any, str]] = {}
    if file is not None:
        for section, entries in _read_yaml(Path(file)).items():
            if not isinstance(entries, Mapping):
                keys = ", ".join(_sections())
                raise ConfigError(f"{file}: {section!r} must be a section of keys (one of {keys}), got {entries!r}")
            for key, value in entries.items():
                values[f"{section}.{key}"] = (value, f"{file}: ")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r} is no setting: write section.key=value, such as training.epochs=3")
        try:
            values[key.strip()] = (yaml.safe_load(text), "")
        except yaml.YAMLError:
            values[key.strip()] = (text, "")
    return settings_from(values)


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from {"section.key": value}, or of (value, prefix of its messages); the rest is left at its default.

    Raises:
        ConfigError: as `load_settings`.
    """
    known = _keys()
    sections: dict[str, dict[str, Any]] = {name: {} for name in _sections()}
    for key, entry in values.items():
        value, where = entry if isinstance(entry, tuple) else (entry, "")
        if key not in known:
            raise ConfigError(f"{where}unknown setting {key!r}: {_nearest(key, known)}")
        section, name = key.split(".")
        sections[section][name] = _checked(value, *known[key], where=f"{where}{key}")
    return Settings(**{name: cls(**sections[name]) for name, cls in _sections().items()})


def describe_settings() -> str:
    """One line for each setting: key, type, default, meaning."""
    lines = []
    for key, (annotation, metadata) in _keys().items():
        section, name = key.split(".")
        default = getattr(getattr(Settings(), section), name)
        lines.append(f"{key}={json.dumps(default)}  ({_describe(annotation)})  {metadata.get('help', '')}".rstrip())
    return "\n".join(lines)


@functools.cache
def _sections() -> dict[str, type]:
    return typing.get_type_hints(Settings)


@functools.cache
def _keys() -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """{"section.key": (type, metadata)}"""
    return {
        f"{section}.{entry.name}": (typing.get_type_hints(cls)[entry.name], entry.metadata)
        for section, cls in _sections().items()
        for entry in dataclasses.fields(cls)
    }


def _nearest(key: str, known: Iterable[str]) -> str:
    known = list(known)
    name = key.rpartition(".")[2]
    same_name = [candidate for candidate in known if candidate.endswith(f".{name}")]
    close = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"the sections are {', '.join(_sections())}; `penstock train --settings` lists every key"


def _checked(value: Any, annotation: Any, metadata: Mapping[str, Any], where: str) -> Any:
    for alternative in _alternatives(annotation):
        converted, fits = _convert(value, alternative)
        if fits:
            break
    else:
        raise ConfigError(f"{where} must be {_describe(annotation)}, got {value!r}")
    minimum, maximum = metadata.get("minimum"), metadata.get("maximum")
    if isinstance(converted, (int, float)) and not isinstance(converted, bool):
        below = minimum is not None and not converted >= minimum
        if below or (maximum is not None and not converted <= maximum):
            bounds = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
            raise ConfigError(f"{where} must be {bounds}, got {value!r}")
    return converted


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _convert(value: Any, kind: Any) -> tuple[Any, bool]:
    """(the value as `kind`, whether it can be one)"""
    if kind is type(None):
        return None, value is None
    if typing.get_origin(kind) is Literal:
        return value, value in typing.get_args(kind)
    if kind is bool:
        return value, isinstance(value, bool)
    if kind is float:
        # YAML 1.1 reads 1e-3 as text
        try:
            return float(value), not isinstance(value, bool) and math.isfinite(float(value))
        except (TypeError, ValueError):
            return value, False
    if kind is int:
        if isinstance(value, str):
            value, _ = _convert(value, float)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return value, isinstance(value, int) and not isinstance(value, bool)
    if kind is str:
        return (
            (str(value), True)
            if isinstance(value, (str, int, float)) and not isinstance(value, bool)
            else (value, False)
        )
    return value, isinstance(value, typing.get_origin(kind) or kind)


def _describe(annotation: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    parts = [
        " | ".join(map(str, typing.get_args(kind)))
        if typing.get_origin(kind) is Literal
        else names.get(kind, str(kind))
        for kind in _alternatives(annotation)
    ]
    return " or ".join(parts)


def _read_yaml(file: Path) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration {file}: {getattr(error, 'strerror', None) or error}"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        raise ConfigError(f"{place}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise ConfigError(f"{file}: expected sections ({', '.join(_sections())}), got {type(document).__name__}")
    return document


def _plain(value: Any) -> Any:
    """YAML's safe types only."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return value
