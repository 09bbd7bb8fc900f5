"""The settings of a baseline's trial."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.engine.errors import ConfigError
from penstock.engine.setting import checked
from penstock.engine.study.baselines import baseline
from penstock.engine.training.suggestions import suggest

# what a baseline takes of the settings that the loop's families have: their cut where all have one, their split
SHARED_KEYS = (
    "data.max_length",
    "data.truncation",
    "data.validation_fraction",
    "data.validation_max",
    "training.seed",
)


@dataclass(frozen=True)
class BaselineSettings:
    """
    Attributes:
        name: of the baseline. options: its `Options`.
        examples: rows of the training subset.
        seed, validation_fraction, validation_max: of the validation split; the seed also of all else that is random.
        max_length, truncation: what is read of each text, settled as a run's are.
        encoder: name or path; None for a baseline that reads none.
    """

    name: str
    options: Any
    examples: int
    seed: int
    validation_fraction: float
    validation_max: int
    max_length: int | str = "whole"
    truncation: str = "auto"
    encoder: str | None = None

    @property
    def precision(self) -> str | None:
        """As `Settings.precision`: an encoder's; other baselines have none."""
        return None if self.encoder is None else "auto"

    @property
    def reading(self) -> tuple[int | str, str]:
        """As `Settings.reading`."""
        return self.max_length, self.truncation

    def flat(self) -> dict[str, Any]:
        """{"section.key": value} of all that the result depends on, besides data and encoder."""
        own = {f"{self.name}.{key}": value for key, value in dataclasses.asdict(self.options).items()}
        return {
            f"{self.name}.version": baseline(self.name).VERSION,
            **own,
            **({} if self.encoder is None else {"model.encoder": self.encoder}),
            **{key: getattr(self, key.partition(".")[2]) for key in SHARED_KEYS},
            "examples": self.examples,
        }


def options_from(name: str, values: Mapping[str, Any]) -> Any:
    """A baseline's options from {key: value}; the rest is at its default.

    Raises:
        ConfigError: there is no such option, or a value is wrong.
    """
    cls = baseline(name).Options
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            known = [f"{name}.{own}" for own in fields]
            there = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise ConfigError(f"unknown setting '{name}.{key}': {suggest(f'{name}.{key}', known) or there}")
    return cls(
        **{key: checked(value, hints[key], fields[key].metadata, f"{name}.{key}") for key, value in values.items()}
    )


def default_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"section.key": value} of a baseline's options at their defaults.

    Args:
        settings: as `BaselineSettings.flat` gives them; of anything else there are none.
    """
    name = next((key.partition(".")[0] for key in settings if key.endswith(".version")), None)
    if name is None:
        return {}
    return {f"{name}.{entry.name}": entry.default for entry in dataclasses.fields(baseline(name).Options)}
