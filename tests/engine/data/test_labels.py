"""What a label column holds is a fact of the whole column, whatever the order of rows, files and forms."""

import json
import random
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from subtested import as_subtests

from penstock.engine.data.prepare import prepare
from penstock.engine.data.sources import MemorySource, open_source
from penstock.engine.data.sources.labels import LabelNames, merged_spellings, mostly_single, sort_labels
from penstock.engine.errors import SourceError


def write_csv(path: Path, labels: list[str]) -> str:
    path.write_text("text,label\n" + "".join(f"text {i},{label}\n" for i, label in enumerate(labels)))
    return str(path)


def write_forms(folder: Path, labels: list) -> list[str]:
    """The same labels as csv (as Python prints them), as JSON lines and as Parquet."""
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return [write_csv(folder / "a.csv", list(map(str, labels))), str(folder / "a.jsonl"), str(folder / "a.parquet")]


@pytest.mark.slow
@as_subtests(
    "spellings, classes",
    [
        (["1", "1.0", "1.00", "2"], ["1", "2"]),
        (["1", "1.0", "1.00", "2.10", "2.1", "beta"], ["1", "1.0", "1.00", "2.1", "2.10", "beta"]),
        (["True", "true", "TRUE", "False"], ["false", "true"]),
        (["True", "true", "yes"], ["True", "true", "yes"]),
        (["3", "nan", "1", "20"], ["1", "20", "3", "nan"]),
        (["inf", "1", "2.0"], ["1", "2.0", "inf"]),
        (["007", "7", "7.0"], ["007", "7", "7.0"]),
        (["1e3", "1000", "-.5", "-0.50"], ["-0.5", "1000"]),
        (["12345678901234567890", "12345678901234567891"], ["12345678901234567890", "12345678901234567891"]),
        (["1e999", "2"], ["2", "1E+999"]),
        (["pos", " pos", "neg\u00a0"], ["neg", "pos"]),
    ],
)
def test_classes_of_a_column(tmp_path, tokenizer_path, capsys, spellings, classes):
    """The same classes in any order of the rows; whatever is merged, and nothing else, is said in one line."""
    for seed in range(2):
        random.Random(seed).shuffle(spellings)
        merged = merged_spellings(dict.fromkeys(spellings, 1))
        assert sort_labels(list(merged)) == classes
        store = prepare(
            write_csv(tmp_path / f"{seed}.csv", spellings),
            tmp_path / str(seed),
            tokenizer=tokenizer_path,
            progress=False,
        )
        assert store.label_names == classes
        assert len(store.labels) == len(spellings)
        lines = [line for line in capsys.readouterr().err.splitlines() if "one class" in line]
        assert len(lines) == (len(classes) < len(spellings))
        for spelled in merged.values():
            assert len(spelled) == 1 or all(repr(one) in lines[0] for one in spelled)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([True, False, True], ["false", "true"]), ([1, 2, 10], ["1", "2", "10"]), ([0.5, 2.0, 0.1], ["0.1", "0.5", "2"])],
)
def test_forms_agree(tmp_path, tokenizer_path, labels, classes):
    names = write_forms(tmp_path, labels)
    stores = [
        prepare(name, tmp_path / f"s{i}", tokenizer=tokenizer_path, progress=False)
        for i, name in enumerate([*names, names])
    ]
    assert [store.label_names for store in stores] == [classes] * 4
    assert stores[3].manifest.label_counts == [3 * count for count in stores[0].manifest.label_counts]
    assert len({store.manifest.content for store in stores[:3]}) == 1
    like = prepare(names[2], tmp_path / "like", like=tmp_path / "s0", progress=False)
    assert like.labels.tolist() == stores[0].labels.tolist()


@pytest.mark.slow
@as_subtests(
    "kind, values, names",
    [
        (pa.float32(), [0.1, 0.25, 3.0], ["0.1", "0.25", "3"]),
        (pa.float16(), [0.5, 2.0, 1.0], ["0.5", "1", "2"]),
        (pa.decimal128(5, 2), None, ["0.1", "1", "2.25"]),
        (pa.date32(), None, ["2024-01-31", "2024-02-01", "2025-01-01"]),
        (pa.timestamp("ns"), None, ["2024-01-31 00:00:00", "2024-02-01 00:00:00", "2025-01-01 12:30:00"]),
        (pa.int8(), [1, -2, 3], ["-2", "1", "3"]),
        (pa.uint64(), [1, 2**63 + 1, 3], ["1", "3", str(2**63 + 1)]),
        (pa.dictionary(pa.int8(), pa.string()), ["b", "a", "c"], ["a", "b", "c"]),
    ],
)
def test_typed_columns(tokenizer_path, tmp_path, kind, values, names):
    if values is None:
        values = [pa.scalar(name).cast(kind) if "-" in name else name for name in names]
        labels = pa.array(names).cast(kind) if "-" in names[0] else pa.array(list(map(Decimal, names)), kind)
    elif kind == pa.float16():
        labels = pa.array(np.array(values, np.float16))
    else:
        labels = pa.array(values, kind)
    table = pa.table({"text": ["a", "b", "c"], "label": labels})
    store = prepare(table, tmp_path / "s", tokenizer=tokenizer_path, progress=False)
    assert store.label_names == names


@pytest.mark.slow
@as_subtests("word", ["nan", "NaN", "NULL", "None", "N/A", "null", "NA", "#N/A", "-", "inf"])
def test_words_for_nothing_are_named(tmp_path, tokenizer_path, capsys, word):
    prepare(write_csv(tmp_path / "a.csv", ["1", word, "2"]), tmp_path / "s", tokenizer=tokenizer_path, progress=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{word!r} (1 rows)" in line


@as_subtests("pair", [("Pos", "pos"), ("a b", "a\u00a0b"), ("caf\u00e9", "cafe\u0301"), ("a", "\u200ba")])
def test_lookalikes_are_named(tmp_path, tokenizer_path, capsys, pair):
    store = prepare(write_csv(tmp_path / "a.csv", list(pair)), tmp_path / "s", tokenizer=tokenizer_path, progress=False)
    assert len(store.label_names) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(ascii(one) in line for one in pair)


def test_rows_with_a_class_of_their_own(tmp_path, tokenizer_path):
    name = write_csv(tmp_path / "a.csv", [f"ID-{i}" for i in range(60)])
    with pytest.raises(SourceError, match="column 'label' gives 60 classes for 60 rows"):
        prepare(name, tmp_path / "s", tokenizer=tokenizer_path, progress=False)
    assert mostly_single({f"class {i}": 2 for i in range(150)}) == 0  # few examples of many classes
    assert mostly_single({f"class {i}": 1 for i in range(20)}) == 0


def test_label_columns_of_different_names(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    (tmp_path / "b.csv").write_text("text,stars\na,1\n")
    with pytest.raises(SourceError, match=r"b.csv: its column would be 'stars', that of .*a.csv 'label'"):
        prepare([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")], tmp_path / "s", tokenizer="train:bpe:300")


@as_subtests(
    "known, spelled, name",
    [
        (["1", "2"], "1.0", "1"),
        (["false", "true"], "TRUE", "true"),
        (["1", "beta"], "1.0", None),
        (["1.0", "1.00", "beta"], "1.00", "1.00"),
        (["2.5", "2.50"], "2.50", "2.50"),  # a store of before
        (["2.5", "2.50"], "2.500", None),
        (["a", "b"], " a ", "a"),
    ],
)
def test_known_classes(known, spelled, name):
    assert LabelNames(known)(spelled) == name


def test_memory_sources(tmp_path, tokenizer_path):
    pairs = [("a", 1), ("b", 0), ("c", 1)]
    first = prepare(pairs, tmp_path / "pairs", tokenizer=tokenizer_path, progress=False)
    second = prepare(
        MemorySource(["a", "b", "c"], [1, 0, 1]), tmp_path / "lists", tokenizer=tokenizer_path, progress=False
    )
    assert first.fingerprint == second.fingerprint
    assert [rows.texts for rows in open_source(["x", "y"], need_label=False).rows()] == [["x", "y"]]


@pytest.mark.parametrize(
    ("known", "labels", "said"),
    [
        (["1", "2"], ["1", "1.0", "1.0", "2"], "'1' (1 rows) and '1.0' (2 rows) as '1'"),
        (["true", "false"], ["True", "TRUE", "false"], "'TRUE' (1 rows) and 'True' (1 rows) as 'true'"),
        (["pos", "neg"], ["pos", " pos", "neg"], "' pos' (1 rows) and 'pos' (1 rows) as 'pos'"),
        (["1", "2"], ["1", "2", "2"], None),
        (["1", "2"], ["1", "7", "7.0", "2"], None),
    ],
)
@pytest.mark.parametrize("lists", [False, True])
def test_what_is_merged_into_the_classes_of_another_store_is_said(
    tmp_path, tokenizer_path, capsys, known, labels, said, lists
):
    """Without the warnings about the classes themselves, which the other store's preparation gave."""

    def source(name: str, values: list[str]) -> str:
        rows = [{"text": f"text {i}", "label": [value] if lists else value} for i, value in enumerate(values)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    options = {"progress": False, "bad_rows": "quarantine"}
    like = prepare(source("a.jsonl", [*known, "nan"] if said is None else known), tmp_path / "a",
                   tokenizer=tokenizer_path, **options)  # fmt: skip
    capsys.readouterr()
    test = prepare(source("b.jsonl", labels), tmp_path / "b", like=like.path, **options)
    assert test.label_names == like.label_names
    lines = capsys.readouterr().err.splitlines()
    assert lines == ([] if said is None else [f"column 'label': labels that are one class: {said}"])
