"""The configuration of a run: defaults, under a YAML file, under `section.key=value` from the command line."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from penstock.engine.data.hub_names import is_same
from penstock.engine.errors import ConfigError
from penstock.engine.models.pretraining_settings import PretrainingSettings
from penstock.engine.models.settings import ModelSettings
from penstock.engine.setting import checked, split_key_value
from penstock.engine.training.recipe import TrainingSet, pretraining_recipe, recipe
from penstock.engine.training.sections import (
    DataSettings,
    DistillationSettings,
    TrainingSettings,
    default_values,
    known_settings,
    section_types,
    values_of,
)
from penstock.engine.training.setting_use import CLASSIFIER_ONLY, check_used
from penstock.engine.training.suggestions import suggest

OVERRIDE_FORM = "section.key=value, such as training.epochs=3"
_OPEN = (None, "auto")  # values that leave a choice to the recipe


@dataclass(frozen=True)
class Settings:
    """Every setting of a run, in five sections.

    Example:
        >>> from penstock.engine import Settings
        >>> Settings().training.schedule
        'linear'

    Attributes:
        given: "section.key" of what the user stated, at whatever value; None where that is not known: then what
            differs from the defaults counts as stated.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    given: frozenset[str] | None = field(default=None, compare=False, repr=False)

    def resolve(self, data: TrainingSet, *, validates: bool | None = None) -> "Settings":
        """The same settings with every choice made that was left to the recipe.

        Args:
            validates: whether there are validation rows; None: by `data.validation_fraction`.
        """
        kind = self.model.kind or "lstm"
        values = pretraining_recipe(kind, data, self.pretraining.tokens) if self.pretrains else recipe(kind, data)
        if self.training.max_steps is not None or self.pretraining.tokens is not None:
            # a limit in steps or tokens alone ends the run: epochs stays open
            del values["training.epochs"]
        fraction = self.data.validation_fraction
        if not (fraction is None or fraction > 0 if validates is None else validates):
            values["training.patience"] = 0
        flat = self.flat()
        return self._with({key: value for key, value in values.items() if flat[key] in _OPEN})

    def stated(self) -> set[str]:
        """What the user stated, other than that it be left open."""
        flat = self.flat()
        if self.given is None:
            return {key for key, value in flat.items() if value != default_values()[key] and value not in _OPEN}
        return {key for key in self.given if flat[key] not in _OPEN}

    def left_open(self) -> set[str]:
        """What the user stated to be left open."""
        flat = self.flat()
        return {key for key in self.given or () if flat[key] in _OPEN}

    def replace(self, values: Mapping[str, Any]) -> "Settings":
        """With other values of {"section.key": value}; what was stated stays so."""
        return self._with(values)

    @property
    def pretrains(self) -> bool:
        """Whether the run learns from texts without labels."""
        return self.pretraining.objective is not None

    @property
    def precision(self) -> str:
        """`training.precision`."""
        return self.training.precision

    @property
    def reading(self) -> tuple[int | str | None, str]:
        """What is read of each text: `data.max_length` and `data.truncation`."""
        return self.data.max_length, self.data.truncation

    def flat(self) -> dict[str, Any]:
        """{"section.key": value} of every setting."""
        return values_of({section: getattr(self, section) for section in section_types()})

    def to_yaml(self) -> str:
        sections = [name for name in section_types() if name != "pretraining" or self.pretrains]
        return yaml.safe_dump({name: dataclasses.asdict(getattr(self, name)) for name in sections}, sort_keys=False)

    def _with(self, values: Mapping[str, Any]) -> "Settings":
        sections: dict[str, dict[str, Any]] = {name: {} for name in section_types()}
        for key, value in values.items():
            section, name = key.split(".")
            sections[section][name] = value
        changed = {name: dataclasses.replace(getattr(self, name), **new) for name, new in sections.items() if new}
        return dataclasses.replace(self, **changed)


def load_settings(
    file: Path | str | None = None,
    overrides: Iterable[str] = (),
    usual: Mapping[str, Any] | None = None,
    *,
    begun: Path | None = None,
) -> Settings:
    """Defaults, under `usual` values {"section.key": value}, under the YAML file's, under overrides of the form
    `section.key=value`.

    Example:
        >>> from penstock.engine import load_settings
        >>> load_settings(None, ["training.epochs=3", "model.preset=lstm-4-256"]).model.num_layers
        4

    Args:
        begun: a run that these settings are to go on with; `model.start_from` may be gone by then, and is not read.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, or a value has the wrong type or lies out of range,
            or the model or the run has no use for a setting.
        RunError: `model.start_from` names no run, or `begun` is of another model.
    """
    values = {key: (value, "") for key, value in (usual or {}).items()}
    values |= {} if file is None else _from_file(Path(file))
    for override in overrides:
        key, text = split_key_value(override, OVERRIDE_FORM)
        values[key] = (parse_value(text), "")
    return settings_from(values, begun=begun)


def load_saved_settings(file: Path) -> Settings:
    """A run's config.yaml: every setting of the run, some of them perhaps of no use to it.

    Raises:
        ConfigError: it cannot be read.
    """
    settings = _settings(dict.fromkeys(_FORMERLY_FIXED, "whole") | _from_file(file))
    return dataclasses.replace(settings, given=frozenset(settings.flat()))


def settings_from(values: Mapping[str, Any], *, begun: Path | None = None) -> Settings:
    """Settings from {"section.key": value}, or of (value, prefix of its messages); the rest is left at its default.

    Args:
        begun: as of `load_settings`.

    Raises:
        ConfigError, RunError: as `load_settings`.
    """
    settings = _settings(values)
    if settings.model.start_from is not None:
        settings = inherit(settings, begun)
    defaults, flat = default_values(), settings.flat()
    for key, entry in values.items():
        where = entry[1] if isinstance(entry, tuple) else ""
        # a default asks for nothing; a run's own config.yaml lists every setting
        is_filled_in = where and not settings.pretrains and flat[key] == _FILLED_IN.get(key)
        if flat[key] != defaults[key] and not is_filled_in:
            check_used(settings, [key], where)
    return settings


# What a run of an earlier version had no choice of: it read all that its store keeps.
_FORMERLY_FIXED = ("data.max_length",)
# What stands in a run's config.yaml, the first one in those of earlier versions, whether it has a use for it or not.
_FILLED_IN = {"training.patience": 3, "training.metric": "micro_f1"}


def parse_value(text: str) -> Any:
    """The value of an override, read as YAML where it is YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def inherit(settings: Settings, begun: Path | None = None) -> Settings:
    """The same settings, with the model of the run that `model.start_from` names where nothing else is stated.

    Args:
        begun: the run that they are to go on with, of the same model, which is read instead; None for none.

    Raises:
        RunError: there is no such run, or a stated size or kind is not that of `begun`.
        ConfigError: a stated size or kind is not the run's.
    """
    from penstock.engine.training.run_directory import another_run
    from penstock.engine.training.run_record import read_record

    run = Path(str(settings.model.start_from))
    source = run if begun is None else begun
    read_record(source)
    saved = load_saved_settings(source / "config.yaml")
    there, here, stated = saved.flat(), settings.flat(), settings.stated()
    if "model.preset" in stated:
        stated |= {"model.num_layers", "model.hidden_size"}
    for key in _ARCHITECTURE:
        if saved.pretrains and key in CLASSIFIER_ONLY:
            continue  # which it left open
        is_there = key == "model.encoder" and there[key] is not None and is_same(str(here[key]), there[key])
        if key in stated and here[key] != there[key] and not is_there:
            if begun is not None:
                raise another_run(begun, key, there[key], here[key])
            raise ConfigError(
                f"{key}={here[key]} contradicts model.start_from={run}, where it is {there[key]}: leave it out"
            )
    # null undoes what the earlier run froze or adapted; an architecture that is left open is the earlier run's
    stated |= settings.left_open() - {*_ARCHITECTURE}
    keep = {key: here[key] for key in stated if key.startswith("model.")}
    inherited = {key: value for key, value in there.items() if key.startswith("model.")} | keep
    inherited |= {"model.start_from": here["model.start_from"]}
    inherited |= {key: there[key] for key in ("model.preset", "model.encoder")}
    if inherited["model.lora_rank"] is None:
        inherited |= dict.fromkeys({"model.lora_alpha", "model.lora_dropout", "model.lora_targets"} - stated)
    return settings.replace(inherited)


_ARCHITECTURE = (
    "model.kind",
    "model.encoder",
    "model.num_layers",
    "model.hidden_size",
    "model.bidirectional",
    "model.embedding_size",
    "model.embeddings",
    "model.pooling",
    "model.ngrams",
    "model.buckets",
)


def _settings(values: Mapping[str, Any]) -> Settings:
    """As `settings_from`, whatever the model has a use for."""
    known = known_settings()
    sections: dict[str, dict[str, Any]] = {name: {} for name in section_types()}
    for key, entry in values.items():
        value, where = entry if isinstance(entry, tuple) else (entry, "")
        if key not in known:
            lists = f"the sections are {', '.join(section_types())}; `penstock train --settings` lists every key"
            raise ConfigError(f"{where}unknown setting {key!r}: {suggest(key, list(known)) or lists}")
        section, name = key.split(".")
        sections[section][name] = checked(value, *known[key], where=f"{where}{key}")
    made = {name: cls(**sections[name]) for name, cls in section_types().items()}
    return Settings(**made, given=frozenset(values))


class _Loader(yaml.SafeLoader):
    """Keys are text as written (labels such as yes, 1 and 1.0 are), and none stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        mapping: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in mapping:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            mapping[key.value] = self.construct_object(value, deep=deep)
        return mapping


def _from_file(file: Path) -> dict[str, tuple[Any, str]]:
    """{"section.key": (value, prefix of its messages)}"""
    values: dict[str, tuple[Any, str]] = {}
    for section, entries in _read_yaml(file).items():
        if entries is None and section in section_types():
            continue
        if not isinstance(entries, Mapping):
            keys = ", ".join(section_types())
            raise ConfigError(f"{file}: {section!r} must be a section of keys (one of {keys}), got {entries!r}")
        for key, value in entries.items():
            values[f"{section}.{key}"] = (value, f"{file}: ")
    return values


def _read_yaml(file: Path) -> Mapping[str, Any]:
    try:
        document = yaml.load(file.read_text(), _Loader)
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
        raise ConfigError(f"{file}: expected sections ({', '.join(section_types())}), got {type(document).__name__}")
    return document
