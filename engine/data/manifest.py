"""What a store's manifest says. It is written last: a folder without one is not a store."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from penstock.engine.checked import read_checked, with_checksum
from penstock.engine.errors import StoreError
from penstock.engine.records import check_range, read_record

FORMAT = "penstock-store"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.arrow"
LABELS_NAME = "labels.arrow"
SECONDS_NAME = "seconds.arrow"
CLUSTERS_NAME = "clusters.arrow"
TOKENIZER_NAME = "tokenizer"
MAX_VOCABULARY = 1 << 24  # ids of a tokenizer: tens of times the largest there is, and a table of them still fits

_INT32, _UINT32, _INT64 = (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1
_OF_A_MODEL = ("config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json")

Truncation = Literal["head", "tail", "head+tail"]

INDEX_SCHEMA = pa.schema([pa.field("length", pa.int32(), False), pa.field("label", pa.int64(), False)])
_LABEL_LIST = pa.large_list(pa.field("item", pa.int32(), False))
LABELS_SCHEMA = pa.schema([pa.field("labels", _LABEL_LIST, False)])

SECONDS_SCHEMA = pa.schema([pa.field("second", pa.int32(), False)])


CLUSTERS_FORMAT = 2  # of `ClusterEntry`: 1 had other keys for 17.0 in a csv than for 17


def clusters_schema(column: str, preparation: str) -> pa.Schema:
    """The clusters' file has a key for each row, see `clusters.ClusterKeys`; the metadata says whose it is."""
    metadata = {"penstock.clusters": "1", "penstock.column": column, "penstock.preparation": preparation}
    return pa.schema([pa.field("cluster", pa.int64(), False)], metadata=metadata)


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
class ClusterEntry:
    """Which rows belong together: those with the same value in `column` of the sources, in `count` clusters. Keys of
    another `format` say nothing of another store's rows."""

    column: str
    count: int
    file: FileEntry
    format: int = 1


@dataclass(frozen=True)
class Manifest:
    """All that is known of a store besides its tokens.

    Those with a default are not in older stores. `multi_label`: a row has a list of labels, all of which `label_index`
    holds, and `label_counts` counts the rows that have each; `label_separator` stood between them in the sources.
    `is_pair`: a row has two texts; `seconds` is there where its tokens have types. `clusters`: see `ClusterEntry`; no
    model sees them, so they are not part of the fingerprint.
    """

    preparation: str
    max_length: int
    truncation: Truncation
    dtype: Literal["uint16", "uint32"]
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
    clusters: ClusterEntry | None = None

    @property
    def is_labelled(self) -> bool:
        """Rows without labels have -1 as their label, and there are no names."""
        return bool(self.label_names)

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
        if self.clusters is None:
            del content["clusters"]
        return json.dumps(with_checksum(content), indent=2, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """
        Raises:
            StoreError: there is no manifest, or it is damaged or of another version.
        """
        path = folder / MANIFEST_NAME
        try:
            content = read_checked(path)
        except FileNotFoundError:
            if not folder.exists():
                raise StoreError(f"{folder}: no such store") from None
            raise StoreError(f"{folder}: not a store: it has no {MANIFEST_NAME}; prepare it first, or again") from None
        except NotADirectoryError:
            raise StoreError(
                f"{folder}: not a store, a store is a folder; make one from this file first: "
                f"penstock prepare {folder} --out STORE --tokenizer NAME, or --like TRAINING_STORE for a test set"
            ) from None
        except (ValueError, OSError) as error:
            raise StoreError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise StoreError(f"{path}: not the manifest of a store")
        version = content.pop("version", None)
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{path}: a store of format {version}, this penstock reads {FORMAT_VERSION}; prepare it again"
            )
        fingerprint = content.pop("fingerprint", None)
        try:
            manifest = read_record(cls, content)
            check_manifest(manifest)
        except ValueError as error:
            raise StoreError(f"{path}: damaged: {error}; prepare the store again") from None
        if manifest.fingerprint != fingerprint:
            raise StoreError(f"{path}: damaged: its fingerprint does not fit its content; prepare the store again")
        return manifest


def check_manifest(manifest: Manifest) -> None:
    """Whatever of a manifest is used as a size, an index or a name of a file is one. Files are named as `prepare` names
    them, so that none lies outside of the store.

    Raises:
        ValueError: it says what is wrong.
    """
    rows, tokens, labels = manifest.num_examples, manifest.num_tokens, len(manifest.label_names)
    check_range("max_length", manifest.max_length, 1, _INT32)
    check_range("vocab_size", manifest.vocab_size, 1, MAX_VOCABULARY)
    if manifest.vocab_size - 1 > np.iinfo(manifest.dtype).max:
        raise ValueError(f"vocab_size is {manifest.vocab_size:,}, which dtype {manifest.dtype} cannot hold")
    if len(set(manifest.label_names)) != labels:
        raise ValueError("label_names has a label twice")
    if len(manifest.label_counts) != labels:
        raise ValueError(f"label_counts counts {len(manifest.label_counts)} labels of {labels}")
    for index, count in enumerate(manifest.label_counts):
        check_range(f"label_counts[{index}]", count, 0, rows)
    for name in ("truncated_texts", "empty_texts"):
        check_range(name, getattr(manifest, name), 0, rows)
    for index, source in enumerate(manifest.sources):
        check_range(f"sources[{index}].rows", source.rows, 0, rows)
        check_range(f"sources[{index}].bad_rows", source.bad_rows, 0, manifest.bad_rows)
    _check_files(manifest, rows, tokens)
    sums = (
        ("num_examples", rows, sum(shard.rows for shard in manifest.shards), "shards"),
        ("num_examples", rows, sum(source.rows for source in manifest.sources), "sources"),
        ("num_tokens", tokens, sum(shard.tokens for shard in manifest.shards), "shards"),
        ("bad_rows", manifest.bad_rows, sum(source.bad_rows for source in manifest.sources), "sources"),
    )
    for name, whole, parts, what in sums:
        if whole != parts:
            raise ValueError(f"{name} is {whole:,}, its {what} add up to {parts:,}")
    if not manifest.is_labelled and manifest.multi_label:
        raise ValueError("it has lists of labels, and label_names is empty")
    if manifest.is_labelled and not manifest.multi_label and sum(manifest.label_counts) != rows:
        raise ValueError(f"label_counts add up to {sum(manifest.label_counts):,} of {rows:,} rows")


def _check_files(manifest: Manifest, rows: int, tokens: int) -> None:
    if manifest.multi_label != (manifest.label_index is not None):
        raise ValueError("multi_label and label_index do not go together")
    if manifest.seconds is not None and not manifest.is_pair:
        raise ValueError("is_pair and seconds do not go together")
    shards = [(f"shards[{number}]", shard, shard_name(number)) for number, shard in enumerate(manifest.shards)]
    whole: list[tuple[str, FileEntry | None, str]] = [
        ("index", manifest.index, INDEX_NAME),
        ("label_index", manifest.label_index, LABELS_NAME),
        ("seconds", manifest.seconds, SECONDS_NAME),
    ]
    if manifest.clusters is not None:
        whole.append(("clusters.file", manifest.clusters.file, CLUSTERS_NAME))
        check_range("clusters.count", manifest.clusters.count, 2, rows)
    for where, entry, name in [*whole, *shards]:
        if entry is None:
            continue
        if entry.name != name:
            raise ValueError(f"{where}.name is {entry.name!r}, not {name!r}")
        check_range(f"{where}.bytes", entry.bytes, 0, _INT64)
        check_range(f"{where}.crc32", entry.crc32, 0, _UINT32)
        # of each row and token something stands in the file
        check_range(f"{where}.rows", entry.rows, 0, entry.bytes)
        check_range(f"{where}.tokens", entry.tokens, 0, _INT64 if where in ("index", "seconds") else entry.bytes)
    for where, entry, _ in whole:
        if entry is not None and entry.rows != rows:
            raise ValueError(f"{where}.rows is {entry.rows:,}, num_examples {rows:,}")
    if manifest.index.tokens != tokens:
        raise ValueError(f"index.tokens is {manifest.index.tokens:,}, num_tokens {tokens:,}")
    if "tokenizer.json" not in manifest.tokenizer.files:
        raise ValueError("tokenizer.files names no tokenizer.json")
    for name, crc32 in manifest.tokenizer.files.items():
        if not is_tokenizer_file(name):
            raise ValueError(f"tokenizer.files names {name!r}, which is no file of a tokenizer")
        check_range(f"tokenizer.files.{name}", crc32, 0, _UINT32)


def is_tokenizer_file(name: str) -> bool:
    """A plain name of a tokenizer's file. They are copied beside a model's own, which none may replace."""
    plain = PurePosixPath(name).name == name and "\\" not in name and not name.startswith(".")
    return plain and name.endswith((".json", ".txt", ".model", ".jinja")) and name not in _OF_A_MODEL
