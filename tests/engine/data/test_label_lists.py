"""Stores whose rows have lists of labels."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from subtested import as_subtests
from typer.testing import CliRunner

from penstock.engine.cli import app
from penstock.engine.data import parts
from penstock.engine.data.label_lists import counts_of, lists_of, multi_hot, rarest
from penstock.engine.data.loader import Loader
from penstock.engine.data.overlap import find_overlap
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.prepare import prepare, prepare_part
from penstock.engine.data.sources import Reading, open_source, open_sources
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, SourceError, StoreError

ROWS = [
    ("tears and a soldier", ["war", "drama"]),
    ("a joke", ["comedy"]),
    ("music was it", []),
    ("weep weep kiss", ["love", "drama", "drama"]),
    ("gun and laugh", ["war", "comedy"]),
    ("grief", ["drama"]),
]
NAMES = ["comedy", "drama", "love", "war"]
WANTED = [[1, 3], [0], [], [1, 2], [0, 3], [1]]


def write(folder, name, rows=ROWS, separator="|", field="label"):
    """The rows as a file of any form."""
    path = folder / name
    texts, labels = [text for text, _ in rows], [list(labels) for _, labels in rows]
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps({"text": a, field: b}) + "\n" for a, b in zip(texts, labels, strict=True)))
    elif name.endswith(".csv"):
        lines = [f'"{a}","{separator.join(b)}"\n' for a, b in zip(texts, labels, strict=True)]
        path.write_text(f"text,{field}\n" + "".join(lines))
    else:
        table = pa.table({"text": texts, field: pa.array(labels, KINDS[name.split("-")[0]])})
        if name.endswith(".parquet"):
            pq.write_table(table, path)
        else:
            with ipc.new_file(path, table.schema) as out:
                out.write_table(table, max_chunksize=4)
    return str(path)


KINDS = {
    "list": pa.list_(pa.string()),
    "large": pa.large_list(pa.large_string()),
    "view": pa.list_view(pa.string()),
}


def prepared(source, out, **options):
    options = {"tokenizer": "train:wordpiece:150", "max_length": 16, "progress": False} | options
    if "like" in options:
        del options["tokenizer"], options["max_length"]
    return prepare(source, out, **options)


def lists(store):
    return [store.label_ids[a:b].tolist() for a, b in zip(store.label_offsets, store.label_offsets[1:], strict=False)]


@pytest.mark.slow
@as_subtests(
    "name, options",
    [
        ("a.jsonl", {}),
        ("list-a.parquet", {}),
        ("large-a.parquet", {}),
        ("list-a.arrow", {}),
        ("view-a.arrow", {}),
        ("a.csv", {"reading": Reading(label_separator="|")}),
        ("b.csv", {"reading": Reading(label_separator="; ")}),
        ("of texts.jsonl", {"reading": Reading(label_separator="|")}),
        ("pairs", {}),
        ("table", {}),
    ],
)
def test_every_form_gives_the_same_labels(tmp_path, name, options):
    if name == "pairs":
        source = ROWS
    elif name == "table":
        source = pa.table({"text": [text for text, _ in ROWS], "label": [labels for _, labels in ROWS]})
    elif name.startswith("of texts"):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": a, "label": "|".join(b)}) + "\n" for a, b in ROWS))
        source = str(path)
    else:
        separator = options["reading"].label_separator if options else "|"
        source = write(tmp_path, name, separator=separator)
    store = prepared(source, tmp_path / "store", **options)
    assert store.multi_label
    assert store.label_names == NAMES
    assert lists(store) == WANTED
    assert store.manifest.label_counts == [2, 3, 1, 2]
    assert store.labels.tolist() == [3, 0, -1, 2, 0, 1]  # the rarest label, then the first
    assert store.targets(np.array([3, 2, 0])).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]]
    assert "labels.arrow" in list(store.verify(deep=True))
    again = Store.open(store.path, reader="pread")
    assert lists(again) == WANTED
    assert again.fingerprint == store.fingerprint


def test_lists_of_one_size_and_narrow_numbers(tmp_path):
    values = pa.FixedSizeListArray.from_arrays(pa.array([0.1, 2, 2, 0.1, 0.1, 0.1], pa.float32()), 2)
    table = pa.table({"text": ["x", "y", "z"], "label": values}).slice(1)
    store = prepared(table, tmp_path / "store")
    assert (store.label_names, lists(store)) == (["0.1", "2"], [[0, 1], [0]])


@as_subtests(
    "values, names, wanted",
    [
        ([[1, 2], [1.0], [], [2.5]], ["1", "2", "2.5"], [[0, 1], [0], [], [2]]),
        ([["1", "1.0"], [" 2"], ["1"]], ["1", "2"], [[0], [1], [0]]),
        ([[True], [False, True], []], ["false", "true"], [[1], [0, 1], []]),
        ([["True"], ["false", "true"], ["TRUE"]], ["false", "true"], [[1], [0, 1], [1]]),
        ([["1"], ["beta", "1.0"]], ["1", "1.0", "beta"], [[0], [1, 2]]),
    ],
)
def test_spellings_are_settled_by_the_whole_column(tmp_path, values, names, wanted):
    store = prepared([(f"text {n}", labels) for n, labels in enumerate(values)], tmp_path / "store")
    assert store.label_names == names
    assert lists(store) == wanted
    assert store.manifest.label_counts == [sum(n in row for row in wanted) for n in range(len(names))]


@as_subtests(
    "labels, reason",
    [
        ([["a", "b"], "a"], "'label' is a string where other rows have lists of labels"),
        ([["a", "b"], 3], "'label' is a number where other rows have lists of labels"),
        ([["a", "b"], None], "'label' is null; an empty list says that a row has no label"),
        ([["a", "b"], ["a", None]], "'label' is null"),
        ([["a", "b"], ["a", " "]], "'label' is empty"),
        ([["a", "b"], [["a"]]], "'label' is a list, not a number or a string"),
        ([["a", "b"], [{"a": 1}]], "'label' is an object, not a number or a string"),
        (["a", ["b"]], "'label' is a list, not a number or a string"),
    ],
)
def test_rows_that_are_no_lists_are_bad(tmp_path, labels, reason):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "label": each}) + "\n" for each in labels))
    bad = [row for rows in open_source(str(path)).rows() for row in rows.bad]
    assert [(row.position, row.reason) for row in bad] == [(2, reason)]
    with pytest.raises(SourceError, match="line 2"):
        prepared(str(path), tmp_path / "store")


def test_separators_in_texts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nx,a |b\ny,\nz,a||b\nu,a|\nv,b\n")
    rows = list(open_source(str(path), reading=Reading(label_separator="|")).rows())
    assert [labels for batch in rows for labels in batch.labels] == [("a", "b"), (), ("b",)]
    assert [row.position for batch in rows for row in batch.bad] == [4, 5]
    assert "empty label beside a '|'" in rows[0].bad[0].reason
    for separator in ("", "\n"):
        with pytest.raises(ConfigError, match="--label-separator"):
            Reading(label_separator=separator)
    assert Reading(label_separator="comma").label_separator == ","


def test_a_separator_without_use_is_refused(tmp_path):
    source = write(tmp_path, "a.jsonl")
    with pytest.raises(ConfigError, match="holds lists already"):
        prepared(source, tmp_path / "store", reading=Reading(label_separator="|"))
    store = prepared(write(tmp_path, "a.csv"), tmp_path / "csv", reading=Reading(label_separator="|"))
    assert lists(prepared(source, tmp_path / "like", like=store.path)) == WANTED  # the other store's is not asked for


def test_sources_of_both_kinds_are_refused(tmp_path):
    single = tmp_path / "b.jsonl"
    single.write_text('{"text": "x", "label": "a"}\n')
    with pytest.raises(SourceError, match="one store takes either"):
        open_sources([write(tmp_path, "a.jsonl"), str(single)])


def test_no_label_at_all_and_only_one(tmp_path):
    with pytest.raises(SourceError, match="no row has a label"):
        prepared([("x", []), ("y", [])], tmp_path / "store")
    with pytest.raises(SourceError, match="only one label"):
        prepared([("x", ["a"]), ("y", [])], tmp_path / "store")


def test_like(tmp_path):
    store = prepared(write(tmp_path, "a.csv"), tmp_path / "store", reading=Reading(label_separator="|"))
    new = [("new", ["war", "comedy"]), ("old", [])]
    test = prepared(write(tmp_path, "b.csv", new), tmp_path / "t", like=store.path)
    assert lists(test) == [[0, 3], []]  # the separator comes from the other store
    assert test.manifest.label_separator == "|"
    unknown = write(tmp_path, "c.jsonl", [("new", ["war"]), ("old", ["comedy", "horror"])])
    with pytest.raises(SourceError, match="line 2: label 'horror' is not among"):
        prepared(unknown, tmp_path / "u", like=store.path)
    rest = prepared(unknown, tmp_path / "u", like=store.path, bad_rows="quarantine")
    assert (lists(rest), rest.manifest.bad_rows) == ([[3]], 1)
    single = tmp_path / "single.csv"
    single.write_text("text,label\nx,war\ny,love\n")
    of_lists = prepared(write(tmp_path, "d.jsonl"), tmp_path / "lists")
    with pytest.raises(SourceError, match=r"has one label a row, .* has lists; --label-separator"):
        prepared(str(single), tmp_path / "v", like=of_lists.path)
    of_single = prepared(str(single), tmp_path / "single")
    with pytest.raises(SourceError, match=r"has lists of labels, .* has one label a row"):
        prepared(write(tmp_path, "e.jsonl"), tmp_path / "v", like=of_single.path)


def test_shares_and_interruptions_make_the_same_bytes(tmp_path):
    draw = random.Random(3)
    rows = [(f"text {n} and more", [name for name in NAMES if draw.random() < 0.4]) for n in range(50)]
    source = write(tmp_path, "a.csv", rows)
    options = {"tokenizer": "train:wordpiece:150", "max_length": 16, "progress": False, "rows_per_shard": 8}
    options["reading"] = Reading(label_separator="|")
    whole = prepare(source, tmp_path / "whole", **options)
    for share in (1, 0, 2):
        prepare_part(source, tmp_path / "shared", (share, 3), **options)
    shared = parts.finalize(tmp_path / "shared")
    assert shared.fingerprint == whole.fingerprint
    for file in whole.path.glob("*.arrow"):
        assert file.read_bytes() == (shared.path / file.name).read_bytes(), file.name
    assert lists(whole) == [[n for n, name in enumerate(NAMES) if name in labels] for _, labels in rows]


@as_subtests("fault", ["missing", "cut", "flipped", "other lists"])
def test_damage_is_named(tmp_path, fault):
    store = prepared(write(tmp_path, "a.jsonl"), tmp_path / "store")
    file = store.path / "labels.arrow"
    content = file.read_bytes()
    if fault == "missing":
        file.unlink()
    elif fault == "cut":
        file.write_bytes(content[:-16])
    elif fault == "flipped":
        place = content.index(np.array([1, 3, 0, 1, 2], np.int32).tobytes())
        file.write_bytes(content[:place] + b"\x02" + content[place + 1 :])
    else:
        other = prepared(write(tmp_path, "b.jsonl", [*ROWS[:-1], ("grief", ["love"])]), tmp_path / "other")
        file.write_bytes((other.path / "labels.arrow").read_bytes())
    with pytest.raises(StoreError, match=r"labels\.arrow"):
        list(Store.open(store.path).verify(deep=True))


def test_single_labels_stay_as_they_were(tmp_path):
    store = prepared([("x y", "a"), ("z", "b")], tmp_path / "store")
    assert not store.multi_label
    assert not (store.path / "labels.arrow").exists()
    assert len(store.label_ids) == 0
    with pa.memory_map(str(store.path / "shard-00000.arrow")) as file:
        assert pa.ipc.open_file(file).schema.names == ["tokens", "label", "source", "source_row"]
    # a manifest of an earlier version has none of the new entries
    path = store.path / "manifest.json"
    content = json.loads(path.read_text())
    for name in ("multi_label", "label_separator", "label_index", "crc32"):
        del content[name]
    path.write_text(json.dumps(content))
    assert Store.open(store.path).fingerprint == store.fingerprint


def test_overwriting_leaves_no_lists_behind(tmp_path):
    prepared(write(tmp_path, "a.jsonl"), tmp_path / "store")
    store = prepared([("x y", "a"), ("z", "b")], tmp_path / "store", overwrite=True)
    assert not (store.path / "labels.arrow").exists()


@pytest.mark.parametrize("mode", ["pack", "bucket"])
def test_batches_have_all_labels_of_their_rows(tmp_path, mode):
    draw = random.Random(5)
    rows = [(" ".join("w" * draw.randint(1, 9)), [n for n in NAMES if draw.random() < 0.4]) for _ in range(120)]
    store = prepared(rows, tmp_path / "store", rows_per_shard=50)
    chosen = np.array(draw.sample(range(120), 80))
    loader = Loader(store, seed=1, parameters=PlanParameters(tokens_per_batch=64, mode=mode), rows=np.sort(chosen))
    seen = []
    for batch in loader.batches():
        assert batch.labels.shape == (len(batch), 4)
        for row, target in zip(batch.tokens.ids.tolist(), batch.labels.tolist(), strict=True):
            seen.append(row)
            assert target == [float(name in rows[row][1]) for name in NAMES]
    assert sorted(seen) == sorted(chosen.tolist())


def test_overlap_compares_whole_lists(tmp_path):
    train = prepared(write(tmp_path, "a.jsonl"), tmp_path / "train")
    test = prepared(
        write(tmp_path, "b.jsonl", [("a joke", ["comedy"]), ("grief", ["drama", "war"]), ("new words", [])]),
        tmp_path / "test",
        like=train.path,
    )
    found = find_overlap(train, test)
    assert (found.shared, found.other_label) == (2, 1)


def test_the_commands(tmp_path):
    source, out = write(tmp_path, "a.csv"), str(tmp_path / "store")
    options = ["--label-separator", "|", "--tokenizer", "train:wordpiece:150", "--max-length", "16"]
    done = CliRunner().invoke(app, ["prepare", source, "--out", out, *options])
    assert done.exit_code == 0, done.output
    assert "labels: multi-label, 1.33 a row; comedy: 2, drama: 3, love: 1, war: 2" in done.output
    done = CliRunner().invoke(app, ["verify", out, "--deep"])
    assert "sound: 5 files" in done.output
    done = CliRunner().invoke(app, ["prepare", source, "--out", str(tmp_path / "like"), "--like", out])
    assert "overlap with" in done.output
    assert (
        "6 of 6 test rows (100.0%) agree in all tokens kept with a training row, 0 under another label" in done.output
    )


def test_inspecting_compares_whole_lists(tmp_path):
    rows = [*ROWS, ("a joke", ["comedy"]), ("grief", ["war", "drama"]), ("tears and a soldier", ["drama", "war"])]
    done = CliRunner().invoke(app, ["inspect", write(tmp_path, "a.csv", rows), "--label-separator", "|"])
    assert done.exit_code == 0, done.output
    assert "each set of labels counts as a class" in done.output
    assert "2 exact duplicates; 1 contradiction;" in done.output


def test_arrays():
    rows = [[3, 1, 1], [], [0], [2, 0]]
    offsets, ids = lists_of(rows)
    assert (offsets.tolist(), ids.tolist()) == ([0, 2, 2, 3, 5], [1, 3, 0, 0, 2])
    assert rarest(offsets, ids, [5, 2, 1, 2]).tolist() == [1, -1, 0, 2]
    assert multi_hot(offsets, ids, np.array([3, 1]), 4).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]
    assert counts_of(offsets, ids, np.array([0, 3]), 4).tolist() == [1, 1, 1, 1]
    empty = lists_of([[], []])
    assert rarest(*empty, [0, 0]).tolist() == [-1, -1]
    assert multi_hot(*empty, np.array([0, 1]), 2).tolist() == [[0, 0], [0, 0]]
