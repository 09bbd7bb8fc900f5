"""Several columns of text: what they are taken for, and pairs in a store token by token as transformers makes them."""

import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sampling import sampled
from subtested import as_subtests
from transformers import AutoTokenizer

from penstock.engine.data.loader import Loader
from penstock.engine.data.manifest import MANIFEST_NAME
from penstock.engine.data.parts import finalize, write_part
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.prepare import begin, prepare
from penstock.engine.data.sources import MemorySource, open_source, open_sources
from penstock.engine.data.sources.text_columns import NoSuchColumn, TooManyTexts, text_columns
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizer_training import parse_train_spec, train_tokenizer
from penstock.engine.errors import SourceError, StoreError, TokenizerError

# --text, the columns that are there, and the columns of each text; None where there are no such.
COLUMNS = [
    ("title", ["title", "body"], [["title"]]),
    ("title,body", ["title", "body"], [["title"], ["body"]]),
    ("body,title", ["title", "body"], [["body"], ["title"]]),
    ("title, body", ["title", "body"], [["title"], ["body"]]),
    ("title+body", ["title", "body"], [["title", "body"]]),
    ("title + body + foot", ["title", "body", "foot"], [["title", "body", "foot"]]),
    ("title+body,foot", ["title", "body", "foot"], [["title", "body"], ["foot"]]),
    ("title,body", ["title,body", "title", "body"], [["title,body"]]),
    ("a+b", ["a+b", "a", "b"], [["a+b"]]),
    ("a+b,c", ["a+b", "a", "b", "c"], [["a+b"], ["c"]]),
    ("a,b,c", ["a,b", "c"], [["a,b"], ["c"]]),
    ("a,b,c", ["a", "b,c", "a,b"], [["a"], ["b,c"]]),
    ("a,b+c", ["a,b", "c"], [["a,b", "c"]]),
    (" a,b", [" a", "b"], [[" a"], ["b"]]),
    ("a,a", ["a"], [["a"], ["a"]]),
    ("c++,body", ["c++", "body"], [["c++"], ["body"]]),
    ("titel,body", ["title", "body"], None),
    ("title,", ["title", "body"], None),
    ("+", ["title"], None),
    ("", ["title"], None),
]


@as_subtests("given, present, expected", COLUMNS)
def test_what_columns_are_meant(given, present, expected):
    if expected is None:
        with pytest.raises(NoSuchColumn):
            text_columns(given, present)
    else:
        assert [list(columns) for columns in text_columns(given, present).texts] == expected


@pytest.mark.parametrize("given", ["a,b,c", "a,b,c,a", "a+b,c,a"])
def test_three_texts_are_too_many(given):
    with pytest.raises(TooManyTexts):
        text_columns(given, ["a", "b", "c"])


def test_messages(tmp_path):
    (tmp_path / "a.csv").write_text("title,body,label\na,b,1\n")
    with pytest.raises(SourceError, match=r"no column 'bdy'; there are: title, body, label"):
        open_source(str(tmp_path / "a.csv"), text="title,bdy")
    with pytest.raises(SourceError, match=r"--text title\+body\+label"):
        open_source(str(tmp_path / "a.csv"), text="title,body,label")


ROWS = [("a title", "its body"), ("only", ""), ("", "second"), ("", ""), ('q"u,o', "line\nline"), ("größe", "電影")]


def write(path: Path, rows, labels) -> str:
    records = [
        {"body": b, "id": i, "title": a, "label": y} for i, ((a, b), y) in enumerate(zip(rows, labels, strict=True))
    ]
    if path.suffix == ".parquet":
        table = pa.Table.from_pylist(records)
        title = table.column("title").combine_chunks().dictionary_encode()
        pq.write_table(table.set_column(2, "title", title), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        import csv

        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter=";")
            writer.writeheader()
            writer.writerows(records)
    return str(path)


@as_subtests("form, carries", itertools.product(["csv", "jsonl", "parquet", "memory"], [False, True]))
def test_pairs_of_every_form(tmp_path, form, carries):
    labels = [i % 2 for i in range(len(ROWS))]
    if form == "memory":
        source = open_source(list(zip(ROWS, labels, strict=True)))
    else:
        source = open_source(write(tmp_path / f"a.{form}", ROWS, labels), text="title,body")
    if carries:
        source.carry(None if form == "memory" else ["body", "id"])
    (rows,) = source.rows()
    assert source.is_pair
    assert (rows.texts, rows.labels, rows.bad) == (ROWS, [str(label) for label in labels], [])
    if carries and form != "jsonl":
        assert rows.carried.column(0).to_pylist() == [row[0 if form == "memory" else 1] for row in ROWS]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_columns_joined_to_one_text(tmp_path, form):
    source = open_source(write(tmp_path / f"a.{form}", ROWS, range(len(ROWS))), text="title+body")
    (rows,) = source.rows()
    assert not source.is_pair
    assert rows.texts == [f"{a}\n{b}" for a, b in ROWS]


@pytest.mark.parametrize("given", ["title+body+title", "body,body", "title,title+body"])
def test_a_column_that_is_there_twice(tmp_path, given):
    with pytest.raises(SourceError, match="is there twice"):
        open_source(write(tmp_path / "a.csv", ROWS, range(len(ROWS))), text=given)


def test_a_row_that_lacks_one_of_its_texts_is_a_bad_one(tmp_path):
    records = [{"title": "a", "body": "b"}, {"title": "a"}, {"title": None, "body": "b"}, {"title": "a", "body": 3}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record | {"label": 1}) + "\n" for record in records))
    (rows,) = open_source(str(tmp_path / "a.jsonl"), text="title,body").rows()
    assert rows.texts == [("a", "b")]
    assert [row.reason for row in rows.bad] == ["no field 'body'", "'title' is null", "'body' is a number, not a text"]
    memory = MemorySource([("a", "b"), ("a",), "text", None, ("a", None)], [1] * 5)
    (rows,) = memory.rows()
    assert (rows.texts, [row.position for row in rows.bad]) == ([("a", "b")], [2, 3, 4, 5])


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_what_is_joined_may_lack_a_part(tmp_path, form):
    """A ticket with a subject and no body is a text, in every form alike; one with neither is none."""
    rows = [("a", "b"), ("a", None), (None, "b")]
    (read,) = open_source(write(tmp_path / f"a.{form}", rows, range(3)), text="title+body").rows()
    assert (read.texts, read.bad) == (["a\nb", "a\n", "\nb"], [])
    if form != "csv":
        (read,) = open_source(write(tmp_path / f"b.{form}", [*rows, (None, None)], range(4)), text="title+body").rows()
        assert [row.excerpt for row in read.bad] == ["\n"]  # the values themselves, not what stands for them
        assert [(row.position, "null" in row.reason) for row in read.bad] == [(4, True)]


def test_pairs_and_single_texts_are_not_mixed(tmp_path):
    write(tmp_path / "a.csv", ROWS, range(len(ROWS)))
    (tmp_path / "b.csv").write_text('"title,body";label\na;1\n')
    with pytest.raises(SourceError, match="pairs of texts"):
        open_sources([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")], text="title,body")


HOSTILE = ["", " ", "the [SEP] cat [CLS] [PAD]", "</s> a <s>", "Ünïcode 電影 🎬 e\u0301 \u200b\u00a0", "new<NEW> word"]
LENGTHS = [0, 1, 2, 3, 4, 5, 6, 7, 11]
PAIRS = [("w " * m + "one", "v " * n + "two") for m, n in [*itertools.product(LENGTHS, LENGTHS), (40, 3), (3, 40)]]
PAIRS += list(itertools.product(HOSTILE, HOSTILE)) + [("word " * 30, text) for text in HOSTILE]

# What to learn, which of transformers' classes has it, and what it gives its model.
TOKENIZERS = {
    "trained-wordpiece": ("wordpiece", None, None),
    "trained-bpe": ("bpe", None, None),
    "bert": ("wordpiece", "BertTokenizer", None),
    "roberta": ("bpe", "RobertaTokenizer", None),
    "generic-with-types": ("wordpiece", None, ["input_ids", "token_type_ids", "attention_mask"]),
}


@pytest.fixture(scope="module")
def base_tokenizers(tmp_path_factory) -> dict[str, Path]:
    """A small tokenizer of every kind, saved."""
    folders = {}
    for name, (learned, class_name, _) in TOKENIZERS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        spec = parse_train_spec(f"train:{learned}:300")
        texts = ["the film was good and the cat sat", "a word and another word"] * 3
        train_tokenizer(spec, lambda texts=texts: [texts]).save_pretrained(folders[name])
        if class_name is not None:
            path = folders[name] / "tokenizer_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": class_name}))
    return folders


def save_with(settings: dict, name: str, base_tokenizers: dict[str, Path], folder: Path) -> str:
    """The tokenizer of this name with settings of its own."""
    inputs = TOKENIZERS[name][2]
    if inputs is not None:
        settings = settings | {"model_input_names": inputs}
    AutoTokenizer.from_pretrained(base_tokenizers[name], **settings).save_pretrained(folder)
    return str(folder)


def pairs_of(store: Store) -> tuple[list, list]:
    """(token ids, token types) of every row, as the loader gives them to a model."""
    loader = Loader(store, seed=0, parameters=PlanParameters(300, 1, "bucket"), shuffle=False)
    ids, types = [None] * len(store), [None] * len(store)
    for batch in loader.batches():
        bounds = batch.tokens.cu_seqlens.tolist()
        of_batch = batch.types().get("token_type_ids")
        for row, start, end in zip(batch.tokens.ids.tolist(), bounds, bounds[1:], strict=False):
            ids[row] = batch.tokens.values[start:end].tolist()
            types[row] = None if of_batch is None else of_batch[start:end].tolist()
    return ids, types


SETTINGS = [
    (None, {}),
    ("tail", {}),
    (None, {"truncation_side": "left"}),
    ("head", {"truncation_side": "left"}),
    (None, {"split_special_tokens": True}),
]
# All settings of a tokenizer of each algorithm; of the others, which differ from these in class or types, the extremes.
CASES = [(name, *case) for name in ("bert", "trained-bpe") for case in SETTINGS]
CASES += [(name, *case) for name in set(TOKENIZERS) - {"bert", "trained-bpe"} for case in (SETTINGS[0], SETTINGS[3])]


@as_subtests("name, truncation, settings", sampled(sorted(CASES, key=str), 3))
def test_tokens_and_types_are_the_saved_tokenizers(tmp_path, base_tokenizers, name, truncation, settings):
    folder = save_with(settings, name, base_tokenizers, tmp_path / "tokenizer")
    rows = [(pair, i % 2) for i, pair in enumerate(PAIRS)]
    store = prepare(
        rows, tmp_path / "s", tokenizer=folder, truncation=truncation, max_length=12, rows_per_shard=70, progress=False
    )
    saved = AutoTokenizer.from_pretrained(store.path / "tokenizer")
    firsts, seconds = map(list, zip(*PAIRS, strict=True))
    ids, types = pairs_of(store)
    assert saved.model_max_length == 12
    expected = saved(firsts, seconds, truncation=True)
    assert ids == expected["input_ids"]
    assert types == expected.get("token_type_ids", [None] * len(PAIRS))
    assert ("token_type_ids" in expected) == (store.seconds is not None) == (name in ("bert", "generic-with-types"))
    whole = saved(firsts, seconds)["input_ids"]
    assert store.manifest.truncated_texts == sum(len(ids) > 12 for ids in whole) > 0
    assert store.manifest.empty_texts == 1
    assert list(store.verify(deep=True))


@pytest.fixture(scope="module")
def bert(base_tokenizers, tmp_path_factory) -> str:
    return save_with({}, "bert", base_tokenizers, tmp_path_factory.mktemp("with-types"))


def labelled(pairs):
    return [(pair, i % 2) for i, pair in enumerate(pairs)]


def test_a_store_of_pairs_is_the_same_whoever_makes_it(tmp_path, bert):
    source = write(tmp_path / "a.parquet", PAIRS, [i % 2 for i in range(len(PAIRS))])
    options = {"tokenizer": bert, "text": "title,body", "max_length": 20, "rows_per_shard": 50, "progress": False}
    whole = prepare(source, tmp_path / "whole", **options)
    begin(source, tmp_path / "parts", **options)
    for part in (1, 0):
        write_part(tmp_path / "parts", (part, 2))
    parts = finalize(tmp_path / "parts")
    files = [
        {str(path.relative_to(store.path)): path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
        for store in (whole, parts)
    ]
    assert files[0] == files[1]
    assert parts.fingerprint != prepare(source, tmp_path / "swapped", **options | {"text": "body,title"}).fingerprint
    like = prepare(source, tmp_path / "like", like=whole.path, progress=False)  # the columns too: pairs have no usual
    assert pairs_of(like) == pairs_of(whole)
    pread = Store.open(whole.path, "pread")
    assert pread.seconds.tolist() == whole.seconds.tolist()
    assert pairs_of(pread) == pairs_of(whole)


def test_a_store_of_single_texts_is_what_it_was(store):
    content = json.loads((store.path / MANIFEST_NAME).read_text())
    assert not {"is_pair", "seconds"} & content.keys()
    assert (store.is_pair, store.seconds) == (False, None)


def test_damage_is_found(tmp_path, bert):
    store = prepare(labelled(PAIRS), tmp_path / "s", tokenizer=bert, progress=False)
    path = store.path / "seconds.arrow"
    content = bytearray(path.read_bytes())
    content[-300] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"seconds\.arrow"):
        list(Store.open(store.path).verify())
    path.unlink()
    with pytest.raises(StoreError, match=r"seconds\.arrow: missing"):
        Store.open(store.path)


def test_what_pairs_cannot_be(tmp_path, bert):
    with pytest.raises(TokenizerError, match="head or tail"):
        prepare(labelled(PAIRS), tmp_path / "s", tokenizer=bert, truncation="head+tail", progress=False)
    with pytest.raises(TokenizerError, match="no room for two texts"):
        prepare(labelled(PAIRS), tmp_path / "s", tokenizer=bert, max_length=4, progress=False)
    pairs = prepare(labelled(PAIRS), tmp_path / "pairs", tokenizer=bert, progress=False)
    singles = prepare([("a", 0), ("b", 1)], tmp_path / "singles", tokenizer=bert, progress=False)
    with pytest.raises(SourceError, match="pairs of texts"):
        prepare([("a", 0), ("b", 1)], tmp_path / "s", like=pairs.path, progress=False)
    with pytest.raises(SourceError, match="single texts"):
        prepare(labelled(PAIRS), tmp_path / "s", like=singles.path, progress=False)


def test_padded_batches_have_types(tmp_path, bert):
    store = prepare(labelled(PAIRS), tmp_path / "s", tokenizer=bert, max_length=16, progress=False)
    saved = store.tokenizer()
    loader = Loader(store, seed=0, parameters=PlanParameters(300, 1, "bucket"), shuffle=False)
    for batch in loader.batches():
        padded = batch.padded(saved.pad_token_id)
        firsts, seconds = zip(*(PAIRS[row] for row in batch.tokens.ids.tolist()), strict=True)
        expected = saved(list(firsts), list(seconds), truncation=True, padding=True, return_tensors="pt")
        for key, value in expected.items():
            assert padded[key].tolist() == value.tolist(), key


def test_pairs_that_are_the_same_are_found(tmp_path):
    from penstock.engine.data.inspect import duplicates, look

    pairs = [("a b", "c"), ("a", "b c"), ("A b", "C "), ("a b", "c"), ("a b c", "")]
    found = duplicates(look([open_source(labelled(pairs))]))
    assert [rows.tolist() for rows in found.contradictions] == [[0, 3]]
    assert [rows.tolist() for rows in found.normal] == [[0, 2, 3]]
