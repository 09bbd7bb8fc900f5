"""The configuration of a run: defaults, under a YAML file, under `section.key=value` from the command line."""

import dataclasses
import functools
import importlib.util
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from penstock.engine.data.hub_names import is_same
from penstock.engine.errors import ConfigError
from penstock.engine.models.pretraining_settings import PretrainingSettings
from penstock.engine.models.settings import ModelSettings
from penstock.engine.setting import check_section, checked, describe_range, describe_type, setting, split_key_value
from penstock.engine.training.recipe import TrainingSet, pretraining_recipe, recipe
from penstock.engine.training.suggestions import suggest

OVERRIDE_FORM = "section.key=value, such as training.epochs=3"


@dataclass(frozen=True)
class DataSettings:
    tokens_per_batch: int | Literal["auto"] | None = setting(
        None,
        "tokens in one batch at most, padding never counts; null: by the recipe; auto: as many as memory has room for",
        minimum=1,
    )
    batches_per_step: int = setting(1, "batches in one optimizer step: ranks x accumulation", minimum=1)
    mode: Literal["auto", "pack", "bucket"] = setting(
        "auto", "pack in shuffled order, or group by length; auto: by model"
    )
    validation_fraction: float | None = setting(
        None,
        "share of the training rows kept for validation; null: 0.1, of few rows 0.2, in pretraining 1,000 rows",
        minimum=0.0,
        maximum=0.5,
    )
    validation_max: int = setting(5000, "rows kept for validation at most", minimum=1)
    max_length: int | Literal["whole"] | None = setting(
        None,
        "tokens read of a text at most; whole: all that the store keeps; null: encoder 512, lstm 1024, bag whole",
        minimum=1,
    )
    truncation: Literal["auto", "head", "tail", "head+tail"] = setting(
        "auto", "what is read of a longer text; auto: as the store was prepared"
    )
    reader: Literal["auto", "mmap", "pread"] = setting(
        "auto", "how stores are read: mapped, or with system calls; auto: pread on network and FUSE file systems"
    )

    def __post_init__(self) -> None:
        check_section(self, "data")

    @property
    def tokens(self) -> int:
        """`tokens_per_batch`, once resolved."""
        assert isinstance(self.tokens_per_batch, int)
        return self.tokens_per_batch


@dataclass(frozen=True)
class TrainingSettings:
    epochs: int | None = setting(None, "passes over the training rows; null: by the recipe", minimum=1)
    max_steps: int | None = setting(None, "optimizer steps at most", minimum=1)
    learning_rate: float | None = setting(
        None, "peak learning rate; null: lstm 2e-3, encoder 5e-5 at width 768, bag 0.2", minimum=0.0
    )
    weight_decay: float = setting(
        0.01, "AdamW's decoupled decay, not on biases and norms", minimum=0.0, used_by=("lstm", "encoder")
    )
    layer_decay: float | None = setting(
        None,
        "a layer's learning rate as a share of the one above it, such as 0.9",
        minimum=0.0,
        maximum=1.0,
        used_by=("lstm", "encoder"),
    )
    warmup: float = setting(0.06, "share of the run in which the learning rate rises", minimum=0.0, maximum=1.0)
    schedule: Literal["linear", "cosine", "constant"] = setting("linear", "how the learning rate falls after warm-up")
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm; 0: never", minimum=0.0)
    class_weights: Literal["balanced"] | dict[str, float] | None = setting(  # noqa: RUF009 -- a frozen default
        None,
        "weights of the examples in the training loss, by label; balanced: each class weighs the same in total; for "
        "lists of labels: what a label weighs where it is present, balanced: as much as all the rows without it",
        minimum=1e-6,
        maximum=1e6,
    )
    label_smoothing: float = setting(0.0, "share of a training label spread over all classes", minimum=0.0, below=1.0)
    calibrate: bool = setting(False, "scale the best model's logits by one temperature, found on the validation rows")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "auto: bf16 where the device computes in it, else fp16 on a GPU, fp32 on a CPU; a bag computes in fp32",
        used_by=("lstm", "encoder"),
    )
    tf32: bool | None = setting(
        None, "multiply float32 matrices in TF32, on GPUs; null: as torch is set", used_by=("lstm", "encoder")
    )
    compile: bool = setting(False, "run the model through torch.compile", used_by=("lstm", "encoder"))
    cuda_graphs: bool = setting(
        False,
        "on a GPU, replay forward and backward from CUDA graphs, of batches filled up to few shapes",
        used_by=("lstm", "encoder"),
    )
    seed: int = setting(
        0, "seeds the initial weights, the order, dropout and the validation split", minimum=0, maximum=2**63 - 1
    )
    evaluate_every_steps: int = setting(0, "steps between evaluations; 0: after every epoch", minimum=0)
    metric: Literal["accuracy", "macro_f1", "micro_f1", "loss"] = setting(
        "accuracy", "what chooses the best model, of lists of labels micro_f1; between equals the lower loss does"
    )
    patience: int | None = setting(
        None, "evaluations without a better one before stopping; 0: never; null: by the recipe", minimum=0
    )
    checkpoint_every_steps: int = setting(0, "steps between checkpoints; 0: about every five minutes", minimum=0)
    keep_checkpoints: int = setting(
        2, "checkpoints to resume from that are kept, the best model beside them", minimum=1
    )
    log_every_steps: int = setting(10, "steps between lines of metrics.jsonl", minimum=1)
    rank_timeout: float = setting(
        600.0, "seconds that a process waits for another one before the run ends", minimum=1.0, maximum=1e6
    )
    shard: bool = setting(
        False,
        "under torchrun, each process keeps a share of weights, gradients and optimizer (FSDP2) instead of all of them",
        used_by=("lstm", "encoder"),
    )
    tensorboard: bool = setting(True, "write TensorBoard events where it is installed")
    wandb_project: str | None = setting(None, "log to this Weights & Biases project")

    def __post_init__(self) -> None:
        check_section(self, "training")


@dataclass(frozen=True)
class DistillationSettings:
    """What `penstock distil` reads; a training from labels alone reads none of it."""

    temperature: float = setting(
        2.0, "by which the teachers' and the student's logits are divided before they are compared", minimum=0.01
    )
    mix: float = setting(
        0.5,
        "of a row with a true label, the share of that label in its loss; the rest is what the teachers say",
        minimum=0.0,
        maximum=1.0,
    )
    texts: int | None = setting(
        None, "unlabelled texts that are learned from at most, drawn at random; null: all", minimum=1
    )
    drop_overlap: bool = setting(
        False, "leave out unlabelled texts that are test texts too, which are an error otherwise (--drop-overlap)"
    )

    def __post_init__(self) -> None:
        check_section(self, "distillation")


# What does not change the run's result: a run may go on with other values of these.
FREE_KEYS = frozenset(
    (
        "data.reader",
        "training.checkpoint_every_steps",
        "training.keep_checkpoints",
        "training.log_every_steps",
        "training.rank_timeout",
        "training.shard",
        "training.tensorboard",
        "training.wandb_project",
    )
)
# What says when a run is over: it may go on with larger ones.
ENDING_KEYS = ("training.epochs", "training.max_steps", "training.patience", "pretraining.tokens")
# Those of them without which a run has one limit less; without epochs it has the recipe's.
LIMITS = ("training.max_steps", "pretraining.tokens")
# What a new run decides where it is left open: one that has begun keeps what it has.
DECIDED = frozenset(
    (
        "model.kind",
        "model.preset",
        "model.embedding_size",
        "model.buckets",
        "model.encoder",
        "data.tokens_per_batch",
        "data.mode",
        "data.validation_fraction",
        "data.max_length",
        "data.truncation",
        "training.epochs",
        "training.learning_rate",
        "training.patience",
    )
)

# What has no meaning without validation rows.
WITH_VALIDATION = frozenset(
    (
        "data.validation_max",
        "training.metric",
        "training.patience",
        "training.evaluate_every_steps",
        "training.calibrate",
    )
)
# What a run without labels has no use for, or does not offer.
CLASSIFIER_ONLY = frozenset(
    (
        "model.pooling",
        "model.head_dropout",
        "model.encoder_head_dropout",
        "model.freeze_embeddings",
        "model.freeze_layers",
        "model.lora_rank",
        "model.start_from",
        "training.layer_decay",
        "training.class_weights",
        "training.label_smoothing",
        "training.calibrate",
        "training.metric",
        "training.compile",
        "training.cuda_graphs",
        "training.shard",
    )
)
# The kinds of model that each way of learning without labels is for.
OBJECTIVES = {"masked": ("lstm", "encoder"), "replaced": ("lstm",)}
# What cannot be had where most labels are the teachers', and why.
NOT_DISTILLED = {
    "training.class_weights": "most of its labels are the teachers'",
    "training.calibrate": "most of its validation labels are the teachers'",
    "training.cuda_graphs": "graphs hold no teachers' logits",
}
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
            return {key for key, value in flat.items() if value != _defaults()[key] and value not in _OPEN}
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
        return {
            f"{section}.{name}": value
            for section in _sections()
            for name, value in dataclasses.asdict(getattr(self, section)).items()
        }

    def to_yaml(self) -> str:
        sections = [name for name in _sections() if name != "pretraining" or self.pretrains]
        return yaml.safe_dump({name: dataclasses.asdict(getattr(self, name)) for name in sections}, sort_keys=False)

    def _with(self, values: Mapping[str, Any]) -> "Settings":
        sections: dict[str, dict[str, Any]] = {name: {} for name in _sections()}
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
    defaults, flat = _defaults(), settings.flat()
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


def check_used(settings: Settings, keys: Iterable[str], where: str = "") -> None:
    """
    Args:
        keys: "section.key" of the settings that were stated.
        where: the beginning of the message.

    Raises:
        ConfigError: the model or the run has no use for one of them.
    """
    flat = settings.flat()
    for key in keys:
        section, name = key.split(".")
        reason = (settings.model.unused(name) if section == "model" else None) or _unused(settings, key)
        if reason is not None:
            raise ConfigError(f"{where}{key}={flat[key]} has no effect: {reason}")


def _unused(settings: Settings, key: str) -> str | None:
    """Why a run does not use a setting; None if it does."""
    value, model = settings.flat()[key], settings.model
    if key.startswith("pretraining.") and not settings.pretrains:
        return "this run trains a classifier: penstock pretrain reads it"
    if settings.pretrains and (key in CLASSIFIER_ONLY or key.startswith("distillation.")) and value:
        return "this run learns from texts without labels: leave it out, or give it to penstock train"
    if key == "pretraining.objective" and not model.is_of(OBJECTIVES[value]):
        return f"this model is {model.named}, which does not learn so: penstock pretrain is for lstm and encoder" + (
            " (masked)" if model.kind == "encoder" else ""
        )
    if key == "pretraining.candidates" and settings.pretraining.objective == "replaced":
        return "pretraining.objective=replaced tells no tokens from others: leave it out"
    if key == "training.precision" and value == "fp32" and model.kind == "bag":
        return None  # that is what a bag computes in, and its config.yaml says
    if value is not None and not model.is_of(used_by(key)):
        return f"this model is {model.named}, which does not use it: leave it out"
    if key in WITH_VALIDATION and value and settings.data.validation_fraction == 0:
        return "data.validation_fraction=0 leaves no rows to evaluate on"
    if key == "training.wandb_project" and value and not importlib.util.find_spec("wandb"):
        return "wandb is not installed: pip install 'penstock[tracking]'"
    return None


def check_distillation(settings: Settings) -> None:
    """
    Raises:
        ConfigError: a setting has no meaning where most labels are the teachers'.
    """
    flat = settings.flat()
    for key, why in NOT_DISTILLED.items():
        if flat[key]:
            raise ConfigError(f"{key}={flat[key]} cannot be had in a distillation: {why}; leave it out")


def check_not_distilled(settings: Settings) -> None:
    """
    Raises:
        ConfigError: a setting of the section `distillation` asks for something, of a run that learns from labels alone.
    """
    flat, defaults = settings.flat(), _defaults()
    for key in sorted(key for key in flat if key.startswith("distillation.") and flat[key] != defaults[key]):
        raise ConfigError(
            f"{key}={flat[key]} has no effect: this run learns from labels alone; leave it out, or learn "
            "from a teacher with penstock distil"
        )


def _settings(values: Mapping[str, Any]) -> Settings:
    """As `settings_from`, whatever the model has a use for."""
    known = _keys()
    sections: dict[str, dict[str, Any]] = {name: {} for name in _sections()}
    for key, entry in values.items():
        value, where = entry if isinstance(entry, tuple) else (entry, "")
        if key not in known:
            lists = f"the sections are {', '.join(_sections())}; `penstock train --settings` lists every key"
            raise ConfigError(f"{where}unknown setting {key!r}: {suggest(key, list(known)) or lists}")
        section, name = key.split(".")
        sections[section][name] = checked(value, *known[key], where=f"{where}{key}")
    made = {name: cls(**sections[name]) for name, cls in _sections().items()}
    return Settings(**made, given=frozenset(values))


def describe_settings() -> str:
    """One line for each setting: key, default, type and range, meaning."""
    lines = []
    for key, (annotation, metadata) in _keys().items():
        only = f"{' and '.join(metadata['used_by'])} only" if metadata["used_by"] else ""
        limits = ", ".join(part for part in (describe_range(metadata), only) if part)
        more = f"  [{limits}]" if limits else ""
        default = json.dumps(metadata["default"])
        lines.append(f"{key}={default}  ({describe_type(annotation)})  {metadata['help']}{more}")
    return "\n".join(lines)


def used_by(key: str) -> tuple[str, ...]:
    """The kinds of model that read a setting; empty if all do, or if there is no such setting."""
    return _keys()[key][1]["used_by"] if key in _keys() else ()


@functools.cache
def _sections() -> dict[str, type]:
    return {
        "model": ModelSettings,
        "data": DataSettings,
        "training": TrainingSettings,
        "pretraining": PretrainingSettings,
        "distillation": DistillationSettings,
    }


@functools.cache
def _defaults() -> dict[str, Any]:
    return Settings().flat()


@functools.cache
def _keys() -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """{"section.key": (type, metadata and default)}"""
    return {
        f"{section}.{entry.name}": (
            typing.get_type_hints(cls)[entry.name],
            {**entry.metadata, "default": entry.default},
        )
        for section, cls in _sections().items()
        for entry in dataclasses.fields(cls)
    }


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
        if entries is None and section in _sections():
            continue
        if not isinstance(entries, Mapping):
            keys = ", ".join(_sections())
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
        raise ConfigError(f"{file}: expected sections ({', '.join(_sections())}), got {type(document).__name__}")
    return document
