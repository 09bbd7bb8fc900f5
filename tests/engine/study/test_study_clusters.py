"""`--cluster` of a study and of a comparison whose stores keep their clusters, and what of them training has too."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fabricated_study import stand_in

from penstock.engine.data.clusters import cluster_file, read_cluster_file
from penstock.engine.data.prepare import prepare
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.data.store import Store
from penstock.engine.errors import PenstockError, SourceError, StoreError
from penstock.engine.study.compare import compare
from penstock.engine.study.compare_inputs import Options, read_inputs
from penstock.engine.study.costs import Cost
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study

TRAIN, TEST = 120, 60


def write(path: Path, count: int, seed: int, film) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["film", "text", "label", "alone"])
        for number, (text, label) in enumerate(generate_reviews(count, seed)):
            writer.writerow([film(number), text, label, "one"])
    return str(path)


@pytest.fixture(scope="module")
def settings(minilm, tmp_path_factory) -> StudySettings:
    """A study of sources: films 0 to 12 are tested, 10 to 29 trained on."""
    folder = tmp_path_factory.mktemp("sources")
    return StudySettings(
        train=(write(folder / "train.csv", TRAIN, 0, lambda row: 10 + row % 20),),
        test=(write(folder / "test.csv", TEST, 1, lambda row: row % 13),),
        encoder=minilm,
        sizes=parse_sizes("50"),
        seeds=parse_seeds("1"),
        max_sizes={},
        families=("lstm",),
        cluster="film",
    )


@pytest.fixture(scope="module")
def stores(settings, minilm, tmp_path_factory) -> tuple[Store, Store]:
    folder = tmp_path_factory.mktemp("stores")
    train = prepare(settings.train[0], folder / "train", tokenizer=minilm, cluster="film", progress=False)
    test = prepare(settings.test[0], folder / "test", like=train.path, cluster="film", progress=False)
    return train, test


def run(settings: StudySettings, out: Path) -> dict:
    """study.json"""
    cost = Cost("lstm", 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 1, 32: 1}, "CPU", 1)
    run_study(settings, out, progress=False, run_trial=stand_in, measure=lambda *_: cost)
    return json.loads((out / "study.json").read_text())


def given(settings: StudySettings, stores: tuple[Store, Store]) -> StudySettings:
    return dataclasses.replace(settings, train=(str(stores[0].path),), test=(str(stores[1].path),))


SHARED_ROWS = sum(row % 13 >= 10 for row in range(TEST))
OVERLAP = {"column": "film", "clusters": 13, "rows": TEST, "shared": 3, "shared_rows": SHARED_ROWS}


@pytest.mark.slow
@pytest.mark.parametrize("prepared", ["neither", "both", "train", "test"])
def test_a_study_knows_which_groups_training_has_too(settings, stores, tmp_path, prepared):
    own = given(settings, stores)
    if prepared == "neither":
        own = settings
    elif prepared != "both":
        other = "test" if prepared == "train" else "train"
        own = dataclasses.replace(own, **{other: getattr(settings, other)})
    document = run(own, tmp_path / "study")
    assert (document["cluster"], document["cluster_overlap"]) == ("film", OVERLAP)
    kept = read_cluster_file(cluster_file(tmp_path / "study" / "data" / "test"), document["test"]["fingerprint"])
    assert (kept.column, kept.count) == ("film", 13)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["no column", "a row without a film", "a bare store"])
def test_training_data_without_groups_is_said_and_no_error(settings, stores, minilm, tmp_path, capfd, kind):
    source = str(tmp_path / "train.csv")
    if kind == "a row without a film":
        write(Path(source), TRAIN, 0, lambda row: "" if row == 7 else row)
        expected = "column 'film' is empty"
    else:
        with open(source, "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *generate_reviews(TRAIN, 0)])
        expected = "no column 'film'"
    own = dataclasses.replace(settings, train=(source,))
    if kind == "a bare store":
        bare = prepare(source, tmp_path / "bare", tokenizer=minilm, progress=False)
        own, expected = dataclasses.replace(given(settings, (bare, stores[1]))), "keeps no column 'film'"
    out = tmp_path / "study"
    cost = Cost("lstm", 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 1, 32: 1}, "CPU", 1)
    run_study(own, out, progress=True, run_trial=stand_in, measure=lambda *_: cost)
    document = json.loads((out / "study.json").read_text())
    assert document["cluster"] == "film"
    assert "cluster_overlap" not in document
    assert expected in " ".join(capfd.readouterr().err.split())


@pytest.mark.slow
def test_what_an_earlier_penstock_kept_is_made_again(settings, tmp_path):
    document = run(settings, tmp_path / "study")
    path = cluster_file(tmp_path / "study" / "data" / "test")
    metadata = {"penstock.clusters": "1", "penstock.column": "film"}
    table = pa.table({"cluster": np.arange(TEST, dtype=np.int32) % 13})
    old = table.replace_schema_metadata(metadata | {"penstock.store": document["test"]["fingerprint"]})
    pq.write_table(old, path, write_page_checksum=True)
    assert run(settings, tmp_path / "study")["cluster_overlap"] == OVERLAP
    assert read_cluster_file(path, document["test"]["fingerprint"]).comparable


def test_test_data_beside_a_store_has_its_columns(settings, stores, minilm, tmp_path):
    """As `prepare --like` takes them, though they are not the usual ones."""
    sources = {}
    for name in ("train", "test"):
        with open(getattr(settings, name)[0], newline="") as file:
            rows = [("film", "body", "stars", "topic"), *((row[0], row[1], row[2], "t") for row in csv.reader(file))]
        sources[name] = tmp_path / f"{name}.csv"
        with open(sources[name], "w", newline="") as file:
            csv.writer(file).writerows([rows[0], *rows[2:]])
    options = {"tokenizer": minilm, "text": "body", "label": "stars", "cluster": "film", "progress": False}
    train = prepare(str(sources["train"]), tmp_path / "train", **options)
    own = dataclasses.replace(settings, train=(str(train.path),), test=(str(sources["test"]),))
    document = run(own, tmp_path / "study")
    assert document["cluster_overlap"] == OVERLAP
    assert document["test"]["fingerprint"] == stores[1].fingerprint
    with pytest.raises(SourceError, match="no column 'title'"):
        run(dataclasses.replace(own, text="title"), tmp_path / "other")


# column, --max-test, and what is said
REFUSED = {
    "one group": ("alone", None, SourceError, "same value in all 60 rows"),
    "no such column": ("flim", None, SourceError, "no column 'flim'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_groups_that_cannot_be_resampled_are_refused_before_any_trial(settings, tmp_path, case):
    column, most, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message) as raised:
        run(dataclasses.replace(settings, cluster=column, max_test=most), tmp_path / "study")
    assert len(str(raised.value).splitlines()) == 1
    assert not list((tmp_path / "study" / "runs").glob("*")) if (tmp_path / "study" / "runs").exists() else True


def test_a_store_of_another_column_is_refused(settings, stores, tmp_path):
    with pytest.raises(StoreError, match="has the clusters of column 'film', not 'alone'"):
        run(dataclasses.replace(given(settings, stores), cluster="alone"), tmp_path / "study")


@pytest.mark.parametrize("kind", ["store", "source"])
def test_a_comparison_resamples_the_groups(settings, stores, tmp_path, kind):
    with open(settings.test[0], newline="") as file:
        truth = list(csv.DictReader(file))
    for name, wrong in (("a", lambda row: int(row["film"]) % 3 == 0), ("b", lambda row: int(row["film"]) % 2 == 0)):
        labels = [str(1 + int(row["label"]) % 5) if wrong(row) else row["label"] for row in truth]
        (tmp_path / f"{name}.csv").write_text("label\n" + "".join(f"{label}\n" for label in labels))
    files = str(tmp_path / "a.csv"), str(tmp_path / "b.csv")
    data = str(stores[1].path) if kind == "store" else settings.test[0]

    def compared(**options) -> tuple[int, float]:
        truth_, first, second, _ = read_inputs(*files, data, Options(**options))
        found = compare(truth_, first, second)
        low, high = found.first.interval
        return found.difference.clusters, high - low

    (alone, narrow), (together, wide) = compared(), compared(cluster="film")
    assert (alone, together) == (TEST, 13)
    assert wide > 1.4 * narrow
    with pytest.raises(PenstockError, match=r"same value in all 60 rows|has the clusters of column 'film'"):
        compared(cluster="alone")
