"""One store of whole texts serves every family; what each reads of them is its recipe's or the user's choice."""

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated_study import stand_in
from subtested import as_subtests
from tiny_encoders import POSITIONS, stock_model

from penstock.engine.data.overlap import find_overlap
from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError, StoreError
from penstock.engine.study import costs, measure_cost
from penstock.engine.study.estimate import Loads
from penstock.engine.study.measure_speed import measure_speed
from penstock.engine.study.report import write_report
from penstock.engine.study.run_trial import TrialTask, run_trial
from penstock.engine.study.settings import STORED_LENGTH, StudySettings, trial_settings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.study.trials import Trial, read_results
from penstock.engine.training.reading import read_alike, read_by
from penstock.engine.training.trained import TrainedRun

pytestmark = pytest.mark.usefixtures("undrawn")

FAMILIES = ("lstm", "lstm-embeddings", "encoder")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> StudySettings:
    """A study of files whose texts have up to 92 tokens, with an encoder that has positions for 40."""
    folder = tmp_path_factory.mktemp("long")
    for name, rows in (("train", 60), ("test", 30)):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for number in range(rows):
                words = ["red", "green"] * (number % 5 * 10 + 5)
                writer.writerow([" ".join(words[: 1 + (number * 7) % 90]), ("no", "yes")[number % 2]])
    store = prepare(str(folder / "train.csv"), folder / "t", tokenizer="train:wordpiece:100", progress=False)
    stock_model("bert", vocab_size=store.vocab_size, num_labels=2).save_pretrained(folder / "encoder")
    store.tokenizer().save_pretrained(folder / "encoder")
    return StudySettings(
        train=(str(folder / "train.csv"),),
        test=(str(folder / "test.csv"),),
        encoder=str(folder / "encoder"),
        sizes=parse_sizes("20,40"),
        seeds=parse_seeds("1"),
        families=FAMILIES,
        max_sizes={},
        overrides=("lstm.model.hidden_size=4", "lstm-embeddings.model.hidden_size=4", "training.epochs=2"),
    )


@pytest.fixture(scope="module")
def store(plain, tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("kept") / "store"
    return prepare(plain.train[0], folder, tokenizer=plain.encoder, max_length=STORED_LENGTH, progress=False)


def start(study: StudySettings, out: Path, **options) -> list[str]:
    """Names of the trials that were run."""
    ran: list[str] = []

    def run(task):
        ran.append(task.trial.name)
        return stand_in(task)

    def measure(family, settings, train, test):
        return costs.Cost(family, 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 1, 32: 1}, "CPU", 1)

    run_study(study, out, progress=False, **{"run_trial": run, "measure": measure} | options)
    return ran


# --max-length, overrides; what lstm, lstm-embeddings and encoder read, or part of the message; tokens that are kept
CASES = [
    (None, (), (1024, 1024, POSITIONS), 4096),
    (30, (), (30, 30, 30), 4096),
    (POSITIONS, (), (POSITIONS,) * 3, 4096),
    (30, ("lstm.data.max_length=50",), (50, 30, 30), 4096),
    (None, ("data.max_length=25",), (25, 25, 25), 4096),
    (None, ("encoder.data.max_length=20",), (1024, 1024, 20), 4096),
    (50, ("encoder.data.max_length=20",), (50, 50, 20), 4096),
    (None, ("lstm.data.max_length=whole",), ("whole", 1024, POSITIONS), 4096),
    (None, ("lstm.data.max_length=9000", "data.max_length=33"), (9000, 33, 33), 9000),
    (50, (), "positions for 40 tokens: .*encoder.data.max_length=", 4096),
    (None, ("encoder.data.max_length=41",), "positions for 40 tokens", 4096),
]


@as_subtests("max_length, overrides, expected, kept", CASES)
def test_what_a_family_reads(plain, store, max_length, overrides, expected, kept):
    study = replace(plain, max_length=max_length, overrides=plain.overrides + overrides)
    assert study.stored_length == kept
    if kept != STORED_LENGTH:
        store = store.cut_to(STORED_LENGTH)  # a stand-in: all that was asked for is decided by the limit
        expected = tuple("whole" if length == kept else length for length in expected)

    def chosen(family):
        return trial_settings(study, Trial(20, 0, family), store).data.max_length

    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            chosen("encoder")
    else:
        assert tuple(chosen(family) for family in FAMILIES) == expected


# (how the test store is prepared beside a training store of 40 tokens and heads, what is said of it)
UNLIKE = [
    ({"max_length": 90}, None),
    ({"max_length": 40}, None),
    (
        {"max_length": 39},
        r"of its 30 texts were cut to 39 tokens \(head\) .* lstm reads 40 tokens \(head\): prepare it with --like",
    ),
    (
        {"max_length": 40, "truncation": "tail"},
        r"were cut to 40 tokens \(tail\) .* lstm reads .* prepare it with --like",
    ),
    ({"text": "text,text2", "max_length": 40}, "other columns of text than .* prepare it with --like"),
]


@as_subtests("options, message", UNLIKE)
def test_a_test_store_of_which_less_is_left_is_refused(plain, tmp_path, options, message):
    """Rather than called worse, or without a row of the training data."""
    with open(plain.test[0], newline="") as file:
        rows = [{**row, "text2": "more"} for row in csv.DictReader(file)]
    with open(tmp_path / "test.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    like = {"tokenizer": plain.encoder, "progress": False}
    train = prepare(plain.train[0], tmp_path / "train", max_length=40, **like)
    test = prepare(str(tmp_path / "test.csv"), tmp_path / "test", **like, **options)
    study = replace(plain, train=(str(train.path),), test=(str(test.path),), families=("lstm",), encoder=None)
    study = replace(study, overrides=("training.epochs=1",))
    if message is None:
        assert start(study, tmp_path / "out")
        found = json.loads((tmp_path / "out" / "study.json").read_text())["overlap"]
        assert found["shared"] == find_overlap(train, test.cut_to(40)).shared > 0
    else:
        with pytest.raises(StoreError, match=message):
            start(study, tmp_path / "out")


def test_a_test_store_has_to_keep_what_families_read_and_no_more(plain, tmp_path):
    train = prepare(plain.train[0], tmp_path / "train", tokenizer=plain.encoder, max_length=40, progress=False)
    test = prepare(plain.test[0], tmp_path / "test", tokenizer=plain.encoder, max_length=20, progress=False)
    study = replace(plain, train=(str(train.path),), test=(str(test.path),), families=("lstm", "encoder"), overrides=())
    few = ("encoder.data.max_length=12", "lstm.data.max_length=20")
    assert start(replace(study, overrides=few), tmp_path / "few")
    for more in ((), ("lstm.data.max_length=21",), ("lstm.data.max_length=12", "lstm.data.truncation=tail")):
        with pytest.raises(StoreError, match=r"cut to 20 tokens \(head\) .* and lstm reads .* prepare it with --like"):
            start(replace(study, overrides=(few[0], *more)), tmp_path / f"{len(more)}")


@as_subtests("truncation, read", itertools.product(("head", "tail"), ((), ("data.max_length=9",))))
def test_test_texts_are_cut_where_those_of_the_training_store_are(plain, tmp_path, truncation, read):
    """Whatever the test store keeps: also by families without a run that says it, and where speeds are measured."""
    options = {"tokenizer": plain.encoder, "progress": False}
    train = prepare(plain.train[0], tmp_path / "train", max_length=24, **options)
    like = prepare(plain.test[0], tmp_path / "like", like=train.path, progress=False)
    longer = prepare(plain.test[0], tmp_path / "longer", max_length=92, truncation=truncation, **options)
    assert longer.longest > POSITIONS
    for family in ("linear", "encoder"):
        settings = trial_settings(replace(plain, overrides=read), Trial(40, 0, family), train)
        alike, own = (read_alike(read_by(settings, train), test) for test in (longer, like))
        assert all(alike.tokens(row).tolist() == own.tokens(row).tolist() for row in range(like.num_examples))
        one, other = (
            TrialTask(Trial(40, 0, family), settings, train.path, test.path, 0, None, tmp_path / "run")
            for test in (longer, like)
        )
        assert Loads(train, longer)(one) == Loads(train, like)(other)
        assert measure_speed(one, train, longer, threads=1, seconds=0.01).predict > 0
        if family == "linear":
            assert run_trial(one).evaluation == run_trial(other).evaluation


def test_what_is_kept_of_longer_texts(plain, store):
    """--truncation goes to the store; over a store that has another, to those families that read less than it keeps."""
    tail = replace(plain, truncation="tail", max_length=30)
    assert trial_settings(tail, Trial(20, 0, "lstm"), store).data.truncation == "tail"
    whole = replace(tail, overrides=(*plain.overrides, "lstm.data.max_length=whole"))
    assert trial_settings(whole, Trial(20, 0, "lstm"), store).data.truncation == "auto"
    own = replace(whole, overrides=(*whole.overrides, "lstm.data.truncation=tail"))
    with pytest.raises(ConfigError, match=r"data\.truncation=tail has no effect"):
        trial_settings(own, Trial(20, 0, "lstm"), store)


def test_the_recipe_goes_by_what_is_read(plain, store):
    free = replace(plain, overrides=())
    batches = [
        trial_settings(replace(free, max_length=length), Trial(20, 0, "lstm"), store).data.tokens for length in (5, 90)
    ]
    assert batches[0] < batches[1] / 4


@pytest.mark.slow
def test_one_store_for_all(plain, tmp_path, capsys):
    study = replace(plain, overrides=(*plain.overrides, "lstm.data.max_length=10"))
    over = run_study(
        study,
        tmp_path / "study",
        keep_runs=True,
        measure=lambda family, *_: costs.Cost(family, 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 1, 32: 1}, "CPU", 1),
    )
    said = capsys.readouterr().err
    assert "lstm reads texts cut at 10 tokens (head)" in said
    assert f"encoder reads texts cut at {POSITIONS} tokens (head)" in said
    folder = tmp_path / "study"
    train, test = (Store.open(folder / "data" / name) for name in ("train", "test"))
    assert train.max_length == test.max_length == 4096
    assert train.longest > 80
    document = json.loads((folder / "study.json").read_text())
    reads = {family: entry["max_length"] for family, entry in document["reads"].items()}
    assert reads == {"lstm": 10, "lstm-embeddings": 1024, "encoder": POSITIONS}
    assert document["reads"]["lstm"]["left_out"] == train.num_tokens - train.cut_to(10).num_tokens
    for result in over:
        run = TrainedRun.open(folder / "runs" / result.trial.name)
        assert run.data["max_length"] == reads[result.trial.family]
        found = run.evaluate_store(test).to_json()
        assert (found["accuracy"], found["loss"]) == (result.accuracy, result.loss), result.trial.name
        assert result.made_from.settings["data.max_length"] == reads[result.trial.family]
    write_report(folder)
    lines = (folder / "report.md").read_text().splitlines()
    assert any(line.startswith("| fine-tuned encoder |") and f"| {POSITIONS} tokens |" in line for line in lines)


def test_latency_is_that_of_what_is_read(plain, store):
    seen = []
    for family in ("encoder", "frozen"):
        for study in (plain, replace(plain, max_length=12)):
            settings = trial_settings(study, Trial(20, 0, family), store)
            seen.append(measure_cost.subject_of(settings, store).max_length)
    assert seen == [POSITIONS, 12] * 2


def as_an_earlier_penstock_left_it(folder: Path) -> None:
    """Takes out what it did not write."""
    for path in [*folder.glob("trials/*.json"), *folder.glob("costs/*.json")]:
        document = json.loads(path.read_text())
        settings = document["made_from"]["settings"]
        del document["crc32"]
        document["made_from"]["settings"] = {k: v for k, v in settings.items() if k not in NEW}
        path.write_text(json.dumps(document))
    path = folder / "study.json"
    document = json.loads(path.read_text())
    del document["reads"], document["crc32"]
    assert "stored_length" not in document["identity"]
    path.write_text(json.dumps(document))


NEW = ("data.max_length", "data.truncation")


@pytest.mark.parametrize("prepared", [False, True], ids=["files", "stores"])
def test_an_earlier_study_goes_on_as_it_was(plain, tmp_path, prepared):
    """Its store keeps 36 tokens; or it is of stores that keep 39; and every family reads them all."""
    study, out = replace(plain, encoder=plain.encoder), tmp_path / "study"
    if prepared:
        train = prepare(plain.train[0], tmp_path / "train", tokenizer=plain.encoder, max_length=39, progress=False)
        test = prepare(plain.test[0], tmp_path / "test", like=train.path, progress=False)
        study = replace(plain, train=(str(train.path),), test=(str(test.path),))
    assert len(start(replace(study, max_length=36, whole=True), out)) == 6
    as_an_earlier_penstock_left_it(out)
    kept = {
        path: path.read_bytes() for path in [*out.glob("trials/*"), *out.glob("data/*/*.arrow"), *out.glob("costs/*")]
    }
    assert start(study, out) == []
    assert start(replace(study, max_length=36), out) == []
    assert {path: path.read_bytes() for path in kept} == kept
    with pytest.raises(RunError, match="max_length is 36 there and 30 here"):
        start(replace(study, max_length=30), out)
    more = start(replace(study, sizes=parse_sizes("20,40,60")), out)
    assert more == [f"{family}-60-0" for family in sorted(FAMILIES)]
    read = {result.made_from.settings.get("data.max_length") for result in read_results(out / "trials")}
    assert read == {None, "whole"}
    if not prepared:
        assert Store.open(out / "data" / "train").max_length == 36


def test_a_study_is_not_continued_with_another_cut(plain, tmp_path):
    start(replace(plain, families=("lstm",)), tmp_path / "study")
    with pytest.raises(RunError, match="max_length is None there and 30 here"):
        start(replace(plain, families=("lstm",), max_length=30), tmp_path / "study")


def test_a_store_that_keeps_less_is_said(plain, tmp_path, capsys):
    train = prepare(plain.train[0], tmp_path / "train", tokenizer=plain.encoder, max_length=39, progress=False)
    test = prepare(plain.test[0], tmp_path / "test", like=train.path, progress=False)
    study = replace(plain, train=(str(train.path),), test=(str(test.path),), families=("lstm",), max_length=50)
    run_study(
        study,
        tmp_path / "study",
        run_trial=stand_in,
        measure=lambda family, *_: costs.Cost(family, 1, 1, 1, {}, {}, "", 1),
    )
    said = capsys.readouterr().err
    assert f"--max-length 50: {train.path} keeps 39 tokens of a text, and no more is read" in said


def test_a_report_from_another_directory_finds_the_test_store(plain, store, tmp_path, monkeypatch):
    prepare(plain.test[0], tmp_path / "test", like=store.path, progress=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    start(replace(plain, train=(str(store.path),), test=("test",)), tmp_path / "answer")
    reports = []
    for where in (".", "elsewhere"):
        monkeypatch.chdir(tmp_path / where)
        write_report(tmp_path / "answer")
        reports.append((tmp_path / "answer" / "report.md").read_text())
    assert reports[0] == reports[1]
    assert f"| {POSITIONS} tokens | –" not in reports[0]
    assert f"| {POSITIONS} tokens | " in reports[0]
