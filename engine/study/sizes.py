"""Sizes and numbers of seeds as written on the command line: `500,2k,8k`, `1%,10%,100%`, `3,8k:2,32k:1`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.engine.errors import ConfigError
from penstock.engine.setting import split_key_value

_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|%)?", re.IGNORECASE)


@dataclass(frozen=True)
class Size:
    """A training-set size: a count of examples or a percentage of the training data."""

    text: str
    count: int | None = None
    percent: float | None = None

    def resolve(self, available: int) -> int:
        """The size in examples, of `available` ones.

        Raises:
            ConfigError: it is larger than the data, or no example at all.
        """
        count = self.count if self.count is not None else round((self.percent or 0) * available / 100)
        if count > available:
            raise ConfigError(f"size {self.text} is larger than the training data, which has {available:,} examples")
        if count < 1:
            raise ConfigError(f"size {self.text} is less than one of the {available:,} training examples")
        return count


def parse_size(text: str) -> Size:
    """One size: `500`, `2k`, `1.5m` or `10%`.

    Raises:
        ConfigError: it is none of these, not a whole number of examples, or not between 0% and 100%.
    """
    text = text.strip()
    match = _SIZE.fullmatch(text.replace("_", ""))
    if match is None:
        raise ConfigError(f"size {text!r} is no size: write a count (500, 2k, 1.5m) or a percentage (10%)")
    number, unit = float(match[1]), (match[2] or "").lower()
    if unit == "%":
        if not 0 < number <= 100:
            raise ConfigError(f"size {text!r} must lie above 0% and at most at 100%")
        return Size(text, percent=number)
    count = number * _UNITS[unit]
    if count < 1 or abs(count - round(count)) > 1e-6:
        raise ConfigError(f"size {text!r} is not a whole number of examples, one at least")
    return Size(text, count=round(count))


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Several sizes with commas between them.

    Raises:
        ConfigError: one of them is no size, or there is none.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError("give at least one size, such as --sizes 500,2k,8k or 1%,10%,100%")
    return tuple(parse_size(part) for part in parts)


def resolve_sizes(sizes: Sequence[Size], available: int, num_classes: int) -> tuple[int, ...]:
    """The sizes in examples, ascending, each once.

    Raises:
        ConfigError: a size is larger than the data, or too small for a training and a validation example of each class.
    """
    resolved = {size.resolve(available): size.text for size in sizes}
    for count, text in resolved.items():
        if count < 2 * num_classes:
            raise ConfigError(
                f"size {text} is too small for {num_classes} classes: {2 * num_classes} examples at least"
            )
    return tuple(sorted(resolved))


@dataclass(frozen=True)
class SeedRule:
    """How many seeds each size gets: `steps` are (smallest size, count), the last that applies decides."""

    steps: tuple[tuple[Size | None, int], ...]

    def resolve(self, sizes: Sequence[int], available: int) -> dict[int, int]:
        """{size in examples: number of seeds}

        Sizes named in the rule that are larger than the data never apply.
        """
        limits = [(0 if start is None else _limit(start, available), count) for start, count in self.steps]
        return {size: max((limit, count) for limit, count in limits if limit <= size)[1] for size in sizes}


def _limit(size: Size, available: int) -> int:
    return size.count if size.count is not None else size.resolve(available)


def parse_seeds(text: str) -> SeedRule:
    """`3` for three seeds everywhere, or `3,8k:2,32k:1` for two from 8,000 examples on and one from 32,000 on.

    Raises:
        ConfigError: it is neither of these.
    """
    steps: list[tuple[Size | None, int]] = []
    for place, part in enumerate(text.split(",")):
        start, colon, number = part.rpartition(":")
        if not number.strip().isdigit() or int(number) < 1 or bool(colon) != (place > 0):
            raise ConfigError(f"--seeds {text!r}: write a count such as 3, or 3,8k:2,32k:1 for fewer from a size on")
        steps.append((parse_size(start) if colon else None, int(number)))
    return SeedRule(tuple(steps))


def parse_max_sizes(items: Sequence[str], families: Sequence[str]) -> dict[str, Size]:
    """`FAMILY=SIZE` items: the largest size at which each family is trained.

    Raises:
        ConfigError: an item has another form or names no family of the study.
    """
    wanted = f"--max-size FAMILY=SIZE with a family of {', '.join(families)}"
    limits = {}
    for item in items:
        family, size = split_key_value(item, wanted)
        if family in limits:
            raise ConfigError(f"--max-size {item!r}: {family} is given twice; leave one out")
        if family not in families:
            raise ConfigError(f"--max-size {item!r}: write {wanted}")
        limits[family] = parse_size(size)
    return limits


def sizes_up_to(sizes: Sequence[int], limits: Mapping[str, Size], family: str, available: int) -> tuple[int, ...]:
    """Those of `sizes` at which `family` is trained."""
    if family not in limits:
        return tuple(sizes)
    limit = _limit(limits[family], available)
    return tuple(size for size in sizes if size <= limit)
