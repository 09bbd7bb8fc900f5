"""Separators, encodings, folders and records of different columns: found, or said in one line."""

import codecs
import itertools
import json

import pytest
from subtested import as_subtests

from penstock.engine.data.prepare import prepare
from penstock.engine.data.sources import Reading, open_source, open_sources
from penstock.engine.errors import ConfigError, SourceError

TEXTS = ['quoted; "so", it | is', "zwei\nZeilen", "Größe", "tab\there"]


def csv_bytes(separator: str, encoding: str = "utf-8") -> bytes:
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    lines = [separator.join(["id", "text", "label"])]
    lines += [separator.join([str(i), text, str(i % 2)]) for i, text in enumerate(quoted)]
    return ("\n".join(lines) + "\n").encode(encoding)


def texts_of(source) -> list[str]:
    assert not any(rows.bad for rows in source.rows())
    return [text for rows in source.rows() for text in rows.texts]


@as_subtests(
    "ending, separator, encoding",
    itertools.product(["csv", "tsv"], [",", ";", "\t", "|"], ["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_separator_and_mark_are_found(tmp_path, ending, separator, encoding):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(csv_bytes(separator, encoding))
    assert texts_of(open_source(str(path))) == TEXTS
    assert texts_of(open_source(str(path), text="text", label="id")) == TEXTS


@as_subtests("encoding", ["cp1252", "utf-16-be", "utf-16-le", "cp437"])
def test_encoding_can_be_given(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes(csv_bytes("^", encoding))
    lines = "".join(json.dumps({"text": text, "label": 1}, ensure_ascii=False) + "\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_bytes(lines.encode(encoding))
    for name in ("a.csv", "a.jsonl"):
        assert texts_of(open_source(str(tmp_path / name), reading=Reading("^", encoding))) == TEXTS


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF8])
def test_marks_of_json_lines(tmp_path, mark):
    encoding = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}.get(mark, "utf-8")
    (tmp_path / "a.jsonl").write_bytes(mark + '{"text": "Größe", "label": 1}\n'.encode(encoding))
    assert texts_of(open_source(str(tmp_path / "a.jsonl"))) == ["Größe"]


@pytest.mark.parametrize("bad_rows", ["fail", "quarantine"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_other_encoding_is_not_set_aside(tmp_path, tokenizer_path, bad_rows, form):
    lines = (
        '{"text": "Größe", "label": 1}\n{"text": "b", "label": 0}\n'
        if form == "jsonl"
        else "text,label\nGröße,1\nb,0\n"
    )
    (tmp_path / f"a.{form}").write_bytes(lines.encode("cp1252"))
    with pytest.raises(SourceError, match="--encoding cp1252") as caught:
        prepare(
            str(tmp_path / f"a.{form}"), tmp_path / "s", tokenizer=tokenizer_path, bad_rows=bad_rows, progress=False
        )
    assert "quarantine" not in str(caught.value)


@as_subtests("reading", [{"separator": "ab"}, {"separator": '"'}, {"encoding": "klingon"}, {"encoding": "hex"}])
def test_wrong_reading(reading):
    with pytest.raises(ConfigError, match="--"):
        Reading(**reading)


FIRST = ['{"text": "a"}', "{}", '{"label": 1}', "null", "[1, 2]", "5", '{"id": 3}', '{"text": null, "label": null}']
FIRST += ['{"text": "a", "text": "b", "label": 1}']


@as_subtests("first, count", itertools.product(FIRST, [1, 1200]))
def test_first_records_without_the_columns(tmp_path, first, count):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{first}\n" * count + '{"label": 1, "text": "b"}\n')
    if count > 1000 and first in ("null", "[1, 2]", "5"):
        with pytest.raises(SourceError, match=r"no JSON object|a JSON array"):
            open_source(str(path))
        return
    rows = list(open_source(str(path)).rows())
    assert [text for part in rows for text in part.texts] == ["b"]
    assert sum(len(part.bad) for part in rows) == count


def test_columns_of_the_same_name(tmp_path):
    (tmp_path / "a.csv").write_text("text,text,label\na,b,1\n")
    with pytest.raises(SourceError, match="two columns are called 'text'"):
        open_source(str(tmp_path / "a.csv"))


def test_folders_and_patterns(tmp_path):
    (tmp_path / "d" / "sub").mkdir(parents=True)
    for name in ("b.csv", "a.csv", "sub/c.csv", ".hidden.csv", "_SUCCESS"):
        (tmp_path / "d" / name).write_text(f"text,label\n{name},1\n")
    for given, count in ((f"{tmp_path}/d", 3), (f"{tmp_path}/d/*.csv", 2), (f"{tmp_path}/d/**/*.csv", 3)):
        sources = open_sources(given)
        assert len(sources) == count
        assert [source.name for source in sources] == sorted(source.name for source in sources)
    with pytest.raises(SourceError, match="no file matches"):
        open_sources(f"{tmp_path}/d/*.parquet")
    (tmp_path / "d" / "README.md").write_text("x")
    with pytest.raises(SourceError, match=r"README.md: unknown form"):
        open_sources(f"{tmp_path}/d")


def test_out_is_the_current_folder(tmp_path, tokenizer_path, monkeypatch):
    (tmp_path / "a.csv").write_text("text,label\na,1\nb,\nc,0\n")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    prepare("../a.csv", ".", tokenizer=tokenizer_path, bad_rows="quarantine", progress=False)
    assert (tmp_path / "out.bad-rows.jsonl").is_file()


@as_subtests(
    "separator, first, encoding",
    itertools.product([",", ";", "\t", "|", "^"], ["sep={}", '"sep={}"', "SEP={}"], ["utf-8", "utf-8-sig", "utf-16"]),
)
def test_a_first_line_names_the_separator(tmp_path, separator, first, encoding):
    end = "\n" if encoding == "utf-8" else "\r\n"
    body = csv_bytes(separator).decode()
    (tmp_path / "a.csv").write_bytes((first.format(separator) + end + body).encode(encoding))
    source = open_source(str(tmp_path / "a.csv"))
    assert texts_of(source) == TEXTS
    assert source.columns == ["id", "text", "label"]
    assert [place for rows in source.rows() for place in rows.positions] == [3, 4, 6, 7]


def test_what_only_looks_like_the_name_of_a_separator(tmp_path):
    (tmp_path / "a.csv").write_text("sep=x,text,label\n1,a,b\n")
    assert open_source(str(tmp_path / "a.csv")).columns == ["sep=x", "text", "label"]
