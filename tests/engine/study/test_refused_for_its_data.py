"""A study that was refused before its first trial has claimed nothing: what its message asks for is taken next."""

from dataclasses import replace
from pathlib import Path

import pytest
from fabricated_study import no_cost, stand_in

from penstock.engine.data.prepare import prepare
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.errors import ConfigError, ModelError, RunError, SourceError, StoreError
from penstock.engine.study.directory import claim, read_study
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study


def write(path: Path, seed: int, more: str = "", rows: int = 60) -> Path:
    lines = ["text,label", *(f'"{text}",{label}' for text, label in generate_reviews(rows, seed=seed))]
    path.write_text("\n".join(lines) + "\n" + more)
    return path


def run(settings: StudySettings, out: Path):
    return run_study(settings, out, progress=False, run_trial=stand_in, measure=no_cost)


@pytest.fixture
def settings(tmp_path) -> StudySettings:
    """A source and a test file."""
    return StudySettings(
        train=(str(write(tmp_path / "train.csv", 0)),),
        test=(str(write(tmp_path / "test.csv", 1)),),
        encoder=None,
        sizes=parse_sizes("20,30"),
        seeds=parse_seeds("1"),
        max_sizes={},
        families=("lstm",),
    )


UNKNOWN, BROKEN = "a film,seven\n", "a film,1,2\n"


@pytest.mark.parametrize(
    ("file", "more", "change", "refused"),
    [
        ("test.csv", UNKNOWN, {"bad_rows": "quarantine"}, "'seven' is not among the labels of the training data"),
        ("test.csv", UNKNOWN, {"test": "other"}, "not among the labels"),
        ("test.csv", UNKNOWN, {}, "not among the labels"),
        ("test.csv", BROKEN, {"bad_rows": "quarantine"}, "3 fields where the header has 2"),
        ("train.csv", BROKEN, {"bad_rows": "quarantine"}, "3 fields where the header has 2"),
        ("train.csv", BROKEN, {"train": "other"}, "3 fields where the header has 2"),
        ("train.csv", BROKEN, {}, "3 fields where the header has 2"),
    ],
)
def test_rows_that_cannot_be_used(settings, tmp_path, file, more, change, refused):
    """Without a change, the file itself is mended."""
    write(tmp_path / file, 0 if file == "train.csv" else 1, more)
    out = tmp_path / "study"
    with pytest.raises(SourceError, match=refused) as raised:
        run(settings, out)
    assert "--like" not in str(raised.value)
    if not change:
        write(tmp_path / file, 2)
    other = str(write(tmp_path / "other.csv", 3))
    now = replace(settings, **{name: (other,) if value == "other" else value for name, value in change.items()})
    assert len(run(now, out)) == 2
    assert read_study(out)["identity"] == now.identity()
    assert len(run(now, out)) == 2
    with pytest.raises(RunError, match="another study: seed"):
        run(replace(now, seed=1), out)


def test_the_training_data_was_prepared_already(settings, tmp_path):
    """It is read again where it is other data now, and what was made like it too."""
    out = tmp_path / "study"
    with pytest.raises(ConfigError, match="the test data has 60"):
        run(replace(settings, max_test=100), out)
    stores = [out / "data" / name / "manifest.json" for name in ("train", "test")]
    before = [path.stat().st_mtime_ns for path in stores]
    write(tmp_path / "train.csv", 5, rows=80)
    run(settings, out)
    assert all(path.stat().st_mtime_ns > was for path, was in zip(stores, before, strict=True))
    assert read_study(out)["train"]["examples"] == 80
    write(tmp_path / "train.csv", 6)
    with pytest.raises(RunError, match="data/train was prepared from other data"):
        run(settings, out)


def test_the_wrong_tokenizer(settings, tiny, tmp_path):
    other = prepare("synthetic:reviews?n=400&seed=0", tmp_path / "other", tokenizer="train:bpe:300", progress=False)
    now = replace(settings, **tiny, families=("encoder",))
    out = tmp_path / "study"
    with pytest.raises(StoreError, match="another tokenizer"):
        run(replace(now, train=(str(other.path),)), out)
    test = prepare("synthetic:reviews?n=60&seed=1", tmp_path / "test", like=other.path, progress=False)
    with pytest.raises(ModelError, match="prepare it with --tokenizer"):
        run(replace(now, train=(str(other.path),), test=(str(test.path),)), out)
    assert len(run(now, out)) == 2


def test_what_belongs_to_the_study_that_has_not_begun_goes_with_it(settings, tmp_path):
    out = tmp_path / "study"
    with pytest.raises(ConfigError, match="the test data has 60"):
        run(replace(settings, max_test=100), out)
    (out / "plan.json").write_text("{}")
    (out / "external").mkdir()
    (out / "external" / "vendor.json").write_text("{}")
    run(replace(settings, test=(str(write(tmp_path / "other.csv", 3)),)), out)
    assert not (out / "plan.json").exists()
    assert not (out / "external").exists()


@pytest.mark.parametrize("there", ["trials/lstm-20-0.json", "cells/lstm-20-0.json", "runs/lstm-20-0/run.json"])
def test_what_is_there_of_a_trial_is_not_given_away(tmp_path, there):
    out = tmp_path / "study"
    claim(out, {"seed": 0}).close()
    (out / there).parent.mkdir(parents=True, exist_ok=True)
    (out / there).write_text("{}")
    with pytest.raises(RunError, match="another study: seed is 0 there and 1 here"):
        claim(out, {"seed": 1})
