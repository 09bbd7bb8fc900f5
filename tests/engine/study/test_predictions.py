"""What a trial predicted stays beside its figures: complete, in the order of the rows, and checked."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fabricated_study import no_cost, result, stand_in, with_predictions
from subtested import as_subtests

from penstock.engine.data.store import Store
from penstock.engine.errors import RunError
from penstock.engine.study.predictions import PredictionsRecorder, parse_predictions, predictions_path, read_predictions
from penstock.engine.study.run_trial import run_trial
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.study.subsets import subset
from penstock.engine.study.trials import read_result, write_result
from penstock.engine.training.trained import TrainedRun


def recorded(folder: Path, classes: int, rows: np.ndarray, seed: int = 0):
    """A file of random predictions, given in batches out of order; also the truth and the probabilities."""
    random = np.random.default_rng(seed)
    truth = random.integers(classes, size=len(rows))
    scores = random.dirichlet(np.full(classes, 0.3), len(rows)).astype(np.float32)
    recorder = PredictionsRecorder(rows, classes)
    for part in np.array_split(random.permutation(len(rows)), 7):
        recorder.add(torch.from_numpy(rows[part]), torch.from_numpy(truth[part]), torch.from_numpy(scores[part]))
    names = [f"class {number}" for number in range(classes)]
    entry = recorder.write(folder / "a.parquet", test="f" * 64, max_test=len(rows), test_rows=10**10, label_names=names)
    return entry, truth, scores


@as_subtests("classes", [1, 2, 5, 64, 65, 300, 70_000])
def test_predictions_survive_the_disk(tmp_path, classes):
    rows = np.array([0, 3, 4, 10, 77, 500, 501, 900])
    entry, truth, scores = recorded(tmp_path, classes, rows)
    found = read_predictions(tmp_path, entry)
    assert found.rows.tolist() == rows.tolist()
    assert found.truth.tolist() == truth.tolist()
    assert found.labels.tolist() == scores.argmax(1).tolist()
    assert (found.max_test, found.test, len(found.label_names)) == (8, "f" * 64, classes)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.field("label").type == {5: pa.uint8(), 300: pa.uint16(), 70_000: pa.uint32()}.get(
        classes, pa.uint8()
    )
    assert table.schema.field("row").type == pa.int32()
    if classes <= 64:
        kept = np.stack([table[f"probability_{number}"].to_numpy() for number in range(classes)], 1)
        assert kept.dtype == np.float16
        assert kept == pytest.approx(scores, abs=1e-3)
        return
    order = np.argsort(-scores, 1)[:, :10]
    for number in range(10):
        assert table[f"top_label_{number + 1}"].to_numpy().tolist() == order[:, number].tolist()
        expected = scores[np.arange(8), order[:, number]]
        assert table[f"top_probability_{number + 1}"].to_numpy() == pytest.approx(expected, abs=1e-3)
    assert table["probability_true"].to_numpy() == pytest.approx(scores[np.arange(8), truth], abs=1e-3)


def test_rows_beyond_32_bits_have_64(tmp_path):
    entry, _, _ = recorded(tmp_path, 2, np.array([1, 1 << 31]))
    assert read_predictions(tmp_path, entry).rows.tolist() == [1, 1 << 31]
    assert pq.read_schema(tmp_path / "a.parquet").field("row").type == pa.int64()


def test_a_row_without_a_prediction_is_an_error(tmp_path):
    recorder = PredictionsRecorder(np.arange(5), 2)
    recorder.add(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.rand(2, 2))
    with pytest.raises(RunError, match="3 of 5 test rows were not evaluated"):
        recorder.write(tmp_path / "a.parquet", test="", max_test=None, test_rows=5, label_names=["a", "b"])
    assert not list(tmp_path.iterdir())


def test_every_damaged_byte_is_found(tmp_path):
    entry, _, _ = recorded(tmp_path, 3, np.arange(50))
    path = tmp_path / "a.parquet"
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(RunError, match=r"a\.parquet: not the predictions .* remove .*a\.json to run the trial"):
            read_predictions(tmp_path, entry)


def test_pages_have_checksums_of_their_own(tmp_path):
    """What `penstock compare` is given alone, without a trial's JSON to say what it has to be like."""
    recorded(tmp_path, 3, np.arange(5000))
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    column = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(2)  # label
    begin = column.dictionary_page_offset or column.data_page_offset
    content[begin + column.total_compressed_size - 20] ^= 1
    with pytest.raises(RunError, match="damaged"):
        parse_predictions(tmp_path / "a.parquet", bytes(content))


def test_a_parquet_file_of_another_kind_is_none_and_of_a_later_format_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"label": ["a"]}), path)
    assert parse_predictions(path, path.read_bytes()) is None
    metadata = {"penstock.predictions": "9"}
    pq.write_table(pa.table({"label": [1]}).replace_schema_metadata(metadata), path)
    with pytest.raises(RunError, match="format 9, this penstock reads 1"):
        parse_predictions(path, path.read_bytes())


def test_a_trial_names_its_predictions(tmp_path):
    made = with_predictions(tmp_path, result("lstm", 500, 1))
    write_result(tmp_path, made)
    assert read_result(tmp_path / "lstm-500-1.json") == made
    assert read_predictions(tmp_path, made.predictions).right.mean() == made.accuracy


def test_a_trial_of_an_earlier_penstock_has_none(tmp_path):
    write_result(tmp_path, result("lstm", 500, 1))
    path = tmp_path / "lstm-500-1.json"
    document = json.loads(path.read_text())
    del document["predictions"], document["crc32"]
    path.write_text(json.dumps(document))
    assert read_result(path).predictions is None


@pytest.fixture
def settings(minilm: str, stores) -> StudySettings:
    return StudySettings(
        **stores,
        encoder=minilm,
        sizes=parse_sizes("40"),
        seeds=parse_seeds("1"),
        max_sizes={},
        families=("lstm",),
        overrides=("model.hidden_size=8", "model.num_layers=1", "training.epochs=1"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("max_test", [None, 30])
def test_a_real_trial_keeps_what_its_model_predicts(settings, tmp_path, max_test):
    settings = dataclasses.replace(settings, max_test=max_test)
    (made,) = run_study(settings, tmp_path, progress=False, run_trial=run_trial, measure=no_cost, keep_runs=True)
    found = read_predictions(tmp_path / "trials", made.predictions)
    store = Store.open(settings.test[0])
    rows = np.arange(100) if max_test is None else subset(store.labels, max_test, 0)
    assert found.rows.tolist() == rows.tolist()
    assert found.truth.tolist() == store.labels[rows].tolist()
    assert found.right.mean() == pytest.approx(made.accuracy)
    assert (found.test, found.max_test, found.test_rows) == (store.fingerprint, max_test, 100)
    run = TrainedRun.open(tmp_path / "runs" / "lstm-40-0")
    names = run.predict(["a fine film", "a dull one"])["label"].to_pylist()
    assert set(names) <= set(found.label_names)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not the predictions"),
        (lambda path: shutil.copy(path.with_name("lstm-50-1.parquet"), path), "not the predictions"),
    ],
)
def test_a_study_does_not_go_on_with_predictions_that_are_not_the_trials(settings, tmp_path, damage, message):
    def trial(task):
        return with_predictions(task.predictions.parent, stand_in(task))

    study = dataclasses.replace(settings, sizes=parse_sizes("50"), seeds=parse_seeds("2"))
    options = {"progress": False, "measure": no_cost}
    run_study(study, tmp_path, run_trial=trial, **options)
    path = predictions_path(tmp_path / "trials", "lstm-50-0")
    whole = path.read_bytes()
    damage(path)
    with pytest.raises(RunError, match=message) as raised:
        run_study(study, tmp_path, run_trial=trial, **options)
    assert len(str(raised.value).splitlines()) == 1
    (tmp_path / "trials" / "lstm-50-0.json").unlink()
    run_study(study, tmp_path, run_trial=trial, **options)
    assert path.read_bytes() == whole
    assert len((tmp_path / "marks" / "lstm-50-0").read_text().splitlines()) == 2
    assert len((tmp_path / "marks" / "lstm-50-1").read_text().splitlines()) == 1
