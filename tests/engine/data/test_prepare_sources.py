"""From which columns and files `prepare` reads: those of the store that it is like, none of its own, none twice."""

import csv
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from subtested import as_subtests

from penstock.engine.data.prepare import prepare, prepare_part
from penstock.engine.data.sources import open_sources
from penstock.engine.data.sources.alike import Columns, open_alike
from penstock.engine.errors import SourceError


def write_table(path: Path, **columns: list) -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return str(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TABLE = {
    "review": ["a film", "a plot", "an end"],
    "verdict": ["good", "bad", "good"],
    "text": ["the", "other", "column"],
    "label": ["bad", "bad", "good"],
}
# (columns of the source, options, the columns read, what is said to be missing)
LIKE_COLUMNS = [
    (list(TABLE), {}, ("review", "verdict"), []),
    (list(TABLE), {"text": "text"}, ("text", "verdict"), []),
    (list(TABLE), {"label": "label"}, ("review", "label"), []),
    (list(TABLE), {"unlabelled": True}, ("review", ""), []),
    (["review", "text", "label"], {}, ("review", "label"), ["verdict"]),
    (["text", "verdict", "label"], {}, ("text", "verdict"), ["review"]),
    (["text", "label"], {}, ("text", "label"), ["review", "verdict"]),
    (["text", "label"], {"unlabelled": True}, ("text", ""), ["review"]),
]


@as_subtests("columns, options, read, missing", LIKE_COLUMNS)
def test_columns_are_those_of_the_other_store_or_said(
    tmp_path, tokenizer_path, capsys, columns, options, read, missing
):
    whole = write_table(tmp_path / "whole.csv", **TABLE)
    named = {"text": "review", "label": "verdict", "tokenizer": tokenizer_path}
    like = prepare(whole, tmp_path / "like", progress=False, **named)
    source = write_table(tmp_path / "new.csv", **{name: TABLE[name] for name in columns})
    made = prepare(source, tmp_path / "made", like=like.path, progress=False, **options)
    assert [(entry.text, entry.label) for entry in made.manifest.sources] == [read]
    said = capsys.readouterr().err
    assert re.findall(r"note: .*new\.csv: .* there is none called '(\w+)', as in .*like", said) == missing


@as_subtests(
    "names, values, said",
    [
        (["body", "topic", "text"], [[1, 2], ["x", "y"], ["a", "b"]], "column 'body' holds int64, not text"),
        (["body", "body", "topic", "text"], [["a", "b"]] * 4, "two columns are called 'body'"),
        (["body", "topic", "topic", "label"], [["a", "b"]] * 4, "two columns are called 'topic'"),
    ],
)
def test_a_column_that_is_there_and_cannot_be_read_is_an_error(tmp_path, names, values, said):
    """Another one is not read in its place."""
    table = pa.table([pa.array(column) for column in values], names=names)
    pq.write_table(table, tmp_path / "new.parquet")
    for given in (table, str(tmp_path / "new.parquet")):
        with pytest.raises(SourceError, match=said):
            open_alike(given, Columns("body", "topic", False, "training"))


def test_a_source_in_a_home_that_is_not_there():
    with pytest.raises(SourceError, match=r"^~nobody-here/x\.csv: no such file$"):
        open_sources("~nobody-here/x.csv")


@pytest.mark.parametrize("given", ["{folder}", "{folder}/**/*", "{folder}/*"])
def test_a_store_inside_its_own_source(tmp_path, tokenizer_path, monkeypatch, given):
    """Its files are never read as sources: not again, not on the way, not those beside it."""
    folder = tmp_path / "texts"
    folder.mkdir()
    write_table(folder / "a.csv", text=[f"film {i}" for i in range(20)], label=[i % 2 for i in range(20)])
    (folder / "bad.jsonl").write_text('{"text": "a film", "label": 1}\n{"text": 3, "label": 0}\n')
    out, sources = folder / "store", given.format(folder=folder)
    options = {"tokenizer": tokenizer_path, "rows_per_shard": 5, "progress": False, "bad_rows": "quarantine"}
    prepare_part(sources, out, (0, 2), **options)
    made = prepare(sources, out, **options)
    before = contents(out)
    assert [Path(source.name).name for source in made.manifest.sources] == ["a.csv", "bad.jsonl"]
    assert (folder / "store.bad-rows.jsonl").exists()
    prepare(sources, out, **options)
    assert contents(out) == before
    if "*/" in given or "*" not in given:
        with pytest.raises(SourceError, match=r"texts/store in it is a store, not a source: move it elsewhere"):
            prepare(sources, tmp_path / "other", **options)


def test_a_source_is_given_once(tmp_path, tokenizer_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "a.csv", text=["film", "plot"], label=[1, 2])
    (tmp_path / "link.csv").symlink_to("a.csv")
    again = ["a.csv", "./a.csv", str(tmp_path / "a.csv"), "link.csv", "*.csv"]
    cases = [["a.csv", other] for other in again] + [["synthetic:reviews?n=9", "synthetic:reviews?n=9"]]
    for sources in cases:
        with pytest.raises(SourceError, match=r"is given twice.*: its rows would count twice; leave one out"):
            prepare(sources, tmp_path / "out", tokenizer=tokenizer_path, progress=False)
    with pytest.raises(SourceError, match="an option is given twice"):
        prepare("synthetic:reviews?n=9&n=8", tmp_path / "out", tokenizer=tokenizer_path, progress=False)
    assert not (tmp_path / "out").exists()
