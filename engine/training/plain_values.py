"""Values of any Arrow column as JSON and CSV can say them."""

import json
import math
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock.engine.data.sources.base import unique_names
from penstock.engine.data.sources.columnar import is_list


def plain_list(column: pa.Array) -> list[Any]:
    """A column as numbers, strings, truth values, None, and lists and dictionaries of these."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_list(column.type):
        items = iter(plain_list(column.flatten()))
        sizes = pc.list_value_length(column).to_pylist()
        return [None if size is None else list(islice(items, size)) for size in sizes]
    if pa.types.is_map(column.type):
        pairs = pa.list_(pa.struct([("key", column.type.key_type), ("value", column.type.item_type)]))
        maps = plain_list(column.cast(pairs))
        return [one and [[pair["key"], pair["value"]] for pair in one] for one in maps]
    if pa.types.is_struct(column.type) and column.type.num_fields:
        names = unique_names([field.name for field in column.type])
        rows = zip(*map(plain_list, column.flatten()), column.is_valid().to_pylist(), strict=True)
        return [dict(zip(names, row, strict=True)) if valid else None for *row, valid in rows]
    if pa.types.is_duration(column.type):
        unit = column.type.unit
        return [value if value is None else _duration(value, unit) for value in column.cast(pa.int64()).to_pylist()]
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return [value if value is None else value.decode("utf-8", "backslashreplace") for value in column.to_pylist()]
    if pa.types.is_temporal(column.type) or pa.types.is_decimal(column.type):
        try:
            return pc.cast(column, pa.string()).to_pylist()
        except pa.ArrowException:  # intervals
            return [value if value is None else str(value) for value in column.to_pylist()]
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            return plain_list(column.cast(pa.large_binary()))
    return column.to_pylist()


_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}


def _duration(value: int, unit: str) -> str:
    """Seconds as ISO 8601 writes them, exact: PT1S, -PT0.000001S."""
    digits = _DIGITS[unit]
    whole, rest = divmod(abs(value), 10**digits)
    fraction = f".{rest:0{digits}}".rstrip("0") if rest else ""
    return f"{'-' if value < 0 else ''}PT{whole}{fraction}S"


def as_text(value: Any) -> str | None:
    """Anything in a column of strings: strings as they are, the rest as JSON."""
    if value is None:
        return None
    return _sound(value) if isinstance(value, str) else _sound(to_json(value))


def to_json(value: Any) -> str:
    """One line of JSON; what it has no type for as a string, a number that it cannot write (NaN) as null."""
    try:
        line = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return to_json(_finite(value))
    # half a character, which UTF-8 cannot hold, stays escaped
    return line if _encodes(line) else json.dumps(value, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sound(text: str) -> str:
    return text if _encodes(text) else text.encode("utf-8", "backslashreplace").decode()


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
