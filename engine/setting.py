"""One declared setting: its default, its meaning, what values it takes. A section is a frozen dataclass of these."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

from penstock.engine.errors import ConfigError


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    used_by: str | tuple[str, ...] = (),
) -> Any:
    """A field with a help line.

    Args:
        minimum, maximum: the closed range of a numeric value. below: an upper end that does not belong to it.
        used_by: the kind of model that reads it, or kinds; all of them by default.
    """
    ranges = {"minimum": minimum, "maximum": maximum, "below": below}
    kinds = (used_by,) if isinstance(used_by, str) else used_by
    return field(default=default, metadata={"help": help, "used_by": kinds, **ranges})


def checked(value: Any, annotation: Any, metadata: Mapping[str, Any], where: str) -> Any:
    """The value as the annotated type.

    Args:
        where: names the setting at the beginning of a message.

    Raises:
        ConfigError: it cannot be one, or lies out of range.
    """
    for alternative in _alternatives(annotation):
        converted, fits = _convert(value, alternative)
        if fits:
            break
    else:
        raise ConfigError(f"{where} must be {describe_type(annotation)}, got {value!r}")
    for number in converted.values() if isinstance(converted, dict) else [converted]:
        _check_range(number, metadata, where, value)
    return converted


def check_section(section: Any, name: str) -> None:
    """Converts and checks every field of a section that was built in Python.

    Raises:
        ConfigError: as `checked`.
    """
    hints = typing.get_type_hints(type(section))
    for entry in dataclasses.fields(section):
        value = getattr(section, entry.name)
        converted = checked(value, hints[entry.name], entry.metadata, f"{name}.{entry.name}")
        object.__setattr__(section, entry.name, converted)


def describe_type(annotation: Any) -> str:
    """In words, such as "a whole number or null"."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    parts = []
    for kind in _alternatives(annotation):
        origin = typing.get_origin(kind)
        if origin is Literal:
            parts.append(" | ".join(map(str, typing.get_args(kind))))
        else:
            parts.append("a mapping of labels to numbers" if origin is dict else names.get(kind, str(kind)))
    return " or ".join(parts)


def describe_range(metadata: Mapping[str, Any]) -> str:
    """In words, such as "at least 1"; empty where every value will do."""
    minimum, maximum, below = (metadata.get(end) for end in ("minimum", "maximum", "below"))
    if minimum is not None and maximum is not None:
        return f"between {minimum} and {maximum}"
    ends = [f"at least {minimum}"] if minimum is not None else []
    ends += [f"at most {maximum}"] if maximum is not None else []
    ends += [f"below {below}"] if below is not None else []
    return " and ".join(ends)


def _check_range(number: Any, metadata: Mapping[str, Any], where: str, given: Any) -> None:
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        return
    minimum, maximum, below = (metadata.get(end) for end in ("minimum", "maximum", "below"))
    fits = (minimum is None or number >= minimum) and (maximum is None or number <= maximum)
    if not fits or (below is not None and not number < below):
        raise ConfigError(f"{where} must be {describe_range(metadata)}, got {given!r}")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _convert(value: Any, kind: Any) -> tuple[Any, bool]:
    """(the value as `kind`, whether it can be one)"""
    if kind is type(None):
        return None, value is None
    if typing.get_origin(kind) is Literal:
        return value, isinstance(value, str) and value in typing.get_args(kind)
    if typing.get_origin(kind) is dict:
        return _convert_mapping(value)
    if kind is bool:
        return value, isinstance(value, bool)
    if kind is float:
        # YAML 1.1 reads 1e-3 as text
        try:
            return float(value), not isinstance(value, bool) and math.isfinite(float(value))
        except (TypeError, ValueError, OverflowError):
            return value, False
    if kind is int:
        if isinstance(value, str):
            value, _ = _convert(value, float)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return value, isinstance(value, int) and not isinstance(value, bool)
    assert kind is str
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value), True
    return value, False


def _convert_mapping(value: Any) -> tuple[Any, bool]:
    """Labels to numbers."""
    if not isinstance(value, Mapping) or not value:
        return value, False
    pairs = [(str(label), *_convert(number, float)) for label, number in value.items()]
    return {label: number for label, number, _ in pairs}, all(fits for _, _, fits in pairs)


def split_key_value(item: str, wanted: str) -> tuple[str, str]:
    """(key, value) of `key=value`.

    Args:
        wanted: what to write instead, for the message.

    Raises:
        ConfigError: it has another form, or no value.
    """
    key, equals, value = item.partition("=")
    if not equals:
        raise ConfigError(f"{item!r} is no setting: write {wanted}")
    if not value.strip():
        raise ConfigError(f"{item!r} has no value: write {wanted}")
    return key.strip(), value


def notes_on_overruled(items: Sequence[str], wanted: str) -> list[str]:
    """A line for each key that is given twice with other values, of which the last one counts: scripts append theirs.

    Args:
        items: `key=value`, as one command line has them. wanted: as of `split_key_value`.

    Raises:
        ConfigError: an item has another form.
    """
    seen: dict[str, str] = {}
    lines = []
    for item in items:
        key, value = split_key_value(item, wanted)
        if seen.get(key, value) != value:
            lines.append(f"note: {key}={value} counts, not {key}={seen[key]}, which is given before it")
        seen[key] = value
    return lines
