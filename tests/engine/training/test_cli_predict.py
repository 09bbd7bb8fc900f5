"""`penstock predict` and `evaluate`: every form in and out, every way for a row or a path to be wrong."""

import csv
import dataclasses
import gzip
import io
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zstandard
from command_line import penstock as in_a_shell
from subtested import as_subtests
from typer.testing import CliRunner

from penstock.engine.cli import app
from penstock.engine.cli import predict as cli_predict
from penstock.engine.data.prepare import begin
from penstock.engine.data.sources import open_source
from penstock.engine.errors import ConfigError, DiskError, RunError, SourceError, StoreError
from penstock.engine.files import CommittedFile
from penstock.engine.output_file import check_distinct, check_output
from penstock.engine.training.plain_values import plain_list
from penstock.engine.training.trained import TrainedRun

TINY = ["model.hidden_size=8", "model.embedding_size=8", "data.tokens_per_batch=256", "training.learning_rate=3e-2"]
TINY += ["training.epochs=2", "training.tensorboard=false"]
NAMES = ("bad", "fair", "good")


def penstock(*arguments, stdin=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "run"
    assert penstock("train", "--model", "lstm", "--train", store.path, "--out", folder, *TINY).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def trained(run):
    return TrainedRun.open(run)


ROWS = [
    {"id": 7, "text": "a lovely film", "note": 'x,"y"\nz', "score": 1.5},
    {"id": 8, "text": "awful and dull and broken " * 9, "note": "", "score": 2.0},
    {"id": 9, "text": "", "note": "ünï", "score": -3.25},
    {"id": 10, "text": "plain", "note": "[bold]", "score": 0.0},
]


def write(path: Path, rows) -> Path:
    """Rows in the form that the path's ending names."""
    form = path.name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[1]
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if form == "jsonl":
        content = "".join(json.dumps(row) + "\n" for row in rows)
    elif form == "txt":
        content = "".join(row["text"] + "\n" for row in rows)
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, rows[0], delimiter="\t" if form == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        content = out.getvalue()
    data = content.encode()
    data = gzip.compress(data) if path.suffix == ".gz" else data
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return path


def read(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    text = data.decode()
    if ".jsonl" in path.name:
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if ".tsv" in path.name else ","))


# Every form in, every form out, and those between which types are kept or lost.
FORMS = [(form, "csv") for form in ("csv", "tsv", "jsonl", "parquet", "jsonl.gz", "csv.zst", "txt")]
FORMS += [("csv", out) for out in ("tsv", "jsonl", "parquet", "csv.gz", "jsonl.zst")]
FORMS += [("jsonl", "jsonl"), ("parquet", "parquet"), ("jsonl", "parquet"), ("parquet", "jsonl"), ("txt", "jsonl.zst")]


@as_subtests("form, out", FORMS)
def test_every_form_in_and_out(run, trained, tmp_path, form, out):
    source, target = write(tmp_path / f"in.{form}", ROWS), tmp_path / f"out.{out}"
    assert penstock("predict", run, source, "--out", target).exit_code == 0
    found = read(target)
    expected = trained.predict([row["text"] for row in ROWS])
    assert [row["label"] for row in found] == expected["label"].to_pylist()
    for row, probability in zip(found, expected["probability"].to_pylist(), strict=True):
        assert float(row["probability"]) == pytest.approx(probability, rel=1e-4)
    columns = ["text"] if form == "txt" else list(ROWS[0])
    assert list(found[0]) == [*columns, "label", "probability"]
    for row, original in zip(found, ROWS, strict=True):
        for column in columns:
            assert str(row[column]) == str(original[column])
    if (form, out) in (("jsonl", "jsonl"), ("parquet", "parquet"), ("jsonl", "parquet"), ("parquet", "jsonl")):
        assert [[row[column] for column in columns] for row in found] == [list(row.values()) for row in ROWS]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, target.name])


def bad_sources(folder: Path):
    """Sources with unusable rows at places 2, 5 and 6 of seven."""
    ids = range(7)
    texts = ["plain", None, "lovely", "dull", 5, None, "awful"]
    jsonl = folder / "bad.jsonl"
    lines = [json.dumps({"id": i, "text": text}) for i, text in zip(ids, texts, strict=True)]
    lines[5] = '{"id": 5, "text": '
    jsonl.write_text("\n".join(lines) + "\n")
    yield jsonl, [0, 1, 2, 3, 4, None, 6]
    table = folder / "bad.csv"
    cells = ["0,plain", "1", "2,lovely", "3,dull", "4,a,b", b"5,\xff\xfe", "6,awful"]
    table.write_bytes(b"\n".join([b"id,text", *(c if isinstance(c, bytes) else c.encode() for c in cells)]) + b"\n")
    yield table, ["0", None, "2", "3", None, "5", "6"]
    parquet = folder / "bad.parquet"
    texts = [text if isinstance(text, str) else None for text in texts]
    pq.write_table(pa.table({"id": list(ids), "text": texts}), parquet, row_group_size=2)
    yield parquet, list(ids)


@pytest.mark.slow
@as_subtests("number, out", itertools.product(range(3), ["csv", "jsonl", "parquet"]))
def test_bad_rows_keep_their_places(run, tmp_path, number, out):
    source, ids = list(bad_sources(tmp_path))[number]
    target = tmp_path / f"out.{out}"
    result = penstock("predict", run, source, "--out", target)
    assert result.exit_code == 0
    assert "7 rows, 3 of them without a label" in result.stdout
    found = read(target)
    assert [row["label"] in NAMES for row in found] == [True, False, True, True, False, False, True]
    for row in (found[1], found[4], found[5]):
        assert row["label"] in (None, "")
        assert row["probability"] in (None, "")
    assert [str(row.get("id") or 0) for row in found] == [str(i or 0) for i in ids]

    with pytest.raises(SourceError, match=rf"{source.name}: (line|row) \d"):
        penstock("predict", run, source, "--out", tmp_path / "none.csv", "--bad-rows", "fail")
    assert not (tmp_path / "none.csv").exists()

    penstock("predict", run, source, "--out", target, "--bad-rows", "quarantine")
    assert len(read(tmp_path / f"out.{out}.bad-rows.jsonl")) == 3
    assert len(read(target)) == 7


@pytest.mark.slow
def test_order_and_count_over_several_windows(run, trained, tmp_path):
    rows = [{"id": i, "text": None if i % 97 == 3 else f"{'dull ' * (i * 7919 % 23)}{i}"} for i in range(9000)]
    source, target = write(tmp_path / "many.jsonl", rows), tmp_path / "out.parquet"
    penstock("predict", run, source, "--out", target, "--keep", "id")
    table = pq.read_table(target)
    assert table.column_names == ["id", "label", "probability"]
    assert table["id"].to_pylist() == list(range(9000))
    alone = trained.predict([row["text"] for row in rows[4090:4110]])
    assert table["label"].to_pylist()[4090:4110] == alone["label"].to_pylist()
    assert [label is None for label in table["label"].to_pylist()] == [row["text"] is None for row in rows]


SAME = {
    "itself": lambda source, folder: source,
    "a relative path": lambda source, folder: Path(os.path.relpath(source)),
    "a symbolic link": lambda source, folder: _link(folder / "sym.csv", source, os.symlink),
    "a hard link": lambda source, folder: _link(folder / "hard.csv", source, os.link),
    "through another folder": lambda source, folder: _link(folder / "elsewhere", folder, os.symlink) / source.name,
}


def _link(path, source, make):
    make(source, path)
    return path


@as_subtests("how", SAME)
def test_the_source_is_never_overwritten(run, texts, tmp_path, how):
    source = tmp_path / "same.csv"
    source.write_bytes(texts["test"].read_bytes())
    target = SAME[how](source, tmp_path)
    for reads, writes in ((source, target), (target, source)):
        with pytest.raises(ConfigError, match="which is being read"):
            penstock("predict", run, reads, "--out", writes)
        with pytest.raises(ConfigError, match="which is being read"):
            penstock("evaluate", run, "--data", reads, "--json", writes)
    assert source.read_bytes() == texts["test"].read_bytes()


@as_subtests("how", SAME)
def test_two_outputs_are_two_files(run, texts, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    first = tmp_path / "held.csv.bad-rows.jsonl"
    first.write_text("earlier")
    second = SAME[how](first, tmp_path)
    with pytest.raises(ConfigError, match=r"two outputs go to .*, one file"):
        penstock("evaluate", run, "--data", texts["test"], "--json", first, "--html", second)
    held = shutil.copy(texts["test"], "held.csv")
    with pytest.raises(ConfigError, match=r"two outputs go to .*, one file"):
        penstock("evaluate", run, "--data", held, "--bad-rows", "quarantine", "--json", second)
    Path("out.csv.bad-rows.jsonl").symlink_to("out.csv")
    with pytest.raises(ConfigError, match=r"two outputs go to .*, one file"):
        penstock("predict", run, held, "--out", "out.csv", "--bad-rows", "quarantine")
    assert first.read_text() == "earlier"
    check_distinct(["/dev/null", "/dev/null"])


def test_another_file_is_replaced_through_its_link(run, texts, tmp_path):
    (tmp_path / "old.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("old.csv")
    penstock("predict", run, texts["test"], "--out", tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert len(read(tmp_path / "old.csv")) == 90


CLASHES = [
    (["label"], ["source_label"]),
    (["probability", "label"], ["source_probability", "source_label"]),
    (["label", "source_label"], ["source_label_2", "source_label"]),
    (["Label", "label_2"], ["Label", "label_2"]),
    (["id", "id_2"], ["id", "id_2"]),
]


@pytest.mark.slow
@as_subtests("names, expected, out", [(*case, out) for case in CLASHES for out in ("csv", "jsonl", "parquet")])
def test_the_predictions_keep_their_names(run, tmp_path, names, expected, out):
    rows = [{"text": "lovely", **{name: f"mine {name}" for name in names}}]
    result = penstock("predict", run, write(tmp_path / "in.jsonl", rows), "--out", tmp_path / f"out.{out}")
    (row,) = read(tmp_path / f"out.{out}")
    assert list(row) == ["text", *expected, "label", "probability"]
    assert row["label"] in NAMES
    for name, new in zip(names, expected, strict=True):
        assert row[new] == f"mine {name}"
        assert (f"'{name}' comes out as '{new}'" in result.stderr) == (name != new)


def test_columns_with_the_same_name(run, tmp_path):
    (tmp_path / "in.csv").write_text("id,text,id,\n1,lovely,2,3\n")
    penstock("predict", run, tmp_path / "in.csv", "--out", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith("id,text,id_2,,label,probability\n1,lovely,2,3,")


def test_all_probabilities_and_the_most_probable_labels(run, texts, tmp_path):
    for out in ("csv", "jsonl", "parquet"):
        target = tmp_path / f"out.{out}"
        penstock("predict", run, texts["test"], "--out", target, "--probabilities", "--keep", "")
        for row in read(target):
            assert list(row) == ["label", "probability", *(f"probability_{name}" for name in NAMES)]
            values = [float(row[f"probability_{name}"]) for name in NAMES]
            assert sum(values) == pytest.approx(1, abs=1e-4)
            assert row["label"] == NAMES[values.index(max(values))]
            assert float(row["probability"]) == pytest.approx(max(values))
        penstock("predict", run, texts["test"], "--out", target, "--top-k", "9", "--keep", "text")
        for row in read(target):
            assert list(row)[1:] == ["label", "probability", "label_2", "probability_2", "label_3", "probability_3"]
            assert {row["label"], row["label_2"], row["label_3"]} == set(NAMES)
            assert float(row["probability"]) >= float(row["probability_2"]) >= float(row["probability_3"])


def test_values_of_every_type_come_through(run, tmp_path):
    table = pa.table(
        {
            "text": ["lovely", "dull"],
            "when": pa.array([date(2024, 2, 29), None]),
            "at": pa.array([1, 2**40 + 1], pa.timestamp("ns")),
            "price": pa.array([Decimal("1.50"), None]),
            "tags": [["a", "b"], []],
            "nested": [{"x": 1, "y": None}, None],
            "raw": pa.array([b"\xff", b"ok"]),
            "kind": pa.array(["p", "q"]).dictionary_encode(),
            "sure": [True, None],
            "big": pa.array([2**63 - 1, -5]),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    for out in ("csv", "jsonl", "parquet"):
        assert penstock("predict", run, tmp_path / "in.parquet", "--out", tmp_path / f"out.{out}").exit_code == 0
    assert pq.read_table(tmp_path / "out.parquet").select(table.column_names).equals(table)
    (first, second) = read(tmp_path / "out.jsonl")
    assert (first["when"], first["price"], first["tags"], first["nested"]) == (
        "2024-02-29", "1.50", ["a", "b"], {"x": 1, "y": None},
    )  # fmt: skip
    assert (first["raw"], first["kind"], first["sure"], first["big"]) == ("\\xff", "p", True, 2**63 - 1)
    assert (second["when"], second["nested"], second["sure"]) == (None, None, None)
    row = read(tmp_path / "out.csv")[0]
    assert (row["tags"], row["nested"], row["sure"]) == ('["a", "b"]', '{"x": 1, "y": null}', "true")


def test_fields_that_differ_from_line_to_line(run, tmp_path):
    rows = [{"text": "a", "n": 1}, {"text": "b", "late": "\ud800", "n": "two"}, {"text": "c", "n": 2**80, "m": [1]}]
    source = write(tmp_path / "in.jsonl", rows)
    for out in ("jsonl", "csv", "parquet"):
        penstock("predict", run, source, "--out", tmp_path / f"out.{out}")
    found = read(tmp_path / "out.jsonl")
    assert [{k: v for k, v in row.items() if k not in ("label", "probability")} for row in found] == rows
    for out in ("csv", "parquet"):
        found = read(tmp_path / f"out.{out}")
        assert list(found[0]) == ["text", "n", "late", "m", "label", "probability"]
        assert [row["n"] for row in found] == ["1", "two", str(2**80)]
        assert found[1]["late"] == "\\ud800"
        assert found[2]["m"] == "[1]"


NAMES_WITH_HALVES = {
    "alone": ([{"\ud800": 1}], [["\\ud800"]], 0),
    "the second half": ([{"a\udc80": 1}], [["a\\udc80"]], 0),
    "a whole character": ([{"\U0001f600": 1}], [["\U0001f600"]], 0),
    "among others": ([{"ü": 1}, {"x": 2, "\ud800y": [1]}], [["ü"], ["x", "\\ud800y"]], 0),
    "as another is spelled": ([{"\\ud800": 1}, {"\ud800": 2, "\\ud800": 3}], [["\\ud800"], []], 1),
}


@as_subtests("case, out", itertools.product(NAMES_WITH_HALVES, ["csv", "jsonl", "parquet"]))
def test_names_that_hold_half_a_character_are_spelled_out(run, tmp_path, case, out):
    extras, names, bad = NAMES_WITH_HALVES[case]
    rows = [{"text": "lovely", "label": "good", **extra} for extra in extras]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / f"out.{out}"
    assert penstock("predict", run, source, "--out", target).exit_code == 0
    found = read(target)
    for row, extra, spelled in zip(found, extras, names, strict=True):
        assert [str(row[name]) for name in spelled] == list(map(str, extra.values()))[: len(spelled)]
    assert sum(row["label"] in (None, "") for row in found) == bad
    if not bad:
        assert "accuracy" in penstock("evaluate", run, "--data", source).stdout


MIXED_NUMBERS = {
    "ids": ([2**53 + 1, 1.5], [str(2**53 + 1), "1.5"]),
    "negative ids": ([-(2**53) - 1, 2, 0.5], [str(-(2**53) - 1), "2", "0.5"]),
    "not even in 64 bits": ([2**64 + 1, 1.5], [str(2**64 + 1), "1.5"]),
    "ids alone": ([2**53 + 1, 1], [str(2**53 + 1), "1"]),
    "small ones": ([2**53, 1.5], [str(float(2**53)), "1.5"]),
    "a null among them": ([None, 2**53 + 1, 1.5], ["", str(2**53 + 1), "1.5"]),
}


@as_subtests("case, out", itertools.product(MIXED_NUMBERS, ["csv", "parquet"]))
def test_no_integer_is_rounded(run, tmp_path, case, out):
    values, expected = MIXED_NUMBERS[case]
    source = write(tmp_path / "in.jsonl", [{"text": "dull", "id": value} for value in values])
    assert penstock("predict", run, source, "--out", tmp_path / f"out.{out}").exit_code == 0
    found = [row["id"] for row in read(tmp_path / f"out.{out}")]
    assert ["" if value is None else str(value) for value in found] == expected


SECOND = pa.duration("us")
DURATIONS = {
    "s": (pa.array([1, None, -90], pa.duration("s")), ["PT1S", None, "-PT90S"]),
    "ms": (pa.array([1500, 0, -1], pa.duration("ms")), ["PT1.5S", "PT0S", "-PT0.001S"]),
    "us": (pa.array([1_000_000, 1], SECOND), ["PT1S", "PT0.000001S"]),
    "ns": (pa.array([1, 2**63 - 1], pa.duration("ns")), ["PT0.000000001S", "PT9223372036.854775807S"]),
    "dictionary": (pa.array([10**6, None], SECOND).dictionary_encode(), ["PT1S", None]),
    "fixed list": (pa.array([[10**6, None], None], pa.list_(SECOND, 2)), [["PT1S", None], None]),
    "struct": (
        pa.array([{"x": 10**6, "y": [0]}, None, {"x": None, "y": None}],
                 pa.struct([("x", SECOND), ("y", pa.list_(SECOND))])),
        [{"x": "PT1S", "y": ["PT0S"]}, None, {"x": None, "y": None}],
    ),
    "map": (pa.array([[("a", 10**6)], None, []], pa.map_(pa.string(), SECOND)), [[["a", "PT1S"]], None, []]),
    **{
        kind.__name__: (pa.array([[10**6, None], None, []], kind(SECOND)), [["PT1S", None], None, []])
        for kind in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)
    },
}  # fmt: skip


@as_subtests("kind", DURATIONS)
def test_durations_keep_their_unit(kind):
    column, expected = DURATIONS[kind]
    assert plain_list(column) == expected
    assert plain_list(column.slice(1)) == expected[1:]


@as_subtests("out", ["csv", "jsonl"])
def test_durations_come_out_with_their_unit(run, tmp_path, out):
    table = pa.table({"text": ["dull"], "took": pa.array([10**6], SECOND), "each": pa.array([[1]], pa.list_(SECOND))})
    pq.write_table(table, tmp_path / "in.parquet")
    assert penstock("predict", run, tmp_path / "in.parquet", "--out", tmp_path / f"out.{out}").exit_code == 0
    (row,) = read(tmp_path / f"out.{out}")
    assert row["took"] == "PT1S"
    assert row["each"] in (["PT0.000001S"], '["PT0.000001S"]')


WRITING = [
    ["predict", "RUN", "TEXTS", "--out", "out.csv"],
    ["predict", "RUN", "TEXTS", "--out", "out.parquet", "--bad-rows", "quarantine"],
    ["predict", "RUN", "TEXTS", "--out", "out.jsonl.gz"],
    ["evaluate", "RUN", "--data", "TEXTS", "--json", "out.json", "--html", "out.html"],
    ["inspect", "TWICE", "--out", "out.jsonl"],
]


@as_subtests("arguments, signum", itertools.product(WRITING, [signal.SIGTERM, signal.SIGHUP]))
@pytest.mark.usefixtures("heard_signals")
def test_a_signal_leaves_no_half_written_file(run, texts, tmp_path, monkeypatch, arguments, signum):
    write_part = CommittedFile.write

    def stopped(file, data):
        write_part(file, data)
        signal.raise_signal(signum)
        signal.raise_signal(signal.SIGTERM)  # at once after it: one request

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CommittedFile, "write", stopped)
    twice = write(tmp_path / "twice.jsonl", [{"text": "dull", "label": "bad"}] * 2)
    places = {"RUN": run, "TEXTS": texts["test"], "TWICE": twice}
    done = in_a_shell(*(places.get(part, part) for part in arguments))
    assert done.returncode == 128 + signum, done.stderr
    assert done.stderr.splitlines()[-1] == f"penstock: stopped by {signum.name}"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [twice]
    assert signal.getsignal(signum) is signal.SIG_DFL


@pytest.mark.usefixtures("heard_signals")
def test_an_ignored_signal_stays_ignored(run, texts, tmp_path, monkeypatch):
    write_part = CommittedFile.write
    monkeypatch.setattr(CommittedFile, "write", lambda *given: (signal.raise_signal(signal.SIGHUP), write_part(*given)))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert in_a_shell("predict", run, texts["test"], "--out", tmp_path / "out.csv").returncode == 0
    assert len(read(tmp_path / "out.csv")) == 90


@as_subtests("folder", ["", "texts", "store", "empty"])
def test_a_source_without_a_name_is_not_the_current_folder(run, texts, store, tmp_path, monkeypatch, folder):
    (tmp_path / "texts").mkdir()
    (tmp_path / "empty").mkdir()
    shutil.copy(texts["test"], tmp_path / "texts")
    monkeypatch.chdir(store.path if folder == "store" else tmp_path / folder)
    with pytest.raises(SourceError, match="no such file"):
        penstock("predict", run, "", "--out", "-")
    with pytest.raises(SourceError, match="no such file"):
        penstock("evaluate", run, "--data", "")


@as_subtests("name", ["best", "last", "checkpoints", "checkpoints/step", "store", "store/tokenizer", "preparing"])
def test_nothing_is_written_into_a_checkpoint_or_a_store(run, texts, store, tmp_path, name):
    folder = run / name
    if name == "checkpoints/step":
        folder = (run / "best").resolve()
    elif name == "preparing":
        folder = tmp_path / name
        begin(str(texts["test"]), folder, tokenizer=str(store.path / "tokenizer"), progress=False)
    elif name.startswith("store"):
        folder = store.path.parent / name.replace("store", store.path.name)
    before = sorted(folder.iterdir())
    other = shutil.copytree(run, tmp_path / "other", symlinks=True)  # not the run that it belongs to
    for of in (run, other):
        with pytest.raises(
            ConfigError, match=r"is in the (checkpoints? |checkpoints of |store ).*: write somewhere else"
        ):
            penstock("predict", of, texts["test"], "--out", folder / "x.csv")
        with pytest.raises(
            ConfigError, match=r"is in the (checkpoints? |checkpoints of |store ).*: write somewhere else"
        ):
            penstock("evaluate", of, "--data", texts["test"], "--json", folder / "x.json")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["checkpoint.json", "preparing.json"])
@pytest.mark.parametrize("content", ["{}", "[1", '{"format": 1, "files": {}}'])
def test_another_programs_files_are_no_checkpoint_and_no_store(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (tmp_path / "out").mkdir()
    check_output(str(tmp_path / "out" / "x.csv"), [])


def test_an_output_in_a_home_that_is_not_there():
    with pytest.raises(DiskError, match=r"~nobody-here/x\.csv: cannot be written: there is no folder"):
        check_output("~nobody-here/x.csv", [])
    with pytest.raises(ConfigError, match=r"two outputs go to ~nobody-here/x\.csv"):
        check_distinct(["~nobody-here/x.csv"] * 2)


def test_a_runs_own_folder_takes_predictions(run, texts, tmp_path):
    own = shutil.copytree(run, tmp_path / "own", symlinks=True)
    assert penstock("predict", own, texts["test"], "--out", own / "x.csv").exit_code == 0


PIPES = [("csv", None), ("jsonl", None), ("txt", None), ("parquet", "parquet"), ("tsv", "jsonl")]


@as_subtests("form, out", PIPES)
def test_a_pipe_on_both_sides(run, tmp_path, form, out):
    """Nothing else may stand on stdout."""
    source = write(tmp_path / f"in.{form}", ROWS)
    options = ["--out-format", out] if out else []
    result = in_a_shell("predict", run, "-", "--format", form, "--out", "-", *options, stdin=source.read_bytes())
    assert result.returncode == 0, result.stderr
    shown = out or ("jsonl" if form == "txt" else form)
    target = tmp_path / f"result.{shown}"
    target.write_bytes(result.raw)
    assert [row["label"] in NAMES for row in read(target)] == [True] * 4
    assert "4 rows" in result.stderr


@pytest.mark.slow
def test_a_pipe_of_a_real_shell(run, tmp_path):
    """And nothing of what is imported writes to stdout."""
    source = write(tmp_path / "in.parquet", ROWS)
    program = Path(sys.executable).with_name("penstock")
    line = f"cat {source} | {program} predict {run} - --format parquet --out - | cat > out.parquet"
    subprocess.run(line, shell=True, cwd=tmp_path, timeout=120, check=True)
    assert [row["label"] in NAMES for row in read(tmp_path / "out.parquet")] == [True] * 4


WRONG = [
    (["predict", "RUN", "TEXTS", "--out", "out.dat"], ConfigError, "the ending names the format"),
    (["predict", "RUN", "TEXTS", "--out", "out.txt"], ConfigError, "the ending names the format"),
    (["predict", "RUN", "TEXTS", "--out", "out.parquet.gz"], ConfigError, "compressed in itself"),
    (["predict", "RUN", "TEXTS", "--out", "folder.csv"], ConfigError, "is a folder"),
    (["predict", "RUN", "TEXTS", "--out", "no/where/out.csv"], DiskError, "there is no folder"),
    (["predict", "RUN", "TEXTS", "--out", "RUN/metrics.jsonl"], ConfigError, "belongs to"),
    (["predict", "RUN", "no.csv", "--out", "out.csv"], SourceError, "no such file"),
    (["predict", "no-run", "TEXTS", "--out", "out.csv"], RunError, "holds no run"),
    (["predict", "RUN", "TEXTS", "--out", "out.csv", "--text", "body"], SourceError, "no column 'body'"),
    (["predict", "RUN", "TEXTS", "--out", "out.csv", "--keep", "text,nix"], SourceError, "no column 'nix'"),
    (["predict", "RUN", "TEXTS", "--out", "out.csv", "--bad-rows", "drop"], ConfigError, "must be one of keep, fail"),
    (["predict", "RUN", "TEXTS", "--out", "-", "--bad-rows", "quarantine"], ConfigError, "give --out one"),
    (["predict", "RUN", "TEXTS", "--out", "out.csv", "--top-k", "2", "--probabilities"], ConfigError, "choose one"),
    (["predict", "RUN", "-", "--out", "out.csv"], ConfigError, "stdin: say what form it has"),
    (["predict", "RUN", "-", "--format", "xlsx", "--out", "out.csv"], ConfigError, "--format xlsx: unknown"),
    (["predict", "RUN", "TEXTS", "--out", "out.csv", "--out-format", "parquet"], ConfigError, "leave out one"),
    (["predict", "RUN", "TEXTS", "--out", "out.csv", "--format", "csv"], ConfigError, "--format has no effect"),
    (["predict", "RUN", "TEXTS", "--out", "-", "--format", "xlsx"], ConfigError, "xlsx: predictions are written as"),
    (["evaluate", "RUN", "--data", "no.csv"], SourceError, "no such file"),
    (["evaluate", "no-run", "--data", "TEXTS"], RunError, "holds no run"),
    (["evaluate", "RUN", "--data", "TEXTS", "--label", "nix"], SourceError, "no column 'nix'"),
    (["evaluate", "RUN", "--data", "TEXTS", "--bad-rows", "keep"], ConfigError, "must be one of fail, skip"),
    (["evaluate", "RUN", "--data", "TEXTS", "--json", "no/where.json"], DiskError, "there is no folder"),
    (["evaluate", "RUN", "--data", "TEXTS", "--html", "RUN/run.json"], ConfigError, "belongs to"),
    (["evaluate", "RUN", "--data", "TEXTS", "--json", "x", "--html", "./x"], ConfigError, "x and ./x, one file"),
    (["evaluate", "RUN", "--data", "STORE", "--text", "text"], ConfigError, "is a store"),
    (["evaluate", "RUN", "--data", "empty-folder"], StoreError, "empty-folder"),
    (["evaluate", "RUN", "--data", "lines.txt"], SourceError, "holds no labels"),
]


@pytest.mark.slow
@as_subtests("arguments, error, message", WRONG)
def test_mistakes_show_before_the_model_is_loaded(run, texts, store, tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainedRun, "open", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "empty-folder").mkdir()
    (tmp_path / "lines.txt").write_text("lovely\n")
    before = set(tmp_path.rglob("*")) | set(run.rglob("*"))
    places = {"RUN": str(run), "TEXTS": str(texts["test"]), "STORE": str(store.path)}
    arguments = [places.get(part, part.replace("RUN/", f"{run}/")) for part in arguments]
    with pytest.raises(error, match=message):
        penstock(*arguments)
    assert set(tmp_path.rglob("*")) | set(run.rglob("*")) == before


def test_mistakes_show_before_torch_is_imported(run, texts):
    commands = [
        ["predict", str(run), str(texts["test"]), "--out", "/no/such/folder/out.csv"],
        ["evaluate", str(run), "--data", str(texts["test"]), "--json", "/no/such/folder/out.json"],
    ]
    code = (
        "import sys; from penstock.engine.cli import app, PenstockError\n"
        f"for command in {commands}:\n"
        " try: app(command)\n"
        " except PenstockError as e: print(e.exit_code, *(name in sys.modules for name in ('torch', 'transformers')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["9", "False", "False"] * 2, result.stderr


@pytest.mark.slow
def test_a_file_with_a_header_only(run, store, tmp_path):
    for form, content in {"csv": "text,label,id\n", "tsv": "text\tlabel\tid\n"}.items():
        (tmp_path / f"h.{form}").write_text(content)
    none = pa.array([], pa.string())
    pq.write_table(pa.table({"text": none, "label": none, "id": none}), tmp_path / "h.parquet")
    for form in ("csv", "tsv", "parquet"):
        with pytest.raises(SourceError, match="empty: no row in it"):
            penstock("evaluate", run, "--data", tmp_path / f"h.{form}")
        for out in ("csv", "jsonl", "parquet"):
            result = penstock("predict", run, tmp_path / f"h.{form}", "--out", tmp_path / f"out.{out}")
            assert "0 rows" in result.stdout
            assert read(tmp_path / f"out.{out}") == []
    assert (tmp_path / "out.csv").read_text() == "text,source_label,id,label,probability\n"
    assert pq.read_schema(tmp_path / "out.parquet").names == ["text", "source_label", "id", "label", "probability"]


def test_evaluate_leaves_out_what_it_cannot_use_by_choice(run, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(texts["test"], newline="") as file:
        rows = [{**row, "id": number} for number, row in enumerate(csv.DictReader(file))]
    good = penstock("evaluate", run, "--data", write(tmp_path / "good.jsonl", rows)).stdout
    rows.insert(0, {"id": -1, "label": "good", "text": None})
    rows.insert(40, {"id": -2, "label": "splendid", "text": "a film"})
    rows.append({"id": -3, "label": None, "text": "a film"})
    source = write(tmp_path / "mixed.jsonl", rows)
    with pytest.raises(SourceError, match="line 1: 'text' is null"):
        penstock("evaluate", run, "--data", source)
    for choice in ("skip", "quarantine"):
        result = penstock("evaluate", run, "--data", source, "--bad-rows", choice)
        first, rest = result.stdout.split("\n", 1)
        assert first == good.split("\n", 1)[0] + "; 3 rows could not be used"
        assert rest == good.split("\n", 1)[1]
        assert "line 41: the label 'splendid' was not there in training (bad, fair, good)" in result.stderr
    aside = read(tmp_path / "mixed.jsonl.bad-rows.jsonl")
    assert [row["line"] for row in aside] == [1, 41, 93]
    bad = write(tmp_path / "only-bad.jsonl", [rows[0]])
    with pytest.raises(SourceError, match="no usable row"):
        penstock("evaluate", run, "--data", bad, "--bad-rows", "skip")


def test_evaluate_writes_json_and_a_page(run, texts, tmp_path):
    result = penstock("evaluate", run, "--data", texts["test"], "--json", "-", "--html", tmp_path / "page.html")
    figures = json.loads(result.stdout)
    assert [each["name"] for each in figures["classes"]] == list(NAMES)
    assert sum(map(sum, figures["confusion"]["rows_are_labels"])) == figures["num_examples"] == 90
    hits = sum(figures["confusion"]["rows_are_labels"][i][i] for i in range(3))
    assert figures["accuracy"] == pytest.approx(hits / 90)
    assert figures["majority_share"] == pytest.approx(1 / 3)
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert f"{figures['accuracy']:.4f}" in page


def test_from_python(trained, tmp_path):
    table = trained.predict(["a lovely film", None, "dull"], top_k=2)
    assert table.column_names == ["label", "probability", "label_2", "probability_2"]
    assert table["label"].to_pylist()[1] is None
    assert table["probability"].null_count == 1
    assert trained.predict(iter(["a lovely film"]))["label"].to_pylist() == table["label"].to_pylist()[:1]
    assert trained.predict([]).num_rows == 0
    source = open_source(str(write(tmp_path / "in.jsonl", ROWS)), need_label=False)
    assert trained.predict(source, keep=["id"], probabilities=True).column_names == [
        "id", "label", "probability", "probability_bad", "probability_fair", "probability_good",
    ]  # fmt: skip

    class Frame:  # as pandas has them: iterating gives the names of the columns
        columns = ("text", "id")

        def __iter__(self):
            return iter(self.columns)

    for wrong in ("a single text", ["fine", 3], {"a lovely film": 1}, {"a lovely film"}, Frame(), None, 3):
        with pytest.raises(TypeError, match="text"):
            trained.predict(wrong)
    with pytest.raises(ValueError, match="top_k"):
        trained.predict(["dull"], top_k=0)
    expected = trained.predict(["a lovely film", None])["label"].to_pylist()
    column = pa.array(["a lovely film", None])
    columns = [pd.Series(["a lovely film", None], dtype=kind) for kind in ("object", "string", "category")]
    columns += [pd.Index(columns[0]), pd.Categorical(columns[0]), pd.array(columns[0], "string")]
    for same in (column, pa.chunked_array([column]), ["a lovely film", float("nan")], *columns):
        assert trained.predict(same)["label"].to_pylist() == expected
    from datasets import Dataset

    table = pa.table({"id": [7, 8], "text": column})
    for same in (table, table.to_batches()[0], Dataset(table)):
        found = trained.predict(same)
        assert (found["id"].to_pylist(), found["label"].to_pylist()) == ([7, 8], expected)
    of_bodies = dataclasses.replace(trained, data={**trained.data, "text": "body"})
    assert of_bodies.predict(table)["label"].to_pylist() == expected
    with pytest.raises(SourceError, match="column 'body' holds int64, not text"):
        of_bodies.predict(pa.table({"body": [7, 8], "text": column}))


# What stdin is, what stdout is appended to.
STREAMS = [
    (["same.csv", "--out", "-"], None, "same.csv", 6, "stdout is same.csv, which is being read"),
    (["-", "--format", "csv", "--out", "same.csv"], "same.csv", None, 6, "which is being read"),
    (["same.csv", "--out", "/dev/null", "--format", "csv"], None, None, 0, "90 rows"),
    (["-", "--format", "csv", "--out", "out.csv"], "/dev/null", None, 3, "stdin: empty"),
]


@as_subtests(
    "asked, form",
    [
        (("a.csv", "-", None, None), "csv"),
        (("a.csv.gz", "-", None, None), "csv"),
        (("a.parquet", "-", None, None), "jsonl"),
        (("a.csv", "-", "jsonl", None), "jsonl"),
        (("a.csv", "-", "jsonl", "tsv"), "tsv"),
        (("a.csv", "b.parquet", None, "parquet"), "parquet"),
        (("a.csv", "b", "tsv", None), "tsv"),
        (("-", "-", "tsv", None), "tsv"),
        (("-", "-", "txt", None), "jsonl"),
        (("-", "-", "txt", "csv"), "csv"),
        (("-", "b.parquet", "csv", None), "parquet"),
        (("-", "b", "csv", None), "csv"),
    ],
)
def test_the_format_of_an_output(asked, form):
    assert cli_predict._output_format(*asked) == form


def test_numbers_that_json_has_not(run, tmp_path):
    table = pa.table({"text": ["a", "b", "c"], "price": [1.5, math.nan, math.inf], "all": [[1.0], [math.nan], None]})
    pq.write_table(table, tmp_path / "in.parquet")
    penstock("predict", run, tmp_path / "in.parquet", "--out", tmp_path / "out.jsonl")
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "out.jsonl").open()]
    assert [(line["price"], line["all"]) for line in lines] == [(1.5, [1.0]), (None, [None]), (None, None)]


@as_subtests("arguments, stdin, stdout, code, message", STREAMS)
def test_streams_and_devices(run, texts, tmp_path, monkeypatch, arguments, stdin, stdout, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "same.csv").write_bytes(texts["test"].read_bytes())
    streams = {"stdin": Path(stdin)} if stdin else {}
    result = in_a_shell("predict", run, *arguments, **streams, append_to=Path(stdout) if stdout else None)
    assert result.returncode == code, result.stderr
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "same.csv").read_bytes() == texts["test"].read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["same.csv"]


def test_folders_and_patterns_are_one_source(run, trained, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "b.csv").write_bytes("id;text;größe\n3;Größe lovely;1\n4;dull;2\n".encode("cp1252"))
    (folder / "a.csv").write_bytes("id;text;extra\n1;plain;x\n2;awful, dull;y\n".encode("cp1252"))
    expected = trained.predict(["plain", "awful, dull", "Größe lovely", "dull"])
    for number, source in enumerate((folder, folder / "*.csv")):
        for separator in ([], ["--separator", ";"]):
            out = tmp_path / f"out{number}.jsonl"
            result = penstock("predict", run, source, "--out", out, "--encoding", "cp1252", *separator)
            assert result.exit_code == 0, result.stderr
            rows = read(out)
            assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
            assert [row["label"] for row in rows] == expected["label"].to_pylist()
            assert [row.get("extra") for row in rows] == ["x", "y", None, None]
            assert [row.get("größe") for row in rows] == [None, None, "1", "2"]
    with pytest.raises(ConfigError, match="is being read"):
        penstock("predict", run, folder / "b.csv", "--out", folder / "b.csv", "--encoding", "cp1252")
    with pytest.raises(ConfigError, match="is being read"):
        penstock("predict", run, folder, "--out", folder / "a.csv", "--encoding", "cp1252")


def test_several_files_are_evaluated_as_one(run, trained, tmp_path, texts):
    folder = tmp_path / "parts"
    folder.mkdir()
    header, *lines = texts["test"].read_text().splitlines()
    for name, part in (("a", lines[:40]), ("b", lines[40:])):
        body = "\n".join([header, *part]).replace(",", "^")
        (folder / f"{name}.csv").write_bytes(body.encode("utf-16-le"))
    expected = trained.evaluate_source(open_source(str(texts["test"]))).to_json()
    options = ["--separator", "^", "--encoding", "utf-16-le"]
    for data in (folder, folder / "?.csv"):
        result = penstock("evaluate", run, "--data", data, "--json", "-", *options)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert found["confusion"] == expected["confusion"]


@pytest.mark.parametrize("option", [["--separator", ";"], ["--encoding", "cp1252"]])
def test_a_store_is_read_in_one_way(run, store, option):
    with pytest.raises(ConfigError, match="are for raw data"):
        penstock("evaluate", run, "--data", store.path, *option)
