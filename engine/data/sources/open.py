"""From what the user writes to a source."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa

from penstock.engine.data.sources.base import BATCH_ROWS, PLAIN_READING, RawRows, Reading, Source
from penstock.engine.data.sources.columnar import ArrowSource, DataSetSource, HubSource, ParquetSource, TableSource
from penstock.engine.data.sources.memory import MemorySource
from penstock.engine.data.sources.text import COMPRESSIONS, CsvSource, JsonLinesSource, LinesSource
from penstock.engine.errors import ConfigError, SourceError, first_line

FORMS = (
    "csv, tsv, jsonl, ndjson, json, txt (also .gz and .zst), parquet, arrow, hf:name[:config][:split], "
    "synthetic:reviews?n=4000&seed=0, synthetic:titles?n=4000&seed=0&classes=2500"
)


# kind -> (options and their defaults, module, function)
_SYNTHETIC: dict[str, tuple[dict[str, int], str, str]] = {
    "reviews": ({"n": 4000, "seed": 0}, "penstock.engine.data.reviews", "generate_reviews"),
    "titles": ({"n": 4000, "seed": 0, "classes": 2500}, "penstock.engine.data.titles", "generate_titles"),
}


def _form_of_synthetic(kind: str) -> str:
    return f"synthetic:{kind}?" + "&".join(f"{key}={key[0].upper()}" for key in _SYNTHETIC[kind][0])


_FORMS_OF_SYNTHETIC = [_form_of_synthetic(kind) for kind in _SYNTHETIC]


class SyntheticSource(Source):
    """What is made, not read: `synthetic:reviews?n=4000&seed=0`, English reviews with stars, or
    `synthetic:titles?n=4000&seed=0&classes=2500`, short texts in many classes."""

    named_columns = False

    def __init__(self, name: str, need_label: bool) -> None:
        super().__init__(name)
        parts = urlsplit(name)
        if parts.path not in _SYNTHETIC:
            raise SourceError(f"{name}: only {' and '.join(_FORMS_OF_SYNTHETIC)} are known")
        defaults, self._module, self._generate = _SYNTHETIC[parts.path]
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        given = dict(pairs)
        if len(given) < len(pairs):
            raise SourceError(f"{name}: an option is given twice; leave one out")
        if not given.keys() <= defaults.keys() or not all(value.isdecimal() for value in given.values()):
            raise SourceError(f"{name}: expected {_form_of_synthetic(parts.path)} with whole numbers")
        self._options = defaults | {key: int(value) for key, value in given.items()}
        for key in self._options.keys() - {"seed"}:
            if self._options[key] == 0:
                raise SourceError(f"{name}: {key} must be 1 at least")
        self.label = "label" if need_label else None

    def read(self) -> Iterator[RawRows]:
        generate = getattr(import_module(self._module), self._generate)
        position, rows = 1, iter(generate(**self._options))
        while batch := list(islice(rows, BATCH_ROWS)):
            texts, labels = zip(*batch, strict=True)
            positions = range(position, position + len(texts))
            yield RawRows(list(texts), list(labels), positions, carried=self._carry_from(batch))
            position += len(texts)

    def carried_schema(self) -> pa.Schema:
        types = {"text": pa.string(), "label": pa.int64()}
        return pa.schema([(name, types[name]) for name in self._carried])

    def _carry_from(self, batch: Sequence[tuple[str, int]]) -> list[list[str | int]] | None:
        if not self.carries:
            return None
        places = [self.columns.index(name) for name in self._carried]
        return [[row[place] for place in places] for row in batch]


def open_source(
    given: Any,
    *,
    text: str | None = None,
    label: str | None = None,
    need_label: bool = True,
    reading: Reading = PLAIN_READING,
) -> Source:
    """Opens one source and settles its columns.

    Args:
        given: a file's path, by whose endings its form is known, or `hf:...`, or `synthetic:...`; a folder or a pattern
            with one file; a list of texts or of (text, label); a `pyarrow.Table`, a frame of pandas or polars,
            a `datasets.Dataset`; a `Source`.
        text, label: column names; without them the usual ones are looked for (text and label, Yelp's, Amazon's). For
            several columns of text, see `text_columns`.
        need_label: False for texts to be classified.
        reading: separator and encoding of files of text; separator of the labels in a text.

    Raises:
        SourceError: it is not there, of no known form, empty, or without such columns.

    Example:
        >>> from penstock.engine import open_source
        >>> source = open_source("synthetic:reviews?n=3&seed=1")
        >>> source.columns, [label for rows in source.rows() for label in rows.labels]
        (['text', 'label'], ['1', '3', '5'])
    """
    if not isinstance(given, str | os.PathLike):
        return _splitting(_open_object(given, text, label, need_label), reading)
    files = expand(os.fspath(given))
    if len(files) > 1:
        raise SourceError(f"{given}: {len(files):,} files ({files[0]}, {files[1]}, ...) where one source is expected")
    return _splitting(_open_named(files[0], text, label, need_label, reading), reading)


def open_sources(
    given: Any,
    *,
    text: str | None = None,
    label: str | None = None,
    need_label: bool = True,
    reading: Reading = PLAIN_READING,
    out: Path | None = None,
) -> list[Source]:
    """Opens several sources, read one after the other as one.

    Args:
        given: one of what `open_source` takes, or a list of them; of folders and patterns all files, sorted. A list of
            strings names sources; texts come as `MemorySource` or as (text, label).
        out: the folder of the store that is made of them, whose own files are none of them.

    Raises:
        SourceError: as `open_source`; or two sources have their texts, or their labels, in columns of different names.
    """
    many = isinstance(given, list | tuple) and not _are_pairs(given)
    sources: list[Source] = []
    for one in given if many else [given]:
        if isinstance(one, str | os.PathLike):
            sources += [_open_named(name, text, label, need_label, reading) for name in expand(os.fspath(one), out)]
        else:
            sources.append(_open_object(one, text, label, need_label))
    for source in sources:
        _splitting(source, reading)
    if not sources:
        raise SourceError("no source: name one at least")
    named = [source for source in sources if source.named_columns]
    lists = [source for source in sources if source.multi_label]
    if need_label and lists and len(lists) < len(sources):
        other = next(source for source in sources if not source.multi_label)
        raise SourceError(
            f"{lists[0].name} has lists of labels, {other.name} a single label for each row: one store takes either"
        )
    for source in sources[1:]:
        if source.is_pair != sources[0].is_pair:
            pair, single = (source, sources[0]) if source.is_pair else (sources[0], source)
            raise SourceError(f"{pair.name}: has pairs of texts, {single.name} single ones: they cannot be mixed")
    for source in named[1:]:
        for option, here, there in (
            ("--text", source.text, named[0].text),
            ("--label", source.label, named[0].label),
        ):
            if here != there:
                raise SourceError(
                    f"{source.name}: its column would be {here!r}, that of {named[0].name} {there!r}: "
                    f"say with {option} which one to read in all of them"
                )
    return sources


def check_once(sources: Sequence[Source]) -> None:
    """
    Raises:
        SourceError: two are the same file or the same name, so that its rows would count twice.
    """
    seen: dict[str, str] = {}
    for source in sources:
        key = str(source.path.resolve()) if source.path is not None else source.name
        if key in seen and source.resumable:
            also = f", also as {source.name}" if source.name != seen[key] else ""
            raise SourceError(f"{seen[key]} is given twice{also}: its rows would count twice; leave one out")
        seen[key] = source.name


def expand(name: str, out: Path | None = None) -> list[str]:
    """The sources that a name stands for: the files of a folder or of a pattern, sorted; otherwise itself.

    Hidden files, and those that begin with "_" (as `_SUCCESS`), are passed over, and so are folders of that kind.

    Args:
        out: as `open_sources` takes it.

    Raises:
        SourceError: there is none, or a folder holds a file of unknown form, or a store's.
    """
    if name.startswith(SCHEMES):
        return [name]
    if not name:  # which would be the current folder
        raise SourceError("'': no such file: the name of a source is empty")
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        if any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json", "dataset_info.json")):
            raise SourceError(f"{name}: a data set of the hub's library: name it as hf:{name}")
        if any((path / mark).is_file() for mark in ("manifest.json", "preparing.json")):
            raise SourceError(f"{name}: a store, not a source")
        found = [file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
        found = _without_stores(name, found, out)
        if not found:
            raise SourceError(f"{name}: no file in this folder")
        unknown = sorted(str(file) for file in found if form_of(file) not in FORMS_BY_ENDING)
        if unknown:
            raise SourceError(
                f"{unknown[0]}: unknown form; known are {FORMS}. To leave out other files, name a pattern: "
                f"'{name.rstrip('/')}/*.csv'"
            )
    elif glob.has_magic(name) and not path.exists():
        matches = [Path(match) for match in glob.iglob(str(path), recursive=True)]
        found = _without_stores(name, [file for file in matches if file.is_file()], out)
        if not found:
            raise SourceError(f"{name}: no file matches this pattern")
    else:
        return [name]
    return sorted(map(str, found))


def _without_stores(name: str, files: Sequence[Path], out: Path | None) -> list[Path]:
    """The files but those that `prepare` writes for its store in `out`.

    Raises:
        SourceError: there are files of another store.
    """
    own = None if out is None else out.resolve()
    found = []
    for file in files:
        whole = file.resolve()
        if own is not None and (own in whole.parents or whole == own.with_name(f"{own.name}{BAD_ROWS}")):
            continue
        for folder in (file.parent, file.parent.parent):  # a store has one folder in it
            if (folder / "preparing.json").is_file() or (
                (folder / "manifest.json").is_file() and (folder / "index.arrow").is_file()
            ):
                raise SourceError(
                    f"{name}: {folder} in it is a store, not a source: move it elsewhere, or name a pattern that "
                    "leaves it out"
                )
        found.append(file)
    return found


BAD_ROWS = ".bad-rows.jsonl"  # what follows a store's name in that of the file beside it
SCHEMES = ("hf:", "synthetic:", "memory:")
FORMS_BY_ENDING = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".txt")


def form_of(path: Path) -> str:
    """The ending that says a file's form, without that of its compression."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in COMPRESSIONS:
        endings.pop()
    return endings[-1] if endings else ""


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _open_named(name: str, text: str | None, label: str | None, need_label: bool, reading: Reading) -> Source:
    if name.startswith("hf:"):
        return HubSource(name, text, label, need_label)
    if name.startswith("synthetic:"):
        return SyntheticSource(name, need_label)
    if name.startswith("memory:"):
        raise SourceError(f"{name}: was in the memory of the process that began; write it to a file to share the work")
    path = Path(os.path.expanduser(name))
    form = form_of(path)
    if not path.exists():
        raise SourceError(f"{name}: no such file{'' if form in FORMS_BY_ENDING else ' or folder'}")
    if not path.is_file():
        raise SourceError(f"{name}: a pipe or device, and sources are read more than once: write it to a file first")
    if form not in FORMS_BY_ENDING:
        raise SourceError(f"{name}: unknown form; known are {FORMS}")
    if path.stat().st_size == 0:
        raise SourceError(f"{name}: empty")
    if form == ".txt":
        return LinesSource(name, path, text, label, need_label, reading)
    if form in (".csv", ".tsv"):
        return CsvSource(name, path, "," if form == ".csv" else "\t", text, label, need_label, reading)
    if form in (".jsonl", ".ndjson", ".json"):
        return JsonLinesSource(name, path, text, label, need_label, reading)
    if form == ".parquet":
        return ParquetSource(name, path, text, label, need_label)
    return ArrowSource(name, path, text, label, need_label)


def check_splits(sources: Sequence[Source], separator: str | None) -> None:
    """
    Raises:
        ConfigError: a separator of labels was asked for, and there is nothing to take apart.
    """
    if separator is not None and all(source.holds_lists for source in sources):
        lists = sources[0]
        raise ConfigError(
            f"--label-separator {separator!r} has no effect: column {lists.label!r} of {lists.name} holds lists "
            "already: leave it out"
        )


def _splitting(source: Source, reading: Reading) -> Source:
    source.split_labels(reading.label_separator)
    return source


def _are_pairs(given: Any) -> bool:
    return bool(given) and all(isinstance(one, list | tuple) and len(one) == 2 for one in given)


def _as_table(frame: Any) -> pa.Table:
    try:
        return pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SourceError(f"{type(frame).__name__}: Arrow cannot take it: {first_line(error)}") from None


def _open_object(given: Any, text: str | None, label: str | None, need_label: bool) -> Source:
    if isinstance(given, Source):
        if need_label and given.label is None:
            raise SourceError(f"{given.name}: has no labels")
        return given
    if isinstance(given, pa.RecordBatch):
        given = pa.Table.from_batches([given])
    if isinstance(given, pa.Table):
        source: Source = TableSource("memory:table", given, text, label, need_label)
    elif hasattr(given, "features") and hasattr(given, "select_columns") and hasattr(given, "num_rows"):
        source = DataSetSource("memory:dataset", given, text, label, need_label)
    elif hasattr(given, "__arrow_c_stream__"):  # frames of pandas and polars
        source = TableSource("memory:frame", _as_table(given), text, label, need_label)
    elif isinstance(given, Mapping):
        raise SourceError(f"{type(given).__name__} is no source: give one of its parts, as in data['train']")
    elif isinstance(given, list | tuple) and _are_pairs(given):
        source = MemorySource.of_pairs(given)
        source.label = "label" if need_label else None
    elif isinstance(given, list | tuple) and not need_label:
        source = MemorySource(given)
    elif isinstance(given, list | tuple):
        raise SourceError("a list without labels: give a list of (text, label)")
    else:
        raise SourceError(f"{type(given).__name__} is no source; known are names of files, lists of (text, label), "
                          "pyarrow tables, frames and data sets")  # fmt: skip
    source.resumable = False
    return source
