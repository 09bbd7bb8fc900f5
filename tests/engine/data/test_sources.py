"""Every form that texts come in gives the same rows, with their places."""

import csv
import gzip
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from subtested import as_subtests

from penstock.engine.data.sources import Reading, Rows, open_source
from penstock.engine.data.sources.labels import list_items, merged_spellings, notices, sort_labels, spelling
from penstock.engine.data.titles import _own_words, _word
from penstock.engine.errors import SourceError

TEXTS = ["plain", "", "two\nlines", 'quotes " and, commas', "tab\there", "Ünïcode 電影 🎬", " blanks "]
LABELS = [0, 1, 2, 10, 0, 1, 2]
NAMES = ["0", "1", "2", "10", "0", "1", "2"]


def read(source) -> Rows:
    parts = list(source.rows())
    return Rows(
        [text for part in parts for text in part.texts],
        [label for part in parts for label in part.labels],
        [position for part in parts for position in part.positions],
        [bad for part in parts for bad in part.bad],
    )


def write(path: Path) -> None:
    name = path.name
    table = pa.table({"id": list(range(7)), "text": TEXTS, "label": LABELS})
    if ".parquet" in name:
        pq.write_table(table, path, row_group_size=3)
    elif name.endswith("stream.arrow"):
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    elif ".arrow" in name:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    else:
        plain = path.with_name("plain")
        with open(plain, "w", newline="") as file:
            if ".jsonl" in name:
                for text, label in zip(TEXTS, LABELS, strict=True):
                    file.write(json.dumps({"text": text, "label": label}) + "\n")
            else:
                writer = csv.writer(file, delimiter="\t" if ".tsv" in name else ",")
                writer.writerow(["id", "text", "label"])
                writer.writerows([i, text, label] for i, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True)))
        data = plain.read_bytes()
        if name.endswith(".gz"):
            data = gzip.compress(data[:40]) + gzip.compress(data[40:])  # gzip files may have several members
        elif name.endswith(".zst"):
            data = zstandard.compress(data[:40]) + zstandard.compress(data[40:])
        path.write_bytes(data)


FORMS = [
    "csv",
    "tsv",
    "jsonl",
    "csv.gz",
    "csv.zst",
    "tsv.gz",
    "jsonl.gz",
    "jsonl.zst",
    "parquet",
    "arrow",
    "stream.arrow",
]


@as_subtests("form", FORMS)
def test_forms(tmp_path, form):
    path = tmp_path / f"reviews.{form}"
    write(path)
    rows = read(open_source(str(path)))
    assert rows.texts == TEXTS
    assert rows.labels == NAMES
    assert rows.bad == []
    in_lines = [2, 3, 4, 6, 7, 8, 9] if form[:3] in ("csv", "tsv") else list(range(1, 8))
    assert list(rows.positions) == in_lines
    assert read(open_source(str(path))) == rows  # again, the same


def test_named_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("review,stars,text\nfine,5,other\npoor,1.0,other\n")
    rows = read(open_source(str(path), text="review", label="stars"))
    assert (rows.texts, rows.labels) == (["fine", "poor"], ["5", "1.0"])


YELP = {"review_id": "x", "user_id": "u", "business_id": "b", "stars": 4.0, "useful": 1, "text": "Nice\nplace"}
AMAZON_2018 = {
    "overall": 5.0,
    "verified": True,
    "reviewerID": "r",
    "asin": "a",
    "reviewText": "Works",
    "summary": "Good",
}
AMAZON_2023 = {"rating": 2.0, "title": "Meh", "text": "Broke", "asin": "a", "timestamp": 1588687728923}


@pytest.mark.parametrize(
    ("name", "record", "text", "label"),
    [
        ("yelp_academic_dataset_review.json", YELP, "Nice\nplace", "4.0"),
        ("Books_5.json.gz", AMAZON_2018, "Works", "5.0"),
        ("Books.jsonl.gz", AMAZON_2023, "Broke", "2.0"),
    ],
)
def test_published_dumps(tmp_path, name, record, text, label):
    data = (json.dumps(record) + "\n").encode() * 3
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    rows = read(open_source(str(tmp_path / name)))
    assert rows.texts == [text] * 3
    assert rows.labels == [label] * 3


def test_amazon_row_without_text_is_named(tmp_path):
    lines = [AMAZON_2018, {"overall": 5.0, "asin": "a"}, AMAZON_2018]
    (tmp_path / "a.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read(open_source(str(tmp_path / "a.json")))
    assert len(rows.texts) == 2
    assert [(bad.position, bad.reason) for bad in rows.bad] == [(2, "no field 'reviewText'")]


def test_hub_folder_with_class_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "dict")
    for name in (f"hf:{tmp_path}/saved", f"hf:{tmp_path}/dict:test"):
        rows = read(open_source(name))
        assert (rows.texts, rows.labels, list(rows.positions)) == (["a", "b"], ["pos", "neg"], [1, 2])
        assert [(bad.position, bad.reason) for bad in rows.bad] == [(3, "'label' is null")]


def test_hub_folder_of_files(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("text,label\na,x\nb,y\n")
    rows = read(open_source(f"hf:{tmp_path}/data"))
    assert (rows.texts, rows.labels) == (["a", "b"], ["x", "y"])


def test_synthetic_titles():
    rows = read(open_source("synthetic:titles?n=400&seed=3&classes=40"))
    assert len(rows.texts) == 400
    labels = [int(label) for label in rows.labels]
    assert set(labels) <= set(range(40))
    counts = [labels.count(label) for label in range(40)]
    assert counts[0] > 2 * counts[3] > 0, "the first classes are the frequent ones"
    assert read(open_source("synthetic:titles?n=50&seed=3&classes=40")).texts == rows.texts[:50]
    assert read(open_source("synthetic:titles?n=50&seed=4&classes=40")).texts != rows.texts[:50]
    words = {_word(number) for number in range(30_000)}
    assert len(words) == 30_000
    of_first = [text for text, label in zip(rows.texts, labels, strict=True) if label == 0]
    of_most_frequent = Counter(" ".join(of_first).split())
    assert sum(of_most_frequent[word] for word in _own_words(0)) > 0.15 * of_most_frequent.total()


def test_synthetic_reviews():
    rows = read(open_source("synthetic:reviews?n=50&seed=3"))
    assert len(rows.texts) == 50
    assert len(set(rows.labels)) > 1
    assert rows == read(open_source("synthetic:reviews?n=50&seed=3"))
    assert rows.texts != read(open_source("synthetic:reviews?n=50&seed=4")).texts


def test_dictionary_and_large_types(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", "b", "a"]).dictionary_encode(),
            "label": pa.array(["x", "y", "x"], pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rows = read(open_source(str(tmp_path / "a.parquet")))
    assert (rows.texts, rows.labels) == (["a", "b", "a"], ["x", "y", "x"])


@as_subtests(
    "label, name",
    [(5, "5"), (5.0, "5"), ("5", "5"), ("5.0", "5"), (" 5. ", "5"), ("-0.0", "0"), (4.5, "4.5"), ("007", "007"),
     ("pos ", "pos"), (True, "true"), (-1, "-1"), (np.int64(5), "5"), (np.float32(5), "5"), (np.bool_(True), "true"),
     (np.str_("pos"), "pos")],
)  # fmt: skip
def test_label_names(label, name):
    assert list(merged_spellings({spelling(label, "label"): 1})) == [name]


@as_subtests("label", [None, float("nan"), float("inf"), "", "  ", [1], {"a": 1}])
def test_no_label(label):
    with pytest.raises(ValueError, match="'stars'"):
        spelling(label, "stars")


@as_subtests("row", [[0, 1, 0], (1, 1), [True, False, False], [0.0, 1.0, 1.0], np.array([0, 0, 1]), np.zeros(4, bool)])
def test_a_row_of_a_matrix_is_no_list_of_labels(row):
    """As a MultiLabelBinarizer makes: every text would have the labels 0 and 1."""
    with pytest.raises(ValueError, match=r"'tags' has a 0 or 1 for each label, .* give the names"):
        list_items(row, "tags", None)


@as_subtests("row", [[0, 1], [1], [], ["0", "1", "0"], [0, 1, 2, 2], np.array([3, 4]), {0, 1}])
def test_numbers_may_be_labels(row):
    assert list_items(row, "tags", None) == list(row)


@as_subtests(
    "names, separator",
    [
        (["api", "auth", "api, auth", "auth,api"], ","),
        (["a", "b", "c", "a|b|c"], "|"),
        (["x;y", "x", "y"], ";"),
        (["a", "b", "a, c"], None),
        (["New York, NY", "Paris"], None),
        (["a,", "a"], None),
        (["1,5", "2,5"], None),
    ],
)
def test_labels_made_of_others_are_told(names, separator):
    lines = [line for line in notices("tags", merged_spellings(dict.fromkeys(names, 9))) if "made of other" in line]
    assert [line.split("--label-separator ")[1][1] for line in lines] == ([] if separator is None else [separator])


@as_subtests("frame", ["pandas", "polars"])
def test_frames_are_read(frame):
    library = pytest.importorskip(frame)
    texts, labels = ["a", "b", "c"], [2, 1, 2]
    given = library.DataFrame({"text": texts, "label": labels, "other": [None, 1.5, 2.5]})
    rows = read(open_source(given))
    assert (rows.texts, rows.labels) == (texts, ["2", "1", "2"])


def test_a_row_that_is_not_in_the_named_encoding_says_which_that_is(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        "text,label\n\u6620\u753b\u0081,1\nplain,2\n".encode("cp932", "ignore") + b"\x81\x8d,3\n"
    )
    rows = read(open_source(str(tmp_path / "a.csv"), reading=Reading(encoding="cp1252")))
    assert "'text' is not valid cp1252" in {bad.reason for bad in rows.bad}


def test_what_is_no_source_is_named():
    pandas = pytest.importorskip("pandas")
    for given, said in (
        ({"train": [], "test": []}, "dict is no source: give one of its parts"),
        (pandas.DataFrame({"text": ["a", 1], "label": [1, 2]}), "DataFrame: Arrow cannot take it: "),
    ):
        with pytest.raises(SourceError, match=said):
            open_source(given)


def test_label_order():
    assert sort_labels(["10", "9", "-1", "4.5"]) == ["-1", "4.5", "9", "10"]
    assert sort_labels(["b", "10", "9"]) == ["10", "9", "b"]


def bad_rows(path: Path) -> list[tuple[int, str]]:
    return [(bad.position, bad.reason) for bad in read(open_source(str(path))).bad]


def test_bad_jsonl_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "first", "label": 1}\n'
        b"\n"
        b'{"text": "caf\xe9", "label": 1}\n'
        b'{"text": "broken\n'
        b'{"text": null, "label": 1}\n'
        b'{"text": "no label"}\n'
        b'{"text": "null label", "label": null}\n'
        b'["a", "list"]\n'
        b'{"text": 5, "label": 1}\n'
        b'{"text": "half \\ud83d", "label": 1}\n'
        b'{"text": "list label", "label": [1]}\n'
        b'{"text": "last", "label": 2}'
    )
    rows = read(open_source(str(path)))
    assert rows.texts == ["first", "last"]
    assert list(rows.positions) == [1, 12]
    assert [(bad.position, bad.reason) for bad in rows.bad] == [
        (3, "not valid UTF-8 at byte 14"),
        (4, "broken JSON: Unterminated string starting at column 10"),
        (5, "'text' is null"),
        (6, "no field 'label'"),
        (7, "'label' is null"),
        (8, "not a JSON object"),
        (9, "'text' is a number, not a text"),
        (10, "'text' holds half a character"),
        (11, "'label' is a list, not a number or a string"),
    ]


def test_names_that_hold_half_a_character(tmp_path):
    """They are spelled out, as values are; two fields of one name would be one."""
    lines = [r'{"text": "a", "label": 1, "\ud800": 1}', r'{"text": "b", "label": 1, "\ud800": 1, "\\ud800": 2}']
    lines += [r'{"text": "c", "label": 1, "\ud83d\ude00": 1}', r'{"text": "d", "label": 1, "n": {"\ud800": 1}}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = open_source(str(tmp_path / "a.jsonl"))
    assert source.columns == ["text", "label", r"\ud800", "\U0001f600", "n"]
    assert read(source).texts == ["a", "c", "d"]
    assert bad_rows(tmp_path / "a.jsonl") == [(2, r"two fields are called '\\ud800'")]


def test_bad_csv_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"text,label\n"
        b"good,1\n"
        b"caf\xe9,1\n"
        b"too,many,fields\n"
        b"few\n"
        b"empty label,\n"
        b'"two\nlines",2\n'
        b'"stray" quote,1\n'
        b"\n"
        b"good,caf\xe9\n"
        b'fine,"2"\n'
        b'"never closed,1\n'
        b"swallowed,1\n"
    )
    rows = read(open_source(str(path)))
    assert rows.texts == ["good", "two\nlines", "fine"]
    assert list(rows.positions) == [2, 7, 12]
    assert [bad.position for bad in rows.bad] == [3, 4, 5, 6, 9, 11, 13]
    reasons = [bad.reason for bad in rows.bad]
    assert reasons[0] == "'text' is not valid UTF-8"
    assert reasons[1] == "3 fields where the header has 2"
    assert reasons[3] == "'label' is empty"
    assert "a quote that is not closed" in reasons[6]


def test_bad_parquet_rows(tmp_path):
    texts = pa.array([b"good", b"caf\xe9", None, b"last"]).cast(pa.binary())
    table = pa.table({"text": texts.view(pa.string()), "label": pa.array([1.0, 2.0, 1.0, None])})
    pq.write_table(table, tmp_path / "a.parquet")
    assert bad_rows(tmp_path / "a.parquet") == [
        (2, "'text' is not valid UTF-8"),
        (3, "'text' is null"),
        (4, "'label' is null"),
    ]


@as_subtests(
    "name, content, message",
    [
        ("a.csv", b"", "empty"),
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b"\n\n", "no line in it"),
        ("a.arrow", b"", "empty"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "empty"),
        ("a.parquet", b"PAR1 not really", "cannot be read"),
        ("a.arrow", b"ARROW1 not really", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a", "label": 1}\n' * 9999)[:-100], "cannot be read"),
        ("a.jsonl.gz", b"not gzip at all", "cannot be read"),
        ("a.jsonl.zst", zstandard.compress(json.dumps({"text": "a" * 99, "label": 1}).encode())[:-5], "cannot be read"),
        ("a.json", b'[{"text": "a", "label": 1}]', "a JSON array"),
        ("a.jsonl", b"neither JSON\n", "line 1: broken JSON"),
        ("a.csv", b"body,stars\nx,1\n", "say which columns hold text and label.*there are: body, stars"),
        ("a.xlsx", b"PK", "unknown form"),
    ],
)
def test_unreadable(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        read(open_source(str(tmp_path / name)))
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_column_names_those_present(tmp_path):
    (tmp_path / "a.csv").write_text("body,stars\nx,1\n")
    with pytest.raises(SourceError, match="no column 'review'; there are: body, stars"):
        open_source(str(tmp_path / "a.csv"), text="review", label="stars")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (" text", "' text'"),
        ("text ", "'text '"),
        ("my text", "'my text'"),
        ("a,b", "'a,b'"),
        ("", "''"),
        ("text\u00a0", r"'text\\xa0'"),
        ("body", "body"),
        ("ticket.body", "ticket.body"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_names_are_listed_so_that_one_sees_where_they_end(tmp_path, name, shown, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "csv":
        path.write_text(f'"{name}",label\nx,1\n')
    elif ending == "jsonl":
        path.write_text(json.dumps({name: "x", "label": 1}) + "\n")
    else:
        pq.write_table(pa.table({name: ["x"], "label": [1]}), path)
    for text in ("text", "other", None) if name != "text" else ("other",):
        with pytest.raises(SourceError, match=f"there are: {shown}, label$"):
            open_source(str(path), text=text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stores/trian", "no such file or folder"),
        ("a.xlsx", "no such file or folder"),
        ("a.csv", "no such file$"),
        ("a.csv.gz", "no such file$"),
        ("pipe", "a pipe or device"),
        ("pipe.csv", "a pipe or device"),
        ("there.xlsx", "unknown form"),
    ],
)
def test_whether_it_is_there_comes_first(tmp_path, name, said):
    for pipe in ("pipe", "pipe.csv"):
        os.mkfifo(tmp_path / pipe)
    (tmp_path / "there.xlsx").write_text("PK")
    with pytest.raises(SourceError, match=said):
        open_source(str(tmp_path / name))


def test_text_column_of_numbers(tmp_path):
    pq.write_table(pa.table({"text": [1, 2], "label": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="column 'text' holds int64, not text"):
        open_source(str(tmp_path / "a.parquet"))


@as_subtests(
    "name",
    [
        "",
        "nowhere.csv",
        "synthetic:poems",
        "synthetic:reviews?n=x",
        "synthetic:reviews?m=1",
        "synthetic:titles?classes=0",
        "hf:",
        "hf:a:b:c:d",
    ],
)
def test_no_such_source(name):
    with pytest.raises(SourceError):
        open_source(name)


def test_unlabelled(tmp_path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    rows = read(open_source(str(tmp_path / "a.csv"), need_label=False))
    assert (rows.texts, rows.labels) == (["x"], [""])


@as_subtests(
    "text, message",
    [
        ("label", "'label' is the label too"),
        ("text,text", "'text' is there twice"),
        ("text+text", "'text' is there twice"),
        ("text,label", "'label' is the label too"),
    ],
)
def test_a_column_is_read_once(tmp_path, text, message):
    """A label that stands in the text would be learned from it."""
    file = tmp_path / "a.csv"
    file.write_text("text,label\na,1\nb,2\n")
    with pytest.raises(SourceError, match=message):
        open_source(str(file), text=text, label="label")
