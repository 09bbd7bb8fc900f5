"""Checksums of what a run keeps: of a JSON record, in the record itself, and of a folder's files, in one of them.

A sealed folder holds `checkpoint.json`: the version of its format, what its writer notes of it, and the size and
CRC-32 of every other file. It is written last. What is found to be damaged is described in a few words, for messages.
"""

import json
import os
import stat
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from penstock.engine.errors import first_line
from penstock.engine.files import CommittedFile, write_json
from penstock.engine.records import read_json

SEAL_NAME = "checkpoint.json"
_FORMAT = 1
_BLOCK = 1 << 22


class DamageError(Exception):
    """Says which file is damaged and how; whoever catches it says what to do."""


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with an entry `crc32` of all the others, in their JSON form."""
    return {**record, "crc32": _checksum(record)}


def without_checksum(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The record without the entry.

    Raises:
        DamageError: the entry is missing or is not that of the others; `name` is what the record is called.
    """
    rest = {key: value for key, value in record.items() if key != "crc32"}
    if record.get("crc32") != _checksum(rest):
        raise DamageError(f"{name} is damaged: its checksum does not fit its content")
    return rest


def write_checked(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON record with its checksum.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    write_json(path, with_checksum(record))


def read_checked(path: Path) -> Any:
    """What `write_checked` wrote, without the checksum. One of an earlier penstock has none, and whoever edits the file
    on purpose takes it out.

    Raises:
        ValueError, OSError: as `read_json`; also if the checksum does not fit.
    """
    record = read_json(path)
    if not isinstance(record, dict) or "crc32" not in record:
        return record
    try:
        return without_checksum(record, str(path))
    except DamageError:
        raise ValueError("its checksum does not fit its content") from None


def crc32_of(file: Path, size: int | None = None) -> int:
    """The CRC-32 of a file, or of its first `size` bytes; of fewer where it is shorter."""
    crc, left = 0, -1 if size is None else size
    with open(file, "rb", buffering=0) as source:
        while left and (block := source.read(_BLOCK if left < 0 else min(_BLOCK, left))):
            crc = zlib.crc32(block, crc)
            left -= len(block) if left > 0 else 0
    return crc


def seal(folder: Path, written: Mapping[str, CommittedFile] = MappingProxyType({}), /, **entries: Any) -> None:
    """Writes `checkpoint.json` over the files that are in the folder now; it has no folders in it.

    Args:
        written: those whose size and checksum are known from when they were written.
        entries: JSON values, to be found in what `read_seal` returns.
    """
    files = {}
    for file in sorted(folder.iterdir()):
        if (known := written.get(file.name)) is not None:
            files[file.name] = {"size": known.size, "crc32": known.crc32}
        elif file.name != SEAL_NAME:
            files[file.name] = {"size": file.stat().st_size, "crc32": crc32_of(file)}
    write_json(folder / SEAL_NAME, with_checksum({"format": _FORMAT, **entries, "files": files}))


def read_seal(folder: Path) -> dict[str, Any] | None:
    """The contents of `checkpoint.json`; None where there is none.

    Raises:
        DamageError: it is damaged, or of another format.
    """
    try:
        content = json.loads((folder / SEAL_NAME).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DamageError(f"{SEAL_NAME} cannot be read ({first_line(error)})") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise DamageError(f"{SEAL_NAME} is damaged: it is not what penstock writes")
    if content["format"] != _FORMAT:
        raise DamageError(
            f"{SEAL_NAME} has format {content['format']}, this penstock reads {_FORMAT}: it is of a later version"
        )
    content = without_checksum(content, SEAL_NAME)
    files = content.get("files")
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        raise DamageError(f"{SEAL_NAME} is damaged: its list of files is not one")
    return content


def check_sealed(folder: Path, seal: Mapping[str, Any], skip: Collection[str] = ()) -> None:
    """
    Args:
        seal: from `read_seal`. skip: names of files that may be missing or different.

    Raises:
        DamageError: a file is not as it was written.
    """
    for name, entry in seal["files"].items():
        if name in skip:
            continue
        file = folder / name
        try:
            status = os.stat(file)
            if not stat.S_ISREG(status.st_mode):
                raise DamageError(f"{name} is no file any more")
            if status.st_size != entry["size"]:
                raise DamageError(f"{name} has {status.st_size:,} bytes, {entry['size']:,} were written")
            if crc32_of(file) != entry["crc32"]:
                raise DamageError(f"{name} is damaged: its checksum is not that of what was written")
        except FileNotFoundError:
            raise DamageError(f"{name} is missing") from None
        except OSError as error:
            raise DamageError(f"{name} cannot be read ({error.strerror})") from None


def _checksum(record: Mapping[str, Any]) -> int:
    as_read = json.loads(json.dumps(record))
    return zlib.crc32(json.dumps(as_read, sort_keys=True).encode())


def _is_entry(name: str, entry: Any) -> bool:
    whole = isinstance(entry, dict) and all(isinstance(entry.get(key), int) for key in ("size", "crc32"))
    return whole and name == os.path.basename(name) and name not in ("", ".", "..")
