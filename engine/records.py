"""JSON files that penstock wrote and somebody may have changed: read strictly, so that what comes out can be used.

Whatever the file holds, one exception comes out of here: a ValueError whose message says where and what.
"""

import dataclasses
import errno
import json
import math
import os
import stat
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_DEPTH = 200  # of lists and objects in each other: far more than any of our files has


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is no JSON, has an entry twice, a number that is none (NaN, Infinity), or half a character.
        OSError: it cannot be read, or is not a file.
    """
    return parse_json(read_file(path))


def read_file(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe or a device: reading some of them never ends.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer would block
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    except OSError:
        os.close(descriptor)
        raise
    with open(descriptor, "rb") as file:
        return file.read()


def parse_json(content: bytes | str) -> Any:
    """As `read_json`, of what was read."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in found if names.count(name) > 1)!r} is there twice")
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not a number")

    try:
        value = json.loads(content, object_pairs_hook=once, parse_constant=refuse)
        _check_depth(value)
        # half of a surrogate pair, which nothing can write again
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("lists and objects lie too deep in each other") from None
    return value


def read_record(kind: type[T], value: Any, where: str = "") -> T:
    """A dataclass from the object that its `asdict` became in a JSON file.

    Fields may be declared as int, float, bool, str, Literal of text, Any, other such dataclasses, lists and
    dictionaries of these, and unions. Nothing is converted but whole numbers to float. Entries that are missing have
    their default.

    Args:
        where: names the value at the beginning of a message.

    Raises:
        ValueError: an entry is missing, unknown, or of another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'it'} is not an object")
    hints, prefix = typing.get_type_hints(kind), f"{where}." if where else ""
    declared = {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := next((name for name in value if name not in declared), None):
        raise ValueError(f"{prefix}{unknown} is unknown: of a later penstock?")
    read = {}
    for name, entry in declared.items():
        if name in value:
            read[name] = _read(hints[name], value[name], prefix + name)
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name} is missing")
    return kind(**read)


def check_entries(value: Any, kinds: Mapping[str, Any], required: Collection[str] = (), where: str = "") -> None:
    """As `read_record` checks, of an object that stays one and may have more entries than are known here.

    Args:
        kinds: the types of entries, where they are there. required: those that have to be.

    Raises:
        ValueError: an entry is missing or of another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'it'} is not an object")
    prefix = f"{where}." if where else ""
    if (missing := next((name for name in required if name not in value), None)) is not None:
        raise ValueError(f"{prefix}{missing} is missing")
    for name, kind in kinds.items():
        if name in value:
            _read(kind, value[name], prefix + name)


def check_range(where: str, value: float, minimum: float, maximum: float) -> None:
    """
    Raises:
        ValueError: a number outside of the closed range.
    """
    if not minimum <= value <= maximum:
        ends = f"{minimum:,} to {maximum:,}" if maximum < 1 << 62 else f"at least {minimum:,}"
        raise ValueError(f"{where} is {value!r}, not {ends}")


def _read(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _read_alternative(arguments, value, where)
    if origin is Literal:
        if isinstance(value, str) and value in arguments:
            return value
        raise ValueError(f"{where} is {_short(value)}, not {' or '.join(map(repr, arguments))}")
    if dataclasses.is_dataclass(kind):
        return read_record(typing.cast(type, kind), value, where)
    if origin is list:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {_short(value)}, not a list")
        return [_read(arguments[0], one, f"{where}[{index}]") for index, one in enumerate(value)]
    if origin is tuple:  # of any number of one kind
        if not isinstance(value, list):
            raise ValueError(f"{where} is {_short(value)}, not a list")
        return tuple(_read(arguments[0], one, f"{where}[{index}]") for index, one in enumerate(value))
    if kind is dict and isinstance(value, dict):
        return value
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {_short(value)}, not an object")
        key_kind, kind = arguments
        return {_key(key_kind, key, where): _read(kind, one, f"{where}.{key}") for key, one in value.items()}
    if kind is float and type(value) is int and abs(value) < 1 << 1023:
        return float(value)
    if type(value) is kind and (kind is not float or math.isfinite(value)):
        return value
    raise ValueError(f"{where} is {_short(value)}, not {_NAMES[kind]}")


def _read_alternative(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        try:
            return _read(kind, value, where)
        except ValueError:
            continue
    return _read(others[-1], value, where)


def _key(kind: Any, key: str, where: str) -> Any:
    if kind is str:
        return key
    if not (key.isascii() and key.isdecimal() and len(key) < 19):
        raise ValueError(f"{where}: {key!r} is not a whole number")
    return int(key)


def _check_depth(value: Any) -> None:
    layer, depth = [value], 0
    while layer:
        inner = [list(one.values()) if isinstance(one, dict) else one for one in layer if isinstance(one, dict | list)]
        layer, depth = [child for children in inner for child in children], depth + 1
        if depth > _DEPTH:
            raise RecursionError


def _short(value: Any) -> str:
    shown = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
