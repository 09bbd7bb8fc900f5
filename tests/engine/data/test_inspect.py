import csv
import itertools
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from subtested import as_subtests
from typer.testing import CliRunner

from penstock.engine import cli
from penstock.engine.data import inspect as inspecting
from penstock.engine.data.inspect import Groups, Lengths, duplicates, look, normal_form, require_rows, shared_texts
from penstock.engine.data.manifest import INDEX_NAME, MANIFEST_NAME
from penstock.engine.data.sources import open_sources
from penstock.engine.data.sources.labels import merged_spellings
from penstock.engine.errors import SourceError

VARIANTS = [str, str.upper, lambda text: f"  {text} ", lambda text: text.replace(" ", "\t"), str.title]


def write_csv(path: Path, rows: list[tuple[str, str]]) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return str(path)


def looked(path: str, label: bool = True):
    return look(open_sources([path], need_label=label))


def drawn(seed: int, rows: int, texts: int = 30) -> list[tuple[str, str]]:
    """Texts that are often the same, or the same but for case and spaces, and whose labels often differ."""
    random_ = random.Random(seed)
    return [
        (random_.choice(VARIANTS)(f"text number {random_.randrange(texts)}"), random_.choice("ab")) for _ in range(rows)
    ]


def sets(groups: Groups) -> set[frozenset[int]]:
    return {frozenset(rows.tolist()) for rows in groups}


def grouped(rows: list, key) -> dict:
    found = defaultdict(list)
    for number, row in enumerate(rows):
        found[key(row)].append(number)
    return found


@as_subtests("seed, rows", [(0, 0), (1, 1), (2, 2), (3, 12), (4, 60), (5, 300)])
def test_duplicates_are_those_that_dictionaries_find(tmp_path: Path, seed: int, rows: int):
    data = drawn(seed, rows)
    found = duplicates(looked(write_csv(tmp_path / "a.csv", data)))

    exact = {frozenset(group) for group in grouped(data, lambda row: row).values() if len(group) > 1}
    assert sets(found.exact) == exact
    assert found.surplus == len(data) - len(set(data))
    texts = grouped(data, lambda row: row[0]).values()
    contradicting = {frozenset(group) for group in texts if len({data[row][1] for row in group}) > 1}
    assert sets(found.contradictions) == contradicting
    forms = grouped(data, lambda row: normal_form(row[0])).values()
    spelled = {frozenset(group) for group in forms if len({data[row][0] for row in group}) > 1}
    assert sets(found.normal) == spelled
    assert found.more == len({text for text, _ in data}) - len({normal_form(text) for text, _ in data})
    torn = set(itertools.chain.from_iterable(contradicting))
    assert sets(found.normal_contradictions) == {
        group for group in spelled if len({data[row][1] for row in group}) > 1 and not group & torn
    }
    for groups in (found.exact, found.contradictions, found.normal):
        firsts = [int(group[0]) for group in groups]
        assert firsts == sorted(firsts), "in the order of the file"
        assert all((np.diff(group) > 0).all() for group in groups)


@as_subtests("seed, rows", [(10, 0), (11, 1), (12, 20), (13, 200)])
def test_the_overlap_is_what_dictionaries_find(tmp_path: Path, seed: int, rows: int):
    train, test = drawn(seed, 40, 20), drawn(seed + 100, rows, 40)
    found = shared_texts(
        looked(write_csv(tmp_path / "train.csv", train)), looked(write_csv(tmp_path / "test.csv", test))
    )
    texts, forms = defaultdict(set), defaultdict(set)
    for text, label in train:
        texts[text].add(label)
        forms[normal_form(text)].add(label)
    exact = [row for row, (text, _) in enumerate(test) if text in texts]
    normal = [row for row, (text, _) in enumerate(test) if text not in texts and normal_form(text) in forms]
    assert found.exact.tolist() == exact
    assert found.normal.tolist() == normal
    assert found.other_label == sum(test[row][1] not in texts[test[row][0]] for row in exact) + sum(
        test[row][1] not in forms[normal_form(test[row][0])] for row in normal
    )
    for row, twin in zip(found.exact, found.exact_twin, strict=True):
        assert train[twin][0] == test[row][0]
        assert train[twin][1] == test[row][1] or test[row][1] not in texts[test[row][0]]
    for row, twin in zip(found.normal, found.normal_twin, strict=True):
        assert normal_form(train[twin][0]) == normal_form(test[row][0])


@as_subtests(
    "one, other",
    [
        ("Straße", "STRASSE"),
        ("ﬁne  day", "fine day"),
        ("１２３", "123"),
        ("e\u0301t\u00e9", "\u00e9te\u0301"),
        ("a\u00a0b\r\n", "A B"),
        ("Ω", "ω"),
    ],
)
def test_the_normal_form(one: str, other: str):
    assert normal_form(one) == normal_form(other)
    assert normal_form(normal_form(one)) == normal_form(one)


def test_texts_of_other_words_have_other_normal_forms():
    assert len({normal_form(text) for text in ("a b", "ab", "a-b", "a.b", "á b", "", "b a")}) == 7


def test_lengths_are_quantiles_that_occur():
    values = random.Random(0).choices(range(1, 400), k=999)
    lengths = Lengths()
    for begin in range(0, 999, 100):
        lengths.add(values[begin : begin + 100])
    summary = lengths.summary()
    assert summary.pop("mean") == pytest.approx(np.mean(values))
    shares = list(inspecting.QUANTILES.values())
    assert list(summary.values()) == np.quantile(values, shares, method="inverted_cdf").tolist()
    assert Lengths().summary() == {}


def test_several_sources_are_one_and_places_are_theirs(tmp_path: Path):
    one = write_csv(tmp_path / "one.csv", [("two\nlines", "a"), ("x", "b")])
    pq.write_table(pa.table({"text": ["x", "X"], "label": ["b", "b"]}), tmp_path / "two.parquet")
    seen = look(open_sources([one, str(tmp_path / "two.parquet")]))
    found = duplicates(seen)
    (pair,) = found.exact
    assert [seen.place(row) for row in pair] == [f"{one}: line 4", f"{tmp_path / 'two.parquet'}: row 1"]
    (three,) = found.normal
    assert [seen.label_of(row) for row in three] == ["b", "b", "b"]
    assert seen.rows == 4


def test_classes_beyond_those_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspecting, "MAX_LABELS", 10)
    rows = [(f"text {i}", f"label {i % 40}") for i in range(200)]
    seen = looked(write_csv(tmp_path / "a.csv", rows))
    assert len(seen.label_counts) == 40
    assert len(seen.label_names) == 10
    assert set(seen.label_counts.tolist()) == {5}


@pytest.mark.parametrize("named", [1, 3, 10, 100])
def test_the_overlap_beyond_the_labels_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: int):
    monkeypatch.setattr(inspecting, "MAX_LABELS", named)
    train = [(f"text {i}", f"label {i}") for i in range(12)]
    test = [(f"text {i}", f"label {i if i < 7 else 'new'}") for i in reversed(range(4, 12))]
    found = shared_texts(
        looked(write_csv(tmp_path / "train.csv", train)), looked(write_csv(tmp_path / "test.csv", test))
    )
    assert found.exact.tolist() == list(range(8))
    assert found.other_label == 5


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, ["inspect", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout


CONTRADICTIONS = [("same words", "1"), ("same words", "0"), ("Same  Words", "1"), ("other", "0"), ("other", "0")]


def test_the_summary_is_the_last_line(tmp_path: Path):
    path = write_csv(tmp_path / "a.csv", CONTRADICTIONS)
    last = run(path).splitlines()[-1]
    assert last == (
        "5 rows in 2 classes (0: 60.0%); 1 exact duplicate; 1 contradiction; 1 more after normalising; 0 empty texts"
    )
    output = run(path, "--against", write_csv(tmp_path / "b.csv", [("OTHER", "1"), ("other", "0"), ("new", "0")]))
    assert output.splitlines()[-1].endswith(
        "2 of 3 test rows (66.7%) also in train, 1 of them after normalising, 1 under another label"
    )
    assert f"{path}: line 5 (0), {path}: line 6 (0)" in output
    assert f"{tmp_path / 'b.csv'}: line 3 = {path}: line 5" in output


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_all_places_go_to_a_file(tmp_path: Path, ending: str):
    path, out = write_csv(tmp_path / "a.csv", [*CONTRADICTIONS, (" ", "0")]), tmp_path / f"found.{ending}"
    run(path, "--against", path, "--out", str(out))
    text = out.read_text()
    records = list(csv.DictReader(text.splitlines())) if ending == "csv" else list(map(json.loads, text.splitlines()))
    assert Counter(record["kind"] for record in records) == {
        "exact": 2,
        "contradiction": 2,
        "normalised": 3,
        "empty": 1,
        "overlap": 12,
    }
    assert [(int(r["position"]), r["label"]) for r in records if r["kind"] == "contradiction"] == [(2, "1"), (3, "0")]
    assert {record["source"] for record in records} == {path}


def test_json(tmp_path: Path):
    path = write_csv(tmp_path / "a.csv", CONTRADICTIONS)
    document = json.loads(run(path, "--against", path, "--json"))
    assert document["rows"] == 5
    assert document["classes"][0] == {"label": "0", "rows": 3, "share": 0.6}
    assert document["majority"] == {"label": "0", "share": 0.6}
    assert document["duplicates"]["exact"] == {"groups": 1, "rows": 2, "surplus": 1}
    assert document["duplicates"]["contradictions"] == {"groups": 1, "rows": 2}
    assert document["duplicates"]["normalised"]["more"] == 1
    assert document["first"]["exact"] == [[f"{path}: line 5", f"{path}: line 6"]]
    assert document["against"]["overlap"] == {"exact": 5, "normalised": 0, "share": 1.0, "other_label": 0}
    assert document["words"]["max"] == 2


def test_rows_that_cannot_be_used_are_named_and_counted(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": null, "label": 1}\nnonsense\n{"text": "", "label": 2}\n')
    output = run(str(path))
    assert f"{path}: line 2" in output
    assert f"{path}: line 3" in output
    assert output.splitlines()[-1].endswith("1 empty text; 2 bad rows")


def test_texts_without_labels(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("text,id\na,1\na,2\n")
    output = run(str(path))
    assert output.splitlines()[-1] == "2 rows; 1 exact duplicate; 0 more after normalising; 0 empty texts"
    assert "no column of labels" in output
    (tmp_path / "b.csv").write_text("text,label\na,1\n")
    assert "1 of 1 test row (100.0%)" in run(str(path), "--against", str(tmp_path / "b.csv"))


def test_a_file_of_headers_only(tmp_path: Path):
    path = write_csv(tmp_path / "a.csv", [])
    assert run(path, "--against", path).splitlines()[-1].startswith("0 rows; 0 exact duplicates")


# Spellings of a training set's labels and of a test set's, and their classes by the rule of the whole column.
SPELLINGS = [
    (["1", "1.0", "2"], ["1.00", "2", "3.0"], {"1": 2, "2": 1}, {"1": 1, "2": 1, "3": 1}),
    (["1", "1.0", "beta"], ["1.0", "1.00", "beta"], {"1": 1, "1.0": 1, "beta": 1}, {"1.0": 1, "1.00": 1, "beta": 1}),
    (["1", "beta"], ["1.0", "2"], {"1": 1, "beta": 1}, {"1.0": 1, "2": 1}),
    (["True", "true", "FALSE"], ["False", "maybe"], {"true": 2, "false": 1}, {"false": 1, "maybe": 1}),
    (["pos", " pos", "neg "], ["neg", " new"], {"pos": 2, "neg": 1}, {"neg": 1, "new": 1}),
]


@as_subtests("train, test, classes, test_classes", SPELLINGS)
def test_classes_are_those_of_a_preparation(tmp_path: Path, train, test, classes, test_classes):
    for order in (1, -1):
        ours = looked(write_csv(tmp_path / "a.csv", [(f"text {i}", label) for i, label in enumerate(train)][::order]))
        theirs = [(f"text {i}", label) for i, label in enumerate(test)][::order]
        other = look(open_sources([write_csv(tmp_path / "b.csv", theirs)]), like=ours)
        for seen, expected in ((ours, classes), (other, test_classes)):
            assert dict(zip(seen.label_names, seen.label_counts.tolist(), strict=True)) == expected
            by_row = Counter(seen.label_of(row) for row in range(seen.rows))
            assert by_row == expected


def test_one_class_is_no_contradiction(tmp_path: Path):
    path = write_csv(tmp_path / "a.csv", [("same", "1"), ("same", "1.0"), ("other", "2")])
    other = write_csv(tmp_path / "b.csv", [("same", "1.00"), ("other", "2.0")])
    document = json.loads(run(path, "--against", other, "--json"))
    assert document["duplicates"]["contradictions"]["groups"] == 0
    assert document["duplicates"]["exact"]["groups"] == 1
    assert document["against"]["overlap"]["other_label"] == 0
    assert "labels that are one class: '1' (1 rows) and '1.0' (1 rows)" in CliRunner().invoke(
        cli.app, ["inspect", path]
    ).stderr.replace("\n", " ")


def test_how_files_are_read_can_be_said(tmp_path: Path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.csv").write_bytes("text^label\nGröße^1\nklein^0\n".encode("cp1252"))
    options = ["--separator", "^", "--encoding", "cp1252", "--json"]
    document = json.loads(run(str(folder), "--against", str(folder / "*.csv"), *options))
    assert (document["rows"], document["against"]["overlap"]["share"]) == (4, 1.0)
    refused = CliRunner().invoke(cli.app, ["inspect", str(folder), *options, "--out", str(folder / "a.csv")])
    assert "which is being read" in str(refused.exception)


def test_what_is_found_is_not_written_into_a_store(tmp_path: Path):
    (tmp_path / "a.csv").write_text("text,label\ngood,1\nbad,0\n")
    store = tmp_path / "store"
    store.mkdir()
    for name in (MANIFEST_NAME, INDEX_NAME):
        (store / name).touch()
    refused = CliRunner().invoke(cli.app, ["inspect", str(tmp_path / "a.csv"), "--out", str(store / "found.csv")])
    assert f"is in the store {store}" in str(refused.exception)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\ncaf\u00e9,1\n".encode("cp1252") * 1, "--encoding"),
        (b'text,label\n"abc,p\nd,n\n', "none of the 1 rows can be used"),
    ],
)
def test_rows_that_cannot_be_read_are_an_error(tmp_path, content, message):
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        require_rows(look(open_sources([str(file)])))


def write_lists(path: Path, rows: list[tuple[str, list[str]]]) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": labels}) + "\n" for text, labels in rows))
    return str(path)


LISTS = [("one", ["a", "b"]), ("two", ["b"]), ("three", [])]
SEPARATED = [("one", "b|a"), ("two", "b"), ("four", "a")]


@pytest.mark.parametrize("lists_train", [True, False])
def test_lists_and_separated_texts_are_compared_as_lists(tmp_path: Path, lists_train: bool):
    given = [write_lists(tmp_path / "lists.jsonl", LISTS), write_csv(tmp_path / "texts.csv", SEPARATED)]
    train, test = given if lists_train else reversed(given)
    overlap = json.loads(run(train, "--against", test, "--label-separator", "|", "--json"))["against"]["overlap"]
    assert (overlap["exact"], overlap["other_label"]) == (2, 0)
    refused = CliRunner().invoke(cli.app, ["inspect", train, "--against", test])
    assert re.search(
        r"lists\.jsonl has lists of labels, .*texts\.csv a single label .*--label-sep", str(refused.exception)
    )
    lists = given[0]
    refused = CliRunner().invoke(cli.app, ["inspect", lists, "--against", lists, "--label-separator", "|"])
    assert "--label-separator '|' has no effect" in str(refused.exception)


def test_a_test_set_is_read_from_the_columns_of_the_training_set(tmp_path: Path):
    (tmp_path / "train.csv").write_text("review,verdict\na film,x\nplots,y\n")
    (tmp_path / "test.csv").write_text("text,label,review,verdict\nplots,z,a film,x\nq,z,r,y\n")
    (tmp_path / "other.csv").write_text("review,label\na film,z\n")
    options = ["--text", "review", "--label", "verdict", "--json"]
    train = str(tmp_path / "train.csv")
    named = json.loads(run(train, "--against", str(tmp_path / "test.csv"), *options))
    assert named["against"]["overlap"] == {"exact": 1, "normalised": 0, "share": 0.5, "other_label": 0}


# A row's labels, as sets of names: which of them are the same set, whatever they are spelled like.
LISTED = [
    [[1, 2], [1.0, 2], ["2.0", "1.00"]],
    [[1, "b"], ["b", "1"]],
    [["a + b"], ["a", "b"]],
    [["a +", "b"], ["a", "+ b"]],
    [["'a + b'"], ["'a", "b'"], ["a + b"]],
    [["(none)"], []],
    [["C++"], ["C", ""]],
    [["True", "x"], ["true", "x"]],
    [["True"], ["true"]],
    [["a"], [" a "], ["a", "a "]],
]


@as_subtests("lists", [[one for one in lists if "" not in one] for lists in LISTED])
def test_lists_are_the_same_where_their_classes_are(tmp_path: Path, lists):
    spelled = {str(label) for labels in lists for label in labels}
    of = {one: name for name, spellings in merged_spellings(dict.fromkeys(spelled, 1)).items() for one in spellings}
    expected = {frozenset(of[str(label)] for label in labels) for labels in lists}
    path = write_lists(tmp_path / "a.jsonl", [("same", labels) for labels in lists])
    seen = looked(path)
    assert len(set(seen.label_names)) == len(seen.label_names) == len(expected)
    assert len(duplicates(seen).contradictions) == (len(expected) > 1)
    assert seen.label_counts.sum() == len(lists)
    for labels in lists:  # as a test set of it
        test = look(open_sources([write_lists(tmp_path / "b.jsonl", [("same", labels)])]), like=seen)
        assert shared_texts(seen, test).other_label == 0
    assert set(of.values()) == set(seen.label_spellings)


def test_lists_beyond_the_labels_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspecting, "MAX_LABELS", 2)
    path = write_lists(tmp_path / "a.jsonl", [("same", ["b", "a"]), ("x", ["c"]), ("y", ["d", "e"]), ("y", ["e", "d"])])
    seen = looked(path)
    assert len(duplicates(seen).contradictions) == 0
    assert shared_texts(seen, seen).other_label == 0


def test_what_is_merged_in_a_test_set_is_said(tmp_path: Path):
    train = write_csv(tmp_path / "a.csv", [("one", "1"), ("two", "2")])
    test = write_csv(tmp_path / "b.csv", [("one", "1"), ("two", "1.0"), ("three", "2")])
    said = CliRunner().invoke(cli.app, ["inspect", train, "--against", test]).stderr
    assert "labels that are one class: '1' (1 rows) and '1.0' (1 rows) as '1'" in said.replace("\n", " ")
