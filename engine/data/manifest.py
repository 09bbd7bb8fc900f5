"""What a store's manifest says. It is written last: a folder without one is not a store."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.engine.errors import StoreError

FORMAT = "penstock-store"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.arrow"
LABELS_NAME = "labels.arrow"
SECONDS_NAME = "seconds.arrow"
TOKENIZER_NAME = "tokenizer"

INDEX_SCHEMA = pa.schema([pa.field("length", pa.int32(), False), pa.field("label", pa.int64(), False)])
_LABEL_LIST = pa.large_list(pa.field("item", pa.int32(), False))
LABELS_SCHEMA = pa.schema([pa.field("labels", _LABEL_LIST, False)])

SECONDS_SCHEMA = pa.schema([pa.field("second", pa.int32(), False)])


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.arrow"


def shard_schema(
    dtype: str, number: int, preparation: str, multi_label: bool = False, token_types: bool = False
) -> pa.Schema:
    """The columns of a shard. Its metadata says which shard of which preparation it is, to know a foreign one.

    With several labels a row, `labels` has them, and `label` the rarest one; with token types, `second` has how many
    tokens stand before the first of type 1.
    """
    ids = {"uint16": pa.uint16(), "uint32": pa.uint32()}[dtype]
    return pa.schema(
        [
            pa.field("tokens", pa.large_list(pa.field("item", ids, False)), False),
            pa.field("label", pa.int32(), False),
            pa.field("source", pa.int32(), False),
            pa.field("source_row", pa.int64(), False),
            *([pa.field("labels", _LABEL_LIST, False)] if multi_label else []),
            *(SECONDS_SCHEMA if token_types else ()),
        ],
        metadata={"penstock.shard": str(number), "penstock.preparation": preparation},
    )


def canonical_json(value: Any) -> bytes:
    """One text for one value: what fingerprints are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


@dataclass(frozen=True)
class FileEntry:
    """A data file of the store, as it was committed."""

    name: str
    bytes: int
    crc32: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class SourceEntry:
    """An input as it was read; `source_row` of a shard counts its lines or rows from 1."""

    name: str
    text: str
    label: str
    unit: str
    rows: int
    bad_rows: int


@dataclass(frozen=True)
class TokenizerEntry:
    """Which tokenizer made the tokens.

    `files` holds the CRC-32 of its saved files, `probes` a digest of the ids that it gives to fixed strings: it shows a
    library that tokenizes otherwise than the one that prepared the store.
    """

    origin: str
    fingerprint: str
    probes: str
    files: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """All that is known of a store besides its tokens.

    Those with a default are not in older stores. `multi_label`: a row has a list of labels, all of which `label_index`
    holds, and `label_counts` counts the rows that have each; `label_separator` stood between them in the sources.
    `is_pair`: a row has two texts; `seconds` is there where its tokens have types.
    """

    preparation: str
    max_length: int
    truncation: str
    dtype: str
    vocab_size: int
    label_names: list[str]
    label_counts: list[int]
    num_examples: int
    num_tokens: int
    truncated_texts: int
    empty_texts: int
    bad_rows: int
    content: str
    sources: list[SourceEntry]
    tokenizer: TokenizerEntry
    index: FileEntry
    shards: list[FileEntry]
    multi_label: bool = False
    label_separator: str | None = None
    label_index: FileEntry | None = None
    is_pair: bool = False
    seconds: FileEntry | None = None

    @property
    def fingerprint(self) -> str:
        """Identifies what a model can see: tokens, labels and their order; not file names, nor what was left out."""
        return digest(
            {
                "version": FORMAT_VERSION,
                "content": self.content,
                "tokenizer": self.tokenizer.fingerprint,
                "label_names": self.label_names,
                "max_length": self.max_length,
                "truncation": self.truncation,
                "index": self.index.crc32,
                "shards": [[shard.rows, shard.tokens, shard.crc32] for shard in self.shards],
                **({"label_index": self.label_index.crc32} if self.label_index is not None else {}),
                **({"pairs": self.seconds.crc32 if self.seconds else None} if self.is_pair else {}),
            }
        )

    def to_json(self) -> bytes:
        content = {"format": FORMAT, "version": FORMAT_VERSION, "fingerprint": self.fingerprint, **asdict(self)}
        if not self.is_pair:
            del content["is_pair"], content["seconds"]
        return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """
        Raises:
            StoreError: there is no manifest, or it is damaged or of another version.
        """
        path = folder / MANIFEST_NAME
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            if not folder.exists():
                raise StoreError(f"{folder}: no such store") from None
            raise StoreError(f"{folder}: not a store: it has no {MANIFEST_NAME}; prepare it first, or again") from None
        except NotADirectoryError:
            raise StoreError(
                f"{folder}: not a store, a store is a folder; make one from this file first: "
                f"penstock prepare {folder} --out STORE --tokenizer NAME"
            ) from None
        except (ValueError, OSError) as error:
            raise StoreError(f"{path}: cannot be read: {error}") from None
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise StoreError(f"{path}: not the manifest of a store")
        version = content.pop("version", None)
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{path}: a store of format {version}, this penstock reads {FORMAT_VERSION}; prepare it again"
            )
        fingerprint = content.pop("fingerprint", None)
        try:
            content["sources"] = [SourceEntry(**entry) for entry in content["sources"]]
            content["shards"] = [FileEntry(**entry) for entry in content["shards"]]
            content["index"] = FileEntry(**content["index"])
            content["tokenizer"] = TokenizerEntry(**content["tokenizer"])
            for name in ("multi_label", "label_separator", "label_index", "is_pair", "seconds"):
                content.setdefault(name, _DEFAULTS[name])
            for name in ("label_index", "seconds"):
                if content[name] is not None:
                    content[name] = FileEntry(**content[name])
            manifest = cls(**{field.name: content[field.name] for field in fields(cls)})
            matches = manifest.fingerprint == fingerprint
        except (KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: damaged: {error}") from None
        if not matches:
            raise StoreError(f"{path}: damaged: its fingerprint does not fit its content; prepare the store again")
        return manifest


_DEFAULTS = {field.name: field.default for field in fields(Manifest)}
