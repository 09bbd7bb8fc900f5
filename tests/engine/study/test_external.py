"""Predictions that were made elsewhere, as a line of a study's report."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fabricated_study import stand_in
from subtested import as_subtests

from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError, SourceError
from penstock.engine.study.costs import Cost
from penstock.engine.study.external import parse_externals, read_external
from penstock.engine.study.predictions import PredictionsRecorder
from penstock.engine.study.report import write_report
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def stores(minilm: str, tmp_path_factory) -> dict[str, tuple[str]]:
    folder = tmp_path_factory.mktemp("stores")
    train = prepare("synthetic:reviews?n=60&seed=0", folder / "train", tokenizer=minilm, progress=False)
    test = prepare("synthetic:reviews?n=40&seed=1", folder / "test", like=train.path, progress=False)
    return {"train": (str(train.path),), "test": (str(test.path),)}


@pytest.fixture
def test_store(stores) -> Store:
    return Store.open(stores["test"][0])


def csv(path, header, rows) -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def spelled(store: Store) -> list[str]:
    return [store.label_names[label] for label in store.labels]


@pytest.mark.slow
@as_subtests("form", ["csv", "rows", "jsonl", "parquet"])
def test_forms_of_a_file(test_store, tmp_path, form):
    names = spelled(test_store)
    rows = np.arange(0, 40, 3)
    if form == "csv":
        file = csv(tmp_path / "p.csv", "label,probability", [f"{name},0.5" for name in names])
    elif form == "rows":  # in any order, and no more than the study evaluates
        file = csv(tmp_path / "p.csv", "row,label", [f"{row},{names[row]}" for row in rows[::-1]])
    elif form == "jsonl":
        lines = [f'{{"label": "{name}"}}' for name in names]
        file = csv(tmp_path / "p.jsonl", lines[0], lines[1:])
    else:
        pq.write_table(pa.table({"label": list(map(int, names)), "row": list(range(40))}), tmp_path / "p.parquet")
        file = str(tmp_path / "p.parquet")
    assert np.array_equal(read_external(file, test_store, rows), test_store.labels[rows])


@as_subtests(
    "header, rows, message",
    [
        ("label", ["1"] * 39, "39 rows, and the test data has 40: each needs a prediction"),
        ("label", ["1"] * 41, "41 rows, and the test data has 40"),
        ("label", ["1"] * 39 + ["nine"], "row 40: the test data has no class 'nine' \\(1, 2, 3, 4, 5\\)"),
        ("label,note", ["1,a"] * 3 + [",a"] + ["1,a"] * 36, "row 4: .*every row needs a prediction"),
        ("stars", ["1"] * 40, "no column 'label'.*a file of predictions has such a column"),
        ("id,label", [f"r{row},1" for row in range(40)], "rows cannot be found by the column 'id'.*a column 'row'"),
        ("Row,label", [f"{row},1" for row in range(40)], "rows cannot be found by the column 'Row'"),
        ("row,label", [f"{row},1" for row in range(39)], "no prediction of row 39, which the study evaluates"),
        ("row,label", [f"{row},1" for row in [*range(40), 7]], "two predictions of row 7: one each"),
        ("row,label", [f"{row},1" for row in range(1, 41)], "row 40: row '40' is none of the test data's, 0 to 39"),
        ("row,label", [f"{row},1" for row in [*range(39), "last"]], "row 40: row 'last' is none of"),
    ],
)
def test_bad_files(test_store, tmp_path, header, rows, message):
    file = csv(tmp_path / "p.csv", header, rows)
    with pytest.raises(SourceError, match=message) as error:
        read_external(file, test_store, np.arange(40))
    assert "\n" not in str(error.value)


@as_subtests("item", ["gpt", "=p.csv", "gpt=", "a/b=p.csv", "../x=p.csv", "lstm=p.csv", "majority=p.csv"])
def test_bad_names(item):
    with pytest.raises(ConfigError, match=r"--external|NAME=FILE"):
        parse_externals([item])
    with pytest.raises(ConfigError, match="given twice"):
        parse_externals(["a=p.csv", "a=q.csv"])


def _trains(folder):
    """A stand-in whose predictions are of the study's own test rows."""

    def run(task):
        store = Store.open(task.test_store)
        made = stand_in(task)
        random = np.random.default_rng(task.trial.seed)
        labels = np.where(random.random(40) < 0.7, store.labels, (store.labels + 1) % 5)
        recorder = PredictionsRecorder(np.arange(40), 5)
        recorder.add(
            torch.arange(40),
            torch.from_numpy(store.labels.copy()),
            torch.from_numpy(np.eye(5, dtype=np.float32)[labels]),
        )
        about = {"max_test": None, "test_rows": 40, "label_names": store.label_names}
        entry = recorder.write(task.predictions, test=store.fingerprint, **about)
        return replace(made, accuracy=float((labels == store.labels).mean()), predictions=entry)

    return run


@pytest.mark.slow
def test_a_finished_study_takes_one_without_training(stores, minilm, test_store, tmp_path):
    out = tmp_path / "study"
    study = StudySettings(
        **stores,
        encoder=minilm,
        families=("lstm", "encoder"),
        sizes=parse_sizes("20,40"),
        seeds=parse_seeds("2"),
        max_sizes={},
    )
    options = {
        "progress": False,
        "measure": lambda family, *_: Cost(family, 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 1, 32: 1}, "CPU", 1),
    }
    run_study(study, out, run_trial=_trains(out), **options)
    assert write_report(out).externals == []
    names = spelled(test_store)
    wrong = [str(int(name) % 5 + 1) if row % 4 == 0 else name for row, name in enumerate(names)]
    file = csv(tmp_path / "gpt.csv", "label", wrong)

    def never(task):
        raise AssertionError(task.trial.name)

    run_study(replace(study, external={"gpt": file}), out, run_trial=never, **options)
    (found,) = write_report(out).externals
    assert found.accuracy.mean == 0.75
    assert found.accuracy.low < 0.75 < found.accuracy.high
    assert set(found.gaps) == set(found.tests) == {20, 40}
    accuracies = [point.accuracy.mean for point in write_report(out).table.points("encoder")]
    assert [found.gaps[size].mean for size in (20, 40)] == pytest.approx([value - 0.75 for value in accuracies])
    page = (out / "report.md").read_text()
    assert "| gpt | 75.0 [" in page
    assert (out / "external.csv").read_text().count("\ngpt,0.75,") == 2
    (kept,) = json.loads((out / "report.json").read_text())["externals"]
    assert (kept["name"], kept["source"], kept["accuracy"]["mean"]) == ("gpt", file, 0.75)
    assert [own["encoder_size"] for own in kept["gaps"]] == [20, 40]
    assert kept["gaps"][1]["gap"]["mean"] == found.gaps[40].mean
    assert kept["gaps"][1]["test"]["only_external_right"] == found.tests[40].pairs.second
    run_study(study, out, run_trial=never, **options)  # without the option it stays
    assert len(write_report(out).externals) == 1
    entry = out / "external" / "gpt.json"
    sound = json.loads(entry.read_text())
    for damaged in (
        {**sound, "later": 1},
        {**sound, "name": "other"},
        {**sound, "source": 5},
        {**sound, "predictions": {**sound["predictions"], "name": 5}},
        {**sound, "predictions": {**sound["predictions"], "name": "../trials/encoder-20-0.parquet"}},
        {**sound, "predictions": {**sound["predictions"], "bytes": "many"}},
        [],
    ):
        entry.write_text(json.dumps(damaged))
        with pytest.raises(RunError, match=r"gpt\.json: damaged"):
            write_report(out)
    entry.write_text(json.dumps(sound))
    (out / "external" / "gpt.parquet").write_bytes(b"")
    with pytest.raises(RunError, match=r"gpt\.parquet"):
        write_report(out)


def test_a_file_that_is_not_there(stores, minilm, tmp_path):
    study = StudySettings(
        **stores,
        encoder=minilm,
        sizes=parse_sizes("20"),
        seeds=parse_seeds("1"),
        max_sizes={},
        external={"gpt": "none.csv"},
    )
    with pytest.raises(SourceError, match=r"--external gpt=none\.csv: no such file"):
        run_study(study, tmp_path / "study", progress=False)
