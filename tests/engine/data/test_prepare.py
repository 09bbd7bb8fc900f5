"""What prepare writes, what it refuses, and what it does when it is run again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from subtested import as_subtests
from typer.testing import CliRunner

from penstock.engine import cli
from penstock.engine.data import parts
from penstock.engine.data import prepare as preparing
from penstock.engine.data.parts import finalize, write_part
from penstock.engine.data.prepare import begin, prepare, prepare_part
from penstock.engine.data.sources.text import CsvSource
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizers import load_tokenizer
from penstock.engine.errors import ConfigError, SourceError, StoreError, TokenizerError


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_csv(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return str(path)


def test_store_holds_the_rows(store, reviews_file, tokenizer_path):
    rows = lines(reviews_file)
    tokenizer = load_tokenizer(tokenizer_path)
    assert store.num_examples == len(rows) == 103
    assert store.label_names == ["0", "1", "2"]
    assert store.labels.tolist() == [row["label"] for row in rows]
    assert store.labels.dtype == np.int64
    expected = tokenizer([row["text"] for row in rows])["input_ids"]
    assert store.lengths.tolist() == [len(ids) for ids in expected]
    assert store.num_tokens == sum(map(len, expected))
    assert [store.tokens(i).tolist() for i in range(103)] == expected
    assert store.tokens(-1).tolist() == expected[-1]
    assert store.source_of(0) == (reviews_file, 1)
    assert store.source_of(102) == (reviews_file, 103)
    manifest = store.manifest
    assert len(manifest.shards) == 4
    assert manifest.label_counts == [35, 34, 34]
    assert manifest.empty_texts == sum(row["text"] == "" for row in rows) > 0
    assert (manifest.truncated_texts, manifest.bad_rows) == (0, 0)
    assert store.vocab_size == len(tokenizer)
    assert store.tokenizer()("the film")["input_ids"] == tokenizer("the film")["input_ids"]


def test_only_the_store_is_left(store):
    names = sorted(path.name for path in store.path.iterdir())
    shards = [f"shard-0000{i}.arrow" for i in range(4)]
    assert names == ["index.arrow", "manifest.json", *shards, "tokenizer"]


def test_the_same_bytes_twice(make_store):
    assert contents(make_store().path) == contents(make_store().path)


@pytest.mark.parametrize("tokenizer", ["train:bpe:300", "train:wordpiece:300"])
def test_learned_tokenizers(make_store, tokenizer):
    first, second = make_store(tokenizer=tokenizer), make_store(tokenizer=tokenizer)
    assert contents(first.path) == contents(second.path)
    assert first.manifest.tokenizer.origin == tokenizer
    assert list(first.verify(deep=True))
    assert not (first.tokens(5) == first.tokenizer().unk_token_id).any()


def test_shards_do_not_change_what_models_see(make_store):
    whole, cut = make_store(rows_per_shard=1000), make_store(rows_per_shard=7)
    assert whole.tokens(50).tolist() == cut.tokens(50).tolist()
    assert whole.labels.tolist() == cut.labels.tolist()


def test_cutting_is_counted(make_store):
    whole = make_store()
    cut = make_store(max_length=10)
    ends = make_store(max_length=10, truncation="head+tail")
    long = int((whole.lengths > 10).sum())
    assert cut.manifest.truncated_texts == ends.manifest.truncated_texts == long > 0
    assert cut.lengths.max() == 10
    row = int(whole.lengths.argmax())
    ids = whole.tokens(row).tolist()
    assert cut.tokens(row).tolist() == [*ids[:9], ids[-1]]
    assert ends.tokens(row).tolist() == [*ids[:3], *ids[-7:]]
    assert len({whole.fingerprint, cut.fingerprint, ends.fingerprint}) == 3


@pytest.mark.slow
def test_large_vocabulary_takes_32_bits(tmp_path, reviews_file, make_store):
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(65536)} | {"film": 65536, "[UNK]": 65537}
    for size, dtype in ((65538, "uint32"), (65536, "uint16")):
        words = {word: i if i < size else i - 2 for word, i in vocabulary.items() if i < 65534 or i >= 65536}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path / dtype)
        made = make_store(tokenizer=str(tmp_path / dtype))
        assert made.manifest.dtype == dtype
        assert made.vocab_size == size
        first = next(i for i, row in enumerate(lines(reviews_file)) if "film" in row["text"])
        assert size - 2 in made.tokens(first).tolist()
        assert list(made.verify(deep=True))


def test_several_sources(tmp_path, tokenizer_path):
    a = write_csv(tmp_path / "a.csv", [("one", "1"), ("two", "2")])
    b = write_csv(tmp_path / "b.csv", [("three", "3.0")])
    made = prepare([a, b], tmp_path / "out", tokenizer=tokenizer_path, progress=False)
    assert made.label_names == ["1", "2", "3"]
    assert [made.source_of(i) for i in range(3)] == [(a, 2), (a, 3), (b, 2)]


def test_like_takes_tokenizer_and_labels(tmp_path, make_store):
    train = make_store(max_length=12, truncation="head+tail")
    test = prepare(
        write_csv(tmp_path / "test.csv", [("the film", "2"), ("was good " * 20, "0.0")]),
        tmp_path / "test",
        like=train.path,
        progress=False,
    )
    assert test.label_names == train.label_names
    assert test.labels.tolist() == [2, 0]
    assert test.max_length == 12
    assert test.manifest.label_counts == [1, 0, 1]
    assert test.manifest.tokenizer.fingerprint == train.manifest.tokenizer.fingerprint
    assert test.tokens(0).tolist() == train.tokenizer()("the film")["input_ids"]


def test_like_with_one_label(tmp_path, store):
    test = prepare(write_csv(tmp_path / "a.csv", [("a", "1")]), tmp_path / "out", like=store.path, progress=False)
    assert test.labels.tolist() == [1]


def test_unseen_label(tmp_path, store):
    source = write_csv(tmp_path / "a.csv", [("a", "1"), ("b", "7"), ("c", "2")])
    with pytest.raises(SourceError, match=r"a.csv: line 3: label '7' is not among the labels of the training data"):
        prepare(source, tmp_path / "out", like=store.path, progress=False)
    made = prepare(source, tmp_path / "out", like=store.path, bad_rows="quarantine", progress=False)
    assert made.labels.tolist() == [1, 2]


def test_bad_rows_fail_with_their_place(tmp_path, tokenizer_path):
    source = write_csv(tmp_path / "a.csv", [("a", "1"), ("b", ""), ("c", "2")])
    with pytest.raises(SourceError, match=r"a.csv: line 3: 'label' is empty"):
        prepare(source, tmp_path / "out", tokenizer=tokenizer_path, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv"]


def test_bad_rows_are_set_aside(tmp_path, tokenizer_path):
    source = write_csv(tmp_path / "a.csv", [("a", "1"), ("b", ""), ("c", "2"), ("d,e", "1")])
    made = prepare(source, tmp_path / "out", tokenizer=tokenizer_path, bad_rows="quarantine", progress=False)
    assert made.labels.tolist() == [0, 1]
    assert made.manifest.bad_rows == 2
    assert lines(f"{tmp_path}/out.bad-rows.jsonl") == [
        {"source": source, "line": 3, "reason": "'label' is empty", "excerpt": "b"},
        {"source": source, "line": 5, "reason": "3 fields where the header has 2", "excerpt": "d,e,1"},
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "empty: no row in it"),
        ([("a", "1"), ("b", "1.0")], "only one label, '1'"),
        ([(f"t{i}", f"id{i}") for i in range(10_001)], "more than 10000 different labels in column 'label'"),
    ],
)
def test_useless_sources(tmp_path, tokenizer_path, rows, message):
    with pytest.raises(SourceError, match=message):
        prepare(write_csv(tmp_path / "a.csv", rows), tmp_path / "out", tokenizer=tokenizer_path, progress=False)
    assert not (tmp_path / "out").exists()


def test_nothing_usable(tmp_path, tokenizer_path):
    source = write_csv(tmp_path / "a.csv", [("a", ""), ("b", "")])
    with pytest.raises(SourceError, match="no usable row"):
        prepare(source, tmp_path / "out", tokenizer=tokenizer_path, bad_rows="quarantine", progress=False)


def test_million_characters(tmp_path, tokenizer_path):
    source = write_csv(tmp_path / "a.csv", [("film " * 200_000, "1"), ("short", "2")])
    made = prepare(source, tmp_path / "out", tokenizer=tokenizer_path, max_length=64, progress=False)
    assert made.lengths[0] == 64
    assert made.manifest.truncated_texts == 1


@as_subtests(
    "options, error, message",
    [
        ({}, ConfigError, "say which tokenizer"),
        ({"tokenizer": "no-such/tokenizer"}, TokenizerError, "no-such/tokenizer"),
        ({"tokenizer": "train:bpe:12"}, TokenizerError, "tokens at least"),
        ({"like": "/no/such/store"}, StoreError, "no such store"),
        ({"like": "STORE", "tokenizer": "x"}, ConfigError, "leave --tokenizer out"),
        ({"like": "STORE", "max_length": 3}, ConfigError, "has max length 4096, not 3"),
        ({"tokenizer": "TOKENIZER", "max_length": 2}, TokenizerError, "no room for text"),
        ({"tokenizer": "TOKENIZER", "max_length": 0}, ConfigError, "max length"),
        ({"tokenizer": "TOKENIZER", "truncation": "middle"}, TokenizerError, "head, tail, head.tail"),
        ({"tokenizer": "TOKENIZER", "bad_rows": "skip"}, ConfigError, "fail or quarantine"),
    ],
)
def test_wrong_arguments(tmp_path, reviews_file, tokenizer_path, store, options, error, message):
    places = {"STORE": str(store.path), "TOKENIZER": tokenizer_path}
    options = {name: places.get(value, value) for name, value in options.items()}
    with pytest.raises(error, match=message) as caught:
        prepare(reviews_file, tmp_path / "out", progress=False, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_again_changes_nothing(make_store, reviews_file, tokenizer_path):
    made = make_store()
    before = {path: path.stat().st_mtime_ns for path in made.path.rglob("*")}
    prepare(reviews_file, made.path, tokenizer=tokenizer_path, rows_per_shard=30, progress=False)
    assert {path: path.stat().st_mtime_ns for path in made.path.rglob("*")} == before


@pytest.mark.slow
def test_a_store_keeps_whole_texts(tmp_path, tokenizer_path, reviews_file):
    options = {"tokenizer": tokenizer_path, "progress": False}
    long = prepare([("cry " * 3000, "a"), ("laugh " * 5000, "b")], tmp_path / "long", **options)
    assert long.max_length == 4096
    assert long.manifest.truncated_texts == int((long.lengths == 4096).sum()) == 1
    pairs = prepare([(("a", "b"), 0), (("b", "a"), 1)], tmp_path / "pairs", **options)
    assert pairs.max_length == 512, "they are cut here or not at all"
    former = prepare(reviews_file, tmp_path / "former", max_length=512, **options)
    before = contents(former.path)
    again = prepare(reviews_file, former.path, **options)  # the command that made it, with the default of then
    assert (again.max_length, contents(former.path)) == (512, before)
    assert prepare(reviews_file, former.path, overwrite=True, **options).max_length == 4096


def test_other_store_is_not_overwritten(make_store, reviews_file, tokenizer_path):
    made = make_store()
    before = contents(made.path)
    with pytest.raises(StoreError, match=r"a store of other data or settings.*--overwrite"):
        prepare(reviews_file, made.path, tokenizer=tokenizer_path, max_length=9, progress=False)
    assert contents(made.path) == before
    again = prepare(reviews_file, made.path, tokenizer=tokenizer_path, max_length=9, overwrite=True, progress=False)
    assert again.max_length == 9
    assert sorted(contents(again.path)) == sorted({*contents(again.path)} - {"shard-00001.arrow"})


def test_other_folders_are_left_alone(tmp_path, reviews_file, tokenizer_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="not empty and not a store"):
            prepare(reviews_file, tmp_path / "thesis", tokenizer=tokenizer_path, overwrite=overwrite, progress=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="a file; a store is a folder"):
        prepare(reviews_file, tmp_path / "file", tokenizer=tokenizer_path, progress=False)


def test_unfinished_preparation_of_something_else(tmp_path, reviews_file, tokenizer_path):
    prepare_part(reviews_file, tmp_path / "out", (0, 2), tokenizer=tokenizer_path, rows_per_shard=30, progress=False)
    before = contents(tmp_path / "out")
    with pytest.raises(StoreError, match="unfinished preparation of other data"):
        prepare(reviews_file, tmp_path / "out", tokenizer=tokenizer_path, rows_per_shard=31, progress=False)
    assert contents(tmp_path / "out") == before
    options = {"tokenizer": tokenizer_path, "rows_per_shard": 31, "progress": False}
    assert prepare(reviews_file, tmp_path / "out", overwrite=True, **options).num_examples == 103


def test_parts_make_the_same_store(tmp_path, make_store, reviews_file, tokenizer_path):
    out = tmp_path / "parts"
    with pytest.raises(StoreError, match="no preparation is under way"):
        finalize(out)
    for i in (2, 0, 1):
        assert not (out / "manifest.json").exists()
        prepare_part(reviews_file, out, (i, 3), tokenizer=tokenizer_path, rows_per_shard=30, progress=False)
        if i != 1:
            with pytest.raises(StoreError, match=r"of 4 shards are missing or damaged: (0, )?1"):
                finalize(out)
    assert finalize(out).num_examples == 103
    assert contents(out) == contents(make_store().path)
    assert finalize(out).num_examples == 103
    with pytest.raises(ConfigError, match="shard 3/3"):
        prepare_part(reviews_file, out, (3, 3), tokenizer=tokenizer_path, progress=False)


@pytest.fixture
def five_files(tmp_path):
    """CSV files of 7 to 11 rows; shards of 6 rows lie across their ends."""
    return [write_csv(tmp_path / f"{k}.csv", [(f"film {k} {i}", str(i % 2)) for i in range(7 + k)]) for k in range(5)]


def test_parts_of_what_was_begun(tmp_path, five_files, tokenizer_path, monkeypatch):
    """Nothing is needed but the folder; a source without a wanted row is not opened for reading."""
    options = {"tokenizer": tokenizer_path, "rows_per_shard": 6, "progress": False}
    whole = prepare(five_files, tmp_path / "whole", **options)
    out = tmp_path / "out"
    with pytest.raises(StoreError, match="no preparation is under way"):
        write_part(out, (0, 1))
    begin(five_files, out, **options)
    begin(five_files, out, **options)
    num_shards = len(whole.manifest.shards)
    assert num_shards == 8
    read = []
    rows = CsvSource.read
    monkeypatch.setattr(CsvSource, "read", lambda self: (read.append(self.name), rows(self))[1])
    assert write_part(out, (2, 8)) == 1  # rows 12 to 17: of the second file, and the third's first three
    assert read == five_files[1:3]
    assert write_part(out, (2, 8)) == 0
    assert [write_part(out, (part, 3)) for part in range(3)] == [2, 2, 3]
    assert contents(finalize(out).path) == contents(whole.path)
    begin(five_files, out, **options)
    assert write_part(out, (0, 3)) == 0
    assert contents(out) == contents(whole.path)


def test_source_that_changed_since_it_was_begun(tmp_path, five_files, tokenizer_path):
    begin(five_files, tmp_path / "out", tokenizer=tokenizer_path, rows_per_shard=6, progress=False)
    content = Path(five_files[1]).read_text()
    for changed in (content.replace("film 1 7", "film 1 8"), content + "more,1\n", content.rpartition("film")[0]):
        Path(five_files[1]).write_text(changed)
        with pytest.raises(SourceError, match=r"1.csv: has changed while it was read"):
            write_part(tmp_path / "out", (1, 8))  # rows 6 to 11
        assert list((tmp_path / "out").glob("shard-*.json")) == []
        assert write_part(tmp_path / "out", (7, 8)) == 1
        (tmp_path / "out" / "shard-00007.json").unlink()
    Path(five_files[1]).write_text(content)
    assert write_part(tmp_path / "out", (1, 8)) == 1


def test_part_with_another_tokenizers_library(tmp_path, reviews_file, tokenizer_path, monkeypatch):
    begin(reviews_file, tmp_path / "out", tokenizer=tokenizer_path, progress=False)
    monkeypatch.setattr(parts.TextTokenizer, "probes", lambda self: "others")
    with pytest.raises(TokenizerError, match="gives other tokens than that of the machine that began"):
        write_part(tmp_path / "out", (0, 1))


def test_finished_shards_are_kept(tmp_path, make_store, reviews_file, tokenizer_path, monkeypatch):
    out = tmp_path / "out"
    prepare_part(reviews_file, out, (1, 2), tokenizer=tokenizer_path, rows_per_shard=30, progress=False)
    damaged, kept = out / "shard-00002.arrow", out / "shard-00003.arrow"
    data = bytearray(damaged.read_bytes())
    data[700] ^= 1
    damaged.write_bytes(data)
    written = []
    write = parts.write_shard
    monkeypatch.setattr(parts, "write_shard", lambda *args: (written.append(args[2]), write(*args)))
    before = kept.stat().st_mtime_ns
    made = prepare(reviews_file, out, tokenizer=tokenizer_path, rows_per_shard=30, progress=False)
    assert written == [0, 1, 2]
    assert kept.stat().st_mtime_ns == before
    assert contents(made.path) == contents(make_store().path)


def test_sources_that_change_underway(tmp_path, tokenizer_path, monkeypatch):
    source = write_csv(tmp_path / "a.csv", [("a", "1"), ("b", "2")])
    survey = preparing.survey

    def change_after(*args, **options):
        found = survey(*args, **options)
        write_csv(tmp_path / "a.csv", [("a", "1"), ("c", "2")])
        return found

    monkeypatch.setattr(preparing, "survey", change_after)
    with pytest.raises(SourceError, match="has changed while it was read"):
        prepare(source, tmp_path / "out", tokenizer=tokenizer_path, progress=False)
    assert not (tmp_path / "out").exists()


def test_two_at_a_time(tmp_path, reviews_file, tokenizer_path):
    from penstock.engine.data.job import locked

    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", shared=False), pytest.raises(StoreError, match="another penstock prepare"):
        prepare(reviews_file, tmp_path / "out", tokenizer=tokenizer_path, progress=False)


def test_command_line(tmp_path, reviews_file, tokenizer_path):
    import typer
    from typer.testing import CliRunner

    from penstock.engine.cli import data as cli_data

    app = typer.Typer()
    cli_data.register(app)
    run = CliRunner().invoke
    out = str(tmp_path / "out")
    result = run(app, ["prepare", reviews_file, "--out", out, "--tokenizer", tokenizer_path, "--max-length", "20"])
    assert result.exit_code == 0, result.output
    assert "103 examples" in result.stdout
    assert "0: 35, 1: 34, 2: 34" in result.stdout
    result = run(app, ["verify", out, "--deep"])
    assert "sound" in result.stdout
    for i in "01":
        args = ["prepare", reviews_file, "--out", out + "2", "--tokenizer", tokenizer_path, "--shard", f"{i}/2"]
        assert run(app, args).exit_code == 0
    assert run(app, ["prepare", "--out", out + "2", "--finalize"]).exit_code == 0
    assert Store.open(out + "2").num_examples == 103
    assert isinstance(run(app, ["prepare", "--out", out]).exception, ConfigError)
    given = run(app, ["prepare", "x.csv", "--out", out, "--text", "a", "--max-length", "7", "--finalize"]).exception
    assert isinstance(given, ConfigError)
    assert str(given).endswith("leave SOURCES, --text, --max-length out")
    shared = run(app, ["prepare", reviews_file, "--out", out, "--shard", "0/2", "--overwrite"]).exception
    assert isinstance(shared, ConfigError)
    assert "--shard cannot --overwrite" in str(shared)


@pytest.mark.slow
@pytest.mark.datasets
def test_real_rows(datasets, tmp_path, minilm):
    import pyarrow.parquet as pq

    table = next(pq.ParquetFile(datasets / "court-turns-test.parquet").iter_batches(400))
    pq.write_table(__import__("pyarrow").Table.from_batches([table]), tmp_path / "turns.parquet")
    made = prepare(str(tmp_path / "turns.parquet"), tmp_path / "out", tokenizer=minilm, max_length=64, progress=False)
    tokenizer = load_tokenizer(minilm)
    expected = tokenizer(table["text"].to_pylist(), truncation=True, max_length=64)["input_ids"]
    assert [made.tokens(i).tolist() for i in range(400)] == expected
    assert made.label_names == ["justice", "other"]


@pytest.mark.parametrize("texts", [["", ""], [" ", "\u3000 \t"]], ids=["empty", "blank"])
def test_no_token_at_all(tmp_path, tokenizer_path, texts):
    """One line, and nothing left behind, where no text gives a token: the tokenizer adds none of its own."""
    content = json.loads((Path(tokenizer_path) / "tokenizer.json").read_text()) | {"post_processor": None}
    if texts[0]:
        content["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
    plain = tmp_path / "tokenizer.json"
    plain.write_text(json.dumps(content))
    rows = [(text, number) for number, text in enumerate(texts)]
    with pytest.raises(SourceError, match="no text gives a single token"):
        prepare(rows, tmp_path / "s", tokenizer=str(plain), progress=False)
    assert not (tmp_path / "s").exists()
    assert prepare([*rows, ("word", 1)], tmp_path / "s", tokenizer=str(plain), progress=False).num_tokens > (
        not texts[0]
    )


def test_joined_parts_are_compared_with_what_they_are_like(tmp_path, tokenizer_path, reviews_file):
    from penstock.engine.cli import app

    run = CliRunner().invoke
    like, out = str(tmp_path / "like"), str(tmp_path / "out")
    assert run(app, ["prepare", reviews_file, "--out", like, "--tokenizer", tokenizer_path]).exit_code == 0
    whole = run(app, ["prepare", reviews_file, "--out", out + "1", "--like", like]).stdout
    for i in "01":
        assert run(app, ["prepare", reviews_file, "--out", out, "--like", like, "--shard", f"{i}/2"]).exit_code == 0
    assert run(app, ["prepare", "--out", out, "--finalize"]).stdout.splitlines()[-1] == whole.splitlines()[-1]


def test_what_is_said_of_shares_can_be_done(tmp_path, reviews_file, tokenizer_path):
    """Shares cannot overwrite: what they find, they ask to remove."""
    out, options = tmp_path / "out", {"tokenizer": tokenizer_path, "rows_per_shard": 30, "progress": False}

    def refused(match: str, **changed) -> None:
        with pytest.raises(StoreError, match=match) as caught:
            prepare_part(reviews_file, out, (0, 1), **{**options, **changed})
        assert "--overwrite" not in str(caught.value)

    prepare_part(reviews_file, out, (0, 2), **options)
    refused("unfinished preparation of other data.* remove it before the first share is made", max_length=9)
    (out / "preparing.json").write_text("{")
    refused("damaged: .*; remove the folder .*out, and prepare it again")
    shutil.rmtree(out)
    prepare_part(reviews_file, out, (0, 1), **options)
    made = finalize(out)
    refused("a store of other data or settings; .* remove it before the first share is made", max_length=9)
    assert contents(out) == contents(made.path)


def test_parts_are_joined_though_what_they_are_like_is_gone(tmp_path, tokenizer_path, reviews_file):
    like = prepare(reviews_file, tmp_path / "like", tokenizer=tokenizer_path, progress=False)
    prepare_part(reviews_file, tmp_path / "out", (0, 1), like=like.path, progress=False)
    shutil.rmtree(like.path)
    result = CliRunner().invoke(cli.app, ["prepare", "--out", str(tmp_path / "out"), "--finalize"])
    assert result.exit_code == 0, result.output
    assert f"overlap with {like.path} is not known: {like.path}: no such store" in result.stderr
    assert Store.open(tmp_path / "out").num_examples == 103
