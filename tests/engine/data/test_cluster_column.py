"""`prepare --cluster`: which rows belong together, kept in the store, whatever the column and the source look like."""

import csv
import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from penstock.engine import cli
from penstock.engine.data import parts
from penstock.engine.data.clusters import ClusterOverlap, cluster_file, keep_clusters, kept_clusters, read_clusters
from penstock.engine.data.manifest import CLUSTERS_NAME, MANIFEST_NAME
from penstock.engine.data.prepare import begin, prepare, prepare_part
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.data.store import Store
from penstock.engine.errors import OtherDataError, PenstockError, SourceError, StoreError

ROWS = 90
TOKENIZER = "train:bpe:300"
# what stands in the column of the rows 0 to 8, again and again, and which of them belong together
VALUES = {
    "texts": (["a", "b", "c", "a", " a", "A", "b", "d", "c"], [0, 1, 2, 0, 3, 4, 1, 5, 2]),
    "numbers": ([1, 2, 3, 1, -1, 0, 2, 10**15, 3], [0, 1, 2, 0, 3, 4, 1, 5, 2]),
    "fractions": ([0.5, 1.0, 2.5, 0.5, -1.0, 0.25, 1.0, 1e30, 2.5], [0, 1, 2, 0, 3, 4, 1, 5, 2]),
    "truths": ([True, False, True, True, False, False, True, True, False], [0, 1, 0, 0, 1, 1, 0, 0, 1]),
    "accents": (["é", "e", "ü", "é", "日", "本", "e", "𝒜", "ü"], [0, 1, 2, 0, 3, 4, 1, 5, 2]),
}
FORMS = ("csv", "jsonl", "parquet")


def rows_of(values: list, count: int = ROWS, seed: int = 0) -> list[dict]:
    reviews = generate_reviews(count, seed)
    return [
        {"film": values[number % len(values)], "text": text, "label": str(label)}
        for number, (text, label) in enumerate(reviews)
    ]


def write(path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def make(source, out, **options) -> Store:
    return prepare(
        source, out, progress=False, **({"tokenizer": TOKENIZER} if "like" not in options else {}), **options
    )


def groups(keys) -> list[int]:
    """Each row's first row of the same key: the same for the same partition."""
    first: dict[int, int] = {}
    return [first.setdefault(key, row) for row, key in enumerate(np.asarray(keys).tolist())]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Store:
    """A store without clusters, whose tokenizer and labels the others take."""
    folder = tmp_path_factory.mktemp("plain")
    return make(write(folder / "train.csv", rows_of(["a", "b"])), folder / "train")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", VALUES)
def test_rows_of_equal_values_have_equal_keys(plain, tmp_path, form, kind):
    values, expected = VALUES[kind]
    store = make(write(tmp_path / f"test.{form}", rows_of(values)), tmp_path / "test", like=plain.path, cluster="film")
    assert store.clusters is not None
    assert store.clusters.dtype == np.int64
    assert groups(store.clusters) == groups([expected[row % 9] for row in range(ROWS)])
    assert store.manifest.clusters is not None
    assert store.manifest.clusters.count == len(set(expected))
    assert CLUSTERS_NAME in list(store.verify(deep=True))
    found = read_clusters(Store.open(store.path, "pread").cut_to(8), "film")
    assert (found.column, found.comparable) == ("film", True)
    assert np.array_equal(found.keys, store.clusters)


def test_no_model_sees_them_and_stores_without_them_are_as_before(plain, tmp_path):
    source = write(tmp_path / "test.csv", rows_of(["x", "y", "z"]))
    bare = make(source, tmp_path / "bare", like=plain.path)
    grouped = make(source, tmp_path / "grouped", like=plain.path, cluster="film")
    assert bare.fingerprint == grouped.fingerprint
    assert bare.clusters is None
    assert kept_clusters(bare) is None
    assert "clusters" not in json.loads((bare.path / MANIFEST_NAME).read_text())
    assert not (bare.path / CLUSTERS_NAME).exists()
    # the same is there already, whether its clusters are asked for or not; those of another column are another store
    for column in ("film", None):
        assert make(source, grouped.path, like=plain.path, cluster=column).clusters is not None
    with pytest.raises(OtherDataError, match="other groups, by column 'film'"):
        make(source, grouped.path, like=plain.path, cluster="label")
    added = make(source, bare.path, like=plain.path, cluster="film")
    assert added.manifest == grouped.manifest
    assert CLUSTERS_NAME in list(added.verify(deep=True))
    write(tmp_path / "test.csv", rows_of(["x", "y", "y"]))  # other films, the same texts and labels
    with pytest.raises(OtherDataError, match="other groups, by column 'film'"):
        make(source, grouped.path, like=plain.path, cluster="film")


def test_an_unfinished_preparation_goes_on_with_its_clusters_alone(plain, tmp_path):
    source, out = write(tmp_path / "test.csv", rows_of(["x", "y", "z"])), tmp_path / "begun"
    begin(source, out, like=plain.path, cluster="film", progress=False)
    for column in (None, "label"):
        with pytest.raises(OtherDataError, match="unfinished preparation of other data or settings"):
            make(source, out, like=plain.path, cluster=column)
    assert make(source, out, like=plain.path, cluster="film").clusters is not None


def hostile(rows: list[dict], what: str) -> tuple[list[dict], str]:
    """A source that cannot give clusters, and what is said of it."""
    middle = {**rows[40]}
    if what == "missing":
        return [{key: value for key, value in row.items() if key != "film"} for row in rows], "no column 'film'"
    if what == "one":
        return [{**row, "film": "Vertigo"} for row in rows], "same value in all 90 rows"
    value, message = {
        "null": (None, r"(line 4[12]|row 41).*column 'film' is (null|empty): --cluster needs"),
        "empty": ("", r"(line 4[12]|row 41).*column 'film' is empty: --cluster needs"),
        "blank": ("  ", r"(line 4[12]|row 41).*column 'film' is empty: --cluster needs"),
        "list": (["a", "b"], r"(line 4[12]|row 41).*column 'film' is a list"),
        "nan": (math.nan, r"(line 4[12]|row 41).*column 'film' is null"),
    }[what]
    if what in ("list", "nan"):
        rows = [{**row, "film": ["x"] if what == "list" else 1.5} for row in rows]
    return [*rows[:40], {**middle, "film": value}, *rows[41:]], message


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ["missing", "one", "null", "empty", "blank", "list", "nan"])
def test_what_cannot_be_clusters_is_one_line_before_anything_is_written(plain, tmp_path, form, what):
    if form == "csv" and what in ("list", "nan"):
        pytest.skip("a csv file holds texts")
    rows, message = hostile(rows_of(["a", "b", "c"]), what)
    source = write(tmp_path / f"test.{form}", rows)
    with pytest.raises(SourceError, match=message if what != "list" else "column 'film' is") as raised:
        make(source, tmp_path / "test", like=plain.path, cluster="film")
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "test").exists()
    options = ["prepare", source, "--out", str(tmp_path / "test"), "--like", str(plain.path), "--cluster", "film"]
    result = CliRunner().invoke(cli.app, options, env={"COLUMNS": "200"})
    assert isinstance(result.exception, SourceError)


def test_a_row_that_is_set_aside_needs_no_value(plain, tmp_path):
    rows = rows_of(["a", "b", "c"])
    rows[3] |= {"film": "", "label": "no such label"}
    rows[7] |= {"film": ""}
    source = write(tmp_path / "test.csv", rows)
    with pytest.raises(SourceError, match=r"line 9: column 'film' is empty"):
        make(source, tmp_path / "test", like=plain.path, cluster="film", bad_rows="quarantine")
    rows[7] |= {"film": "c"}
    source = write(tmp_path / "test.csv", rows)
    store = make(source, tmp_path / "test", like=plain.path, cluster="film", bad_rows="quarantine")
    films = [row["film"] for number, row in enumerate(rows) if number != 3]
    assert groups(store.clusters) == groups([films.index(film) for film in films])


def test_several_sources_and_machines_give_the_same(plain, tmp_path):
    values = VALUES["texts"][0]
    one = write(tmp_path / "a.csv", rows_of(values, 50))
    two = write(tmp_path / "b.jsonl", rows_of(values, 45, seed=1))
    options = {"like": plain.path, "cluster": "film", "rows_per_shard": 20, "progress": False}
    whole = prepare([one, two], tmp_path / "whole", **options)
    for number in range(3):
        prepare_part([one, two], tmp_path / "shared", (number, 3), **options)
    shared = parts.finalize(tmp_path / "shared")
    begin([one, two], tmp_path / "begun", **options)
    for number in range(2):
        parts.write_part(tmp_path / "begun", (number, 2))
    begun = parts.finalize(tmp_path / "begun")
    for store in (shared, begun):
        assert store.manifest == dataclasses.replace(whole.manifest)
        assert (store.path / CLUSTERS_NAME).read_bytes() == (whole.path / CLUSTERS_NAME).read_bytes()


@pytest.mark.parametrize("damage", ["gone", "short", "other"])
def test_clusters_damaged_between_the_parts_are_named(plain, tmp_path, damage):
    source = write(tmp_path / "a.csv", rows_of(["a", "b", "c"]))
    begin(source, tmp_path / "begun", like=plain.path, cluster="film", progress=False)
    path = tmp_path / "begun" / CLUSTERS_NAME
    parts.write_part(tmp_path / "begun", (0, 1))
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-40] if damage == "short" else content.replace(content[-600:-592], b"12345678"))
    with pytest.raises(StoreError, match=CLUSTERS_NAME):
        parts.finalize(tmp_path / "begun")
    store = make(source, tmp_path / "begun", like=plain.path, cluster="film")  # goes on, and makes them again
    assert path.read_bytes() == content
    assert CLUSTERS_NAME in list(store.verify())


def test_a_bit_that_turned_is_found(plain, tmp_path):
    store = make(write(tmp_path / "a.csv", rows_of(["a", "b"])), tmp_path / "a", like=plain.path, cluster="film")
    path = store.path / CLUSTERS_NAME
    sound = path.read_bytes()
    for place in range(0, len(sound), 97):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        with pytest.raises(PenstockError, match=CLUSTERS_NAME):
            list(Store.open(store.path).verify())
    path.unlink()
    with pytest.raises(StoreError, match=CLUSTERS_NAME):
        Store.open(store.path)


# of the test rows' films, which the training data has too
CROSSINGS = {
    "apart": (["a", "b"], ["x", "y", "z"], (3, 0, 0)),
    "some": (["a", "b"], ["a", "y", "z"], (3, 1, 30)),
    "all": (["a", "b"], ["b", "a"], (2, 2, 90)),
    "numbers": ([1, 2], ["2", "3", "4"], (3, 1, 30)),
}


@pytest.mark.parametrize("kind", CROSSINGS)
def test_clusters_on_both_sides_are_said(tmp_path, kind):
    ours, theirs, (count, shared, rows) = CROSSINGS[kind]
    train = make(write(tmp_path / "train.parquet", rows_of(ours)), tmp_path / "train", cluster="film")
    source = write(tmp_path / "test.csv", rows_of(theirs, seed=1))
    options = ["prepare", source, "--out", str(tmp_path / "test"), "--like", str(train.path), "--cluster", "film"]
    output = CliRunner().invoke(cli.app, options, env={"COLUMNS": "200"}).output
    test = Store.open(tmp_path / "test")
    found = ClusterOverlap.of(kept_clusters(train), kept_clusters(test))
    assert found is not None
    assert (found.clusters, found.shared, found.shared_rows) == (count, shared, rows)
    assert f"groups by 'film': {count}" in output
    assert str(found) in output
    assert (f"{shared} of {count} groups" if shared else f"none of the {count} groups") in str(found)


@pytest.mark.parametrize(("version", "first"), [("1", 0), ("2", -(1 << 60))], ids=["numbers", "other keys for 17.0"])
def test_what_an_earlier_penstock_kept_beside_a_store_is_read(plain, tmp_path, version, first):
    store = make(write(tmp_path / "a.csv", rows_of(["a", "b"])), tmp_path / "a", like=plain.path)
    metadata = {"penstock.clusters": version, "penstock.column": "film", "penstock.store": store.fingerprint}
    numbers = first + np.arange(ROWS, dtype=np.int64) % 2
    table = pa.table({"cluster": numbers}).replace_schema_metadata(metadata)
    pq.write_table(table, cluster_file(store.path))
    found = read_clusters(store, "film")
    assert np.array_equal(found.keys, numbers)
    assert not found.comparable
    assert ClusterOverlap.of(found, found) is None  # those of two stores say nothing of each other
    keep_clusters(cluster_file(store.path), store, found)
    assert not read_clusters(store, "film").comparable
    with pytest.raises(StoreError, match="of column 'film', not 'case'"):
        read_clusters(store, "case")


NUMBERS = {
    "whole.csv": [str(n) for n in (17, 3, 0, -4, 10**15)],
    "with a null.csv": [f"{n}.0" for n in (17, 3, 0, -4, 10**15)],
    "whole.parquet": [17, 3, 0, -4, 10**15],
    "with a null.parquet": [17.0, 3.0, 0.0, -4.0, 1e15],
    "whole.jsonl": [17, 3, 0, -4, 10**15],
    "texts.jsonl": ["17.00", "3.0", "0.0", "-4.0", "1000000000000000.0"],
}


def test_a_whole_number_is_one_group_however_its_column_is_written(plain, tmp_path):
    made = {
        name: make(
            write(tmp_path / name, rows_of(values, 10)), tmp_path / f"{name}.store", like=plain.path, cluster="film"
        )
        for name, values in NUMBERS.items()
    }
    keys = {name: store.clusters.tolist() for name, store in made.items()}
    assert all(own == keys["whole.csv"] for own in keys.values()), keys
    versions = make(
        write(tmp_path / "v.csv", rows_of(["1.1", "1.10", "01", "1"], 10)),
        tmp_path / "v",
        like=plain.path,
        cluster="film",
    )
    assert len(set(versions.clusters.tolist())) == 4


def test_keys_of_an_earlier_penstock_are_not_compared_and_made_again(plain, tmp_path):
    """It had other ones for 17.0 in a csv than for 17."""
    source = write(tmp_path / "a.csv", rows_of(["17.0", "3.0"]))
    store = make(source, tmp_path / "a", like=plain.path, cluster="film")
    manifest = json.loads((store.path / MANIFEST_NAME).read_text())
    del manifest["clusters"]["format"], manifest["crc32"]
    (store.path / MANIFEST_NAME).write_text(json.dumps(manifest))
    old = read_clusters(Store.open(store.path), "film")
    assert not old.comparable
    assert ClusterOverlap.of(old, read_clusters(store, "film")) is None
    assert read_clusters(make(source, store.path, like=plain.path, cluster="film"), "film").comparable
