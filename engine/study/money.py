"""What a study's models cost in money: their labels, the hours that train them, the hours that predict with them."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.errors import ConfigError, RunError
from penstock.engine.files import disk_errors
from penstock.engine.records import check_range, read_record
from penstock.engine.study.costs import Cost
from penstock.engine.study.directory import STUDY_NAME, read_study, write_study
from penstock.engine.study.families import REFERENCE, learns
from penstock.engine.study.table import Table


@dataclass(frozen=True)
class Prices:
    """
    Attributes:
        label: of one label. hour: of an hour of this machine. In any one currency.
        predictions: texts that the model will classify; 0 leaves them out.
    """

    label: float = 0.0
    hour: float = 0.0
    predictions: float = 0.0

    @classmethod
    def of(
        cls, label: float | None, hour: float | None, predictions: float | None, folder: Path | None = None
    ) -> "Prices | None":
        """As the options give them; None if none is given.

        Args:
            folder: of the study, which keeps those that are not given now.

        Raises:
            ConfigError: one is negative or no number, or predictions have no price.
        """
        given = {"--price-label": label, "--price-hour": hour, "--predictions": predictions}
        for name, value in given.items():
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be a number, 0 at least, got {value}")
        if all(value is None for value in given.values()):
            return None
        kept = cls()
        if folder is not None and (folder / STUDY_NAME).exists():
            with contextlib.suppress(RunError):  # damaged prices are replaced
                kept = cls.in_study(read_study(folder)) or kept
        prices = cls(
            kept.label if label is None else label,
            kept.hour if hour is None else hour,
            kept.predictions if predictions is None else predictions,
        )
        if prices.predictions and not prices.hour:
            if predictions is None:
                raise ConfigError(
                    f"--price-hour 0: the {prices.predictions:,.0f} predictions that were given before then have no "
                    "price: give --predictions 0 too"
                )
            raise ConfigError("--predictions: what a prediction costs follows from --price-hour: give one above 0 too")
        return prices

    @classmethod
    def in_study(cls, study: Mapping[str, Any]) -> "Prices | None":
        """As study.json keeps them.

        Raises:
            RunError: it keeps something else.
        """
        kept = study.get("prices")
        if not kept:
            return None
        try:
            prices = read_record(cls, kept, "prices")
            for name, value in asdict(prices).items():
                check_range(f"prices.{name}", value, 0, math.inf)
            return prices
        except ValueError as error:
            raise RunError(f"study.json is damaged: {error}; give the prices again, or take the entry out") from None

    def keep(self, folder: Path) -> None:
        """Puts them into study.json, where they change nothing but reports.

        Raises:
            RunError: there is no study.
            DiskError: it cannot be written.
        """
        study = read_study(folder)
        if study.get("prices") != self.to_json():
            with disk_errors(folder):
                write_study(folder, study | {"prices": self.to_json()})

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.label:g} a label"] if self.label else []
        parts += [f"{self.hour:g} an hour of this machine"] if self.hour else []
        parts += [f"{self.predictions:,.0f} predictions"] if self.predictions else []
        return ", ".join(parts) or "prices of nothing"


@dataclass(frozen=True)
class Bill:
    """What one model costs.

    Attributes:
        labels, training, predictions: money; `predictions` is None where the family's speed is not known.
    """

    family: str
    size: float
    labels: float
    training: float
    predictions: float | None

    @property
    def total(self) -> float | None:
        return None if self.predictions is None else self.labels + self.training + self.predictions


@dataclass(frozen=True)
class Exchange:
    """For the accuracy that the encoder reaches with `size` labels: what it costs by the encoder, and by a family.

    Attributes:
        accuracy: the encoder's, a share. needed: the labels that the family needs for it, with the ends of the 95%
            interval: 0 below its smallest size, infinity above its largest.
        bill: of the family at `needed`, or at its smallest or largest size where that lies outside of its sizes; low
            and high likewise.
        even_at: the price of a label at which both cost the same; None where none is: one of them is cheaper at any.
    """

    family: str
    size: int
    accuracy: float
    encoder: Bill
    needed: tuple[float, float | None, float | None]
    bill: Bill
    low: Bill | None
    high: Bill | None
    even_at: float | None


def money(amount: float | None) -> str:
    """Three significant digits; whole units from 100 on."""
    if amount is None:
        return "an unknown sum"
    if amount >= 100:
        return f"{amount:,.0f}"
    return f"{amount:.2f}" if amount >= 1 else f"{amount:.2g}"


def bills(table: Table, costs: Mapping[str, Cost], prices: Prices) -> list[Bill]:
    """One for every family at every size that it was trained on."""
    return [_bill(table, costs, prices, family, size) for family in table.families for size in _sizes(table, family)]


def exchanges(
    table: Table,
    costs: Mapping[str, Cost],
    prices: Prices,
    equivalents: Mapping[str, Mapping[int, tuple[float, float | None, float | None]]],
) -> list[Exchange]:
    """For each family and each of the encoder's sizes."""
    found = []
    for family, own in equivalents.items():
        sizes = _sizes(table, family)
        if not sizes or not learns(family):
            continue
        for size, needed in own.items():
            reference = table.get(REFERENCE, size)
            if reference is None or reference.accuracy is None:
                continue

            def at(labels: float | None, family: str = family, sizes: list[int] = sizes) -> Bill | None:
                if labels is None:
                    return None
                return _bill(table, costs, prices, family, min(max(labels, sizes[0]), sizes[-1]))

            encoder, bill = _bill(table, costs, prices, REFERENCE, size), at(needed[0])
            assert bill is not None
            even = None if math.isinf(needed[0]) or needed[0] == 0 else _even_at(encoder, bill)
            found.append(
                Exchange(
                    *(family, size, reference.accuracy.mean, encoder, needed, bill),
                    *(at(needed[1]), at(needed[2]), even),
                )
            )
    return found


def training_seconds(table: Table, family: str, size: float) -> float:
    """Seconds of the machine for training at a size, a teacher's included, means over seeds; between measured sizes
    along a power law."""
    sizes = _sizes(table, family)
    measured = []
    for own in sizes:
        done = [trial.machine_seconds for trial in table.trials(family, own) if trial.status == "done"]
        measured.append(sum(done) / len(done))
    logarithms = np.log(np.maximum(measured, 1e-9))
    return float(np.exp(np.interp(np.log(size), np.log(sizes), logarithms)))


def _bill(table: Table, costs: Mapping[str, Cost], prices: Prices, family: str, size: float) -> Bill:
    hourly = prices.hour / 3600
    predictions: float | None = 0.0
    if prices.predictions:
        cost = costs.get(family)
        speed = cost.texts_per_second if cost is not None else None
        predictions = None if not speed else prices.predictions / speed * hourly
    return Bill(family, size, prices.label * size, hourly * training_seconds(table, family, size), predictions)


def _even_at(encoder: Bill, other: Bill) -> float | None:
    """The price of a label at which the one that needs more labels has used up what it saves elsewhere."""
    if encoder.predictions is None or other.predictions is None or other.size == encoder.size:
        return None
    saved = encoder.training + encoder.predictions - other.training - other.predictions
    price = saved / (other.size - encoder.size)
    return price if price > 0 else None


def _sizes(table: Table, family: str) -> list[int]:
    return [point.size for point in table.points(family)]
