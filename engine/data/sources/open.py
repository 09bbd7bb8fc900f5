"""From what the user writes to a source."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa

from penstock.engine.data.sources.base import BATCH_ROWS, RawRows, Source
from penstock.engine.data.sources.columnar import ArrowSource, HubSource, ParquetSource
from penstock.engine.data.sources.text import COMPRESSIONS, CsvSource, JsonLinesSource, LinesSource
from penstock.engine.errors import SourceError

FORMS = (
    "csv, tsv, jsonl, txt (also .gz and .zst), parquet, arrow, hf:name[:config][:split], "
    "synthetic:reviews?n=4000&seed=0"
)


class SyntheticReviews(Source):
    """`synthetic:reviews?n=4000&seed=0`: generated English reviews."""

    def __init__(self, name: str, need_label: bool) -> None:
        super().__init__(name)
        parts = urlsplit(name)
        if parts.path != "reviews":
            raise SourceError(f"{name}: only synthetic:reviews?n=N&seed=S is known")
        options = {"n": "4000", "seed": "0"}
        given = dict(parse_qsl(parts.query, keep_blank_values=True))
        if not given.keys() <= options.keys() or not all(value.isdecimal() for value in given.values()):
            raise SourceError(f"{name}: expected synthetic:reviews?n=N&seed=S with whole numbers")
        options |= given
        self._n, self._seed = int(options["n"]), int(options["seed"])
        if self._n == 0:
            raise SourceError(f"{name}: n must be 1 at least")
        self.label = "label" if need_label else None

    def read(self) -> Iterator[RawRows]:
        from penstock.engine.data.reviews import generate_reviews

        position = 1
        reviews = iter(generate_reviews(self._n, self._seed))
        while batch := list(islice(reviews, BATCH_ROWS)):
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


def open_source(name: str, *, text: str | None = None, label: str | None = None, need_label: bool = True) -> Source:
    """Opens one source and settles its columns.

    Args:
        name: a file's path, by whose endings its form is known, or `hf:...`, or `synthetic:...`.
        text, label: column names; without them the usual ones are looked for (text and label, Yelp's, Amazon's).
        need_label: False for texts to be classified.

    Raises:
        SourceError: it is not there, of no known form, empty, or without such columns.
    """
    if name.startswith("hf:"):
        return HubSource(name, text, label, need_label)
    if name.startswith("synthetic:"):
        return SyntheticReviews(name, need_label)
    path = Path(name).expanduser()
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in COMPRESSIONS:
        endings.pop()
    form = endings[-1] if endings else ""
    if path.is_dir():
        raise SourceError(f"{name}: a folder; name the files in it, or hf:{name} if it holds a data set")
    if form not in (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow"):
        raise SourceError(f"{name}: unknown form; known are {FORMS}")
    if not path.is_file():
        raise SourceError(f"{name}: no such file")
    if path.stat().st_size == 0:
        raise SourceError(f"{name}: empty")
    if form == ".txt":
        return LinesSource(name, path, text, label, need_label)
    if form in (".csv", ".tsv"):
        return CsvSource(name, path, "," if form == ".csv" else "\t", text, label, need_label)
    if form in (".jsonl", ".ndjson", ".json"):
        return JsonLinesSource(name, path, text, label, need_label)
    if form == ".parquet":
        return ParquetSource(name, path, text, label, need_label)
    return ArrowSource(name, path, text, label, need_label)


def open_sources(
    names: Sequence[str], *, text: str | None = None, label: str | None = None, need_label: bool = True
) -> list[Source]:
    """Opens several sources, read one after the other as one."""
    return [open_source(name, text=text, label=label, need_label=need_label) for name in names]
