"""A study never mixes trials that were made from different things, and says which things they are."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from fabricated_study import stand_in
from tiny_encoders import BERT

from penstock.engine.data.prepare import prepare
from penstock.engine.errors import RunError, StoreError
from penstock.engine.study import costs
from penstock.engine.study import study as study_module
from penstock.engine.study.fingerprints import MadeFrom, changed_setting, difference, encoder_fingerprint
from penstock.engine.study.report import write_report
from penstock.engine.study.run_trial import TrialTask, run_trial
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.study.trials import read_results
from penstock.engine.training.settings import Settings

pytestmark = pytest.mark.usefixtures("undrawn")

WORDS = ["red", "green", "blue", "amber", "violet", "ivory"]


def write_csv(path: Path, rows: int, labels: tuple[str, ...] = ("no", "yes"), salt: int = 0) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(rows):
            writer.writerow([f"{WORDS[(i * 5 + salt) % 6]} {WORDS[i % 5]} {i}", labels[i % len(labels)]])


def build(folder: Path, rows: int = 60, tokenizer: str = "train:wordpiece:200", **options) -> None:
    """The two stores of a study, under their names, whatever was there."""
    labels = options.pop("labels", ("no", "yes"))
    write_csv(folder / "train.csv", rows, labels)
    if not (folder / "test.csv").exists():
        write_csv(folder / "test.csv", 30, labels, salt=3)
    made = {"overwrite": True, "progress": False}
    prepare(str(folder / "train.csv"), folder / "train", tokenizer=tokenizer, **made, **options)
    prepare(str(folder / "test.csv"), folder / "test", like=folder / "train", **made)


def save_encoder(folder: Path, **changes: object) -> None:
    config = transformers.BertConfig(**{**BERT, "vocab_size": 300, "pad_token_id": 0, **changes})
    transformers.BertForSequenceClassification(config).save_pretrained(folder)


class Place:
    """A study of two stores, or of two files, and a tiny encoder: `start` runs it and counts its trials."""

    def __init__(self, folder: Path, prepared: bool = True) -> None:
        self.folder, self.out = folder, folder / "answer"
        folder.mkdir()
        build(folder)
        save_encoder(folder / "encoder")
        names = [str(folder / (name if prepared else f"{name}.csv")) for name in ("train", "test")]
        self.encoder = folder / "encoder"
        if not prepared:  # the encoder brings its tokenizer
            for path in (folder / "train" / "tokenizer").iterdir():
                shutil.copy(path, self.encoder)
        self.settings = StudySettings(
            train=(names[0],),
            test=(names[1],),
            encoder=str(self.encoder),
            sizes=parse_sizes("10,20"),
            seeds=parse_seeds("1"),
            max_sizes={},
            families=("lstm", "encoder"),
        )
        self.ran: list[str] = []
        self.measured: list[str] = []

    def start(self, **changes: object) -> None:
        def run(task: TrialTask):
            self.ran.append(task.trial.name)
            return stand_in(task)

        def measure(family, settings, train, test):
            self.measured.append(family)
            return costs.Cost(family, 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 1, 32: 1}, "CPU", 1)

        self.ran, self.measured = [], []
        run_study(replace(self.settings, **changes), self.out, progress=False, run_trial=run, measure=measure)


def begun(folder: Path, prepared: bool) -> tuple[Place, Path]:
    """A study, and a copy of its folder."""
    made = Place(folder / "place", prepared)
    made.start()
    assert len(made.ran) == 4
    return made, Path(shutil.copytree(made.folder, folder / "copy"))


@pytest.fixture(scope="module")
def begun_with_stores(tmp_path_factory) -> tuple[Place, Path]:
    return begun(tmp_path_factory.mktemp("stores"), True)


@pytest.fixture(scope="module")
def begun_with_files(tmp_path_factory) -> tuple[Place, Path]:
    return begun(tmp_path_factory.mktemp("files"), False)


def as_begun(made: Place, copy: Path) -> Place:
    """The same study, in the place that its files name, as if nothing had happened since it began."""
    shutil.rmtree(made.folder)
    shutil.copytree(copy, made.folder)
    made.ran, made.measured = [], []
    return made


@pytest.fixture
def place(begun_with_stores) -> Place:
    return as_begun(*begun_with_stores)


@pytest.fixture
def from_files(begun_with_files) -> Place:
    return as_begun(*begun_with_files)


def another_encoder(place: Place) -> None:
    shutil.rmtree(place.encoder)
    save_encoder(place.encoder, num_hidden_layers=2)


def other_weights(place: Place) -> None:
    """The same names, sizes and times."""
    file = place.encoder / "model.safetensors"
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    shutil.copy(file, place.folder / "moved")
    file.unlink()
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def other_test(place: Place) -> None:
    write_csv(place.folder / "test.csv", 31, salt=2)
    prepare(str(place.folder / "test.csv"), place.folder / "test", like=place.folder / "train", overwrite=True)


CHANGES: dict[str, tuple[Callable[[Place], None], str]] = {
    "other rows": (lambda place: build(place.folder, rows=61), "the training data"),
    "fewer rows than a trial has": (lambda place: build(place.folder, rows=12), "the training data"),
    "another tokenizer": (lambda place: build(place.folder, tokenizer="train:bpe:300"), "the training data"),
    "other labels": (lambda place: build(place.folder, labels=("no", "yes", "both")), "the training data"),
    "other names of labels": (lambda place: build(place.folder, labels=("0", "1")), "the training data"),
    "another max_length": (lambda place: build(place.folder, max_length=4), "the training data"),
    "another test set": (other_test, "the test data"),
    "another encoder": (another_encoder, "the encoder's files"),
    "other weights": (other_weights, "the encoder's files"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_rebuilt_under_the_same_name_is_refused(place: Place, change: str):
    make, what = CHANGES[change]
    if "label" in change:
        (place.folder / "test.csv").unlink()
    trials = {path.name: path.read_bytes() for path in (place.out / "trials").iterdir()}
    make(place)
    with pytest.raises(
        RunError, match=rf"trials/.*\.json was made from something else.*{what}.* then, .* now"
    ) as raised:
        place.start(sizes=parse_sizes("10,20,40" if change != "fewer rows than a trial has" else "10"))
    assert raised.value.exit_code == 7
    assert "remove trials, costs, data and runs in" in str(raised.value)
    assert place.ran == place.measured == []
    assert trials == {path.name: path.read_bytes() for path in (place.out / "trials").iterdir()}
    for name in ("trials", "costs"):
        shutil.rmtree(place.out / name)
    place.start(sizes=parse_sizes("10"))
    assert len(place.ran) == len(place.measured) == 2


def test_a_changed_source_is_refused_with_its_store_and_without(from_files: Place):
    write_csv(from_files.folder / "train.csv", 64)
    with pytest.raises(RunError, match="data/train was prepared from other data"):
        from_files.start()
    shutil.rmtree(from_files.out / "data")
    with pytest.raises(RunError, match=r"the training data .* then, .* now"):
        from_files.start()
    write_csv(from_files.folder / "train.csv", 60)
    shutil.rmtree(from_files.out / "data")
    write_csv(from_files.folder / "test.csv", 29)
    with pytest.raises(RunError, match=r"the test data .* then, .* now"):
        from_files.start()
    assert from_files.ran == []


def test_what_is_the_same_goes_on(from_files: Place):
    """Touched, prepared again, moved about: the content counts."""
    for path in from_files.folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            os.utime(path)
    shutil.rmtree(from_files.out / "data")
    from_files.start(sizes=parse_sizes("10,20,40"))
    assert sorted(from_files.ran) == ["encoder-40-0", "lstm-40-0"]
    assert from_files.measured == []


def test_the_same_files_may_be_named_from_another_directory(from_files: Place, monkeypatch):
    folder, trials = from_files.folder, 4
    shutil.rmtree(from_files.out)
    (folder / "elsewhere").mkdir()

    def named(beginning: str) -> dict[str, object]:
        names = {name: f"{beginning}{name}" for name in ("train.csv", "test.csv", "encoder")}
        overrides = ("lstm.training.epochs=2", f"encoder.model.encoder={names['encoder']}")
        files = {"train": (names["train.csv"],), "test": (names["test.csv"],), "encoder": names["encoder"]}
        return {**files, "overrides": overrides}

    for where, beginning in (
        ("elsewhere", "../"),
        (".", ""),
        ("..", f"{folder.name}/"),
        (".", f"{folder}/"),
        ("elsewhere", "../elsewhere/../"),
        ("..", f"./{folder.name}/"),
        (".", "./"),
    ):
        monkeypatch.chdir(folder / where)
        from_files.start(**named(beginning))
        assert (len(from_files.ran), len(from_files.measured)) == (trials, trials // 2), beginning
        trials = 0
    for part, said in (("train", "data/train was prepared from other data"), ("test", "data/test was prepared")):
        other = folder / "elsewhere" / f"{part}.csv"
        write_csv(other, 31, salt=4)
        with pytest.raises(RunError, match=said):
            from_files.start(**{**named(""), part: (f"elsewhere/{part}.csv",)})
    from_files.start(**named(f"{folder}/"))
    for change in (
        {"train": ("elsewhere/train.csv",)},
        {"test": ("synthetic:reviews?n=9",)},
        {"train": ("train.csv", "elsewhere/train.csv")},
    ):
        with pytest.raises(RunError, match=f"belongs to another study: {next(iter(change))} is"):
            from_files.start(**{**named(""), **change})


def test_a_store_rebuilt_from_the_same_goes_on(place: Place):
    build(place.folder)
    place.start()
    assert place.ran == place.measured == []


def test_families_that_read_no_encoder_do_not_mind_another(place: Place):
    for path in (place.out / "trials").glob("encoder-*"):
        path.unlink()
    another_encoder(place)
    place.start(families=("lstm",), sizes=parse_sizes("10,20,40"))
    assert place.ran == ["lstm-40-0"]
    place.start()
    assert place.measured == ["encoder"], "its cost was that of the other encoder"


def test_a_family_that_is_added_may_bring_settings(place: Place):
    own = "lstm-embeddings.training.epochs=2"
    place.start(families=("lstm", "encoder", "lstm-embeddings"), overrides=(own,))
    assert sorted(place.ran) == ["lstm-embeddings-10-0", "lstm-embeddings-20-0"]
    for later in ((own.replace("2", "4"),), (), (own, "training.epochs=2"), (own, "encoder.training.epochs=2")):
        with pytest.raises(RunError, match="overrides is"):
            place.start(families=("lstm", "encoder", "lstm-embeddings"), overrides=later)
    place.start(overrides=(own, "bag.training.epochs=3"))  # which are not used
    with pytest.raises(RunError, match="overrides is"):
        place.start(overrides=())


def test_other_settings_are_refused(place: Place):
    with pytest.raises(RunError, match="overrides is"):
        place.start(overrides=("training.epochs=3",))
    # another recipe, under the same command
    path = place.out / "trials" / "lstm-10-0.json"
    document = json.loads(path.read_text())
    del document["crc32"]  # as whoever edits the file on purpose
    document["made_from"]["settings"]["training.weight_decay"] = 0.5
    path.write_text(json.dumps(document))
    with pytest.raises(RunError, match=r"lstm-10-0\.json .*training\.weight_decay: 0\.5 then, 0\.01 now"):
        place.start()


FORGOTTEN = ("encoders", "overlap", "max_length", "crc32")


def forget(out: Path) -> None:
    """Makes the study one of an earlier penstock."""
    for path in [*(out / "trials").iterdir(), *(out / "costs").iterdir()]:
        document = json.loads(path.read_text())
        del document["made_from"], document["crc32"]
        path.write_text(json.dumps(document))
    document = json.loads((out / "study.json").read_text())
    path = out / "study.json"
    path.write_text(json.dumps({k: v for k, v in document.items() if k not in FORGOTTEN}))


def test_trials_of_an_earlier_penstock_go_on_with_a_note(place: Place, capsys):
    forget(place.out)
    run_study(place.settings, place.out, run_trial=stand_in, measure=lambda *_: pytest.fail("measured again"))
    notes = [line for line in capsys.readouterr().err.splitlines() if "earlier penstock" in line]
    assert len(notes) == 1
    assert "4 trials" in notes[0]
    write_report(place.out)
    assert "4 trials are of an earlier penstock" in (place.out / "report.md").read_text()


@pytest.mark.parametrize("change", ["other rows", "another test set"])
def test_trials_of_an_earlier_penstock_are_compared_by_study_json(place: Place, change: str):
    forget(place.out)
    make, what = CHANGES[change]
    make(place)
    with pytest.raises(RunError, match=what):
        place.start()


def test_a_trial_in_progress_is_refused_before_another_is_trained(place: Place):
    made = {result.trial.name: result.made_from.settings for result in read_results(place.out / "trials")}
    shutil.rmtree(place.out / "trials")
    run = place.out / "runs" / "lstm-20-0"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"format": 1, "identity": {"training data": "0" * 64}}))
    with pytest.raises(RunError, match=r"runs/lstm-20-0 was made from something else.*the training data"):
        place.start()
    (run / "run.json").write_text(
        json.dumps({"format": 1, "identity": made[run.name] | {"training.weight_decay": 0.7}})
    )
    with pytest.raises(RunError, match=r"runs/lstm-20-0 .*training\.weight_decay: 0\.7 then"):
        place.start()
    (run / "run.json").unlink()
    run = run.rename(place.out / "runs" / "encoder-20-0")
    (run / "run.json").write_text(json.dumps({"format": 1, "identity": made["encoder-20-0"]}))
    other_weights(place)
    with pytest.raises(RunError, match=r"runs/encoder-20-0 .*the encoder's files"):
        place.start()
    assert place.ran == []


def test_costs_of_other_data_are_measured_again(place: Place):
    shutil.rmtree(place.out / "trials")
    build(place.folder, rows=61)
    place.start()
    assert place.measured == ["lstm", "encoder"]
    place.start()
    assert place.measured == []


def test_a_store_that_changes_while_the_study_runs(place: Place):
    tasks: list[TrialTask] = []

    def collect(task: TrialTask):
        tasks.append(task)
        return stand_in(task)

    shutil.rmtree(place.out / "trials")
    run_study(place.settings, place.out, progress=False, run_trial=collect, measure=None)
    build(place.folder, rows=61)
    with pytest.raises(RunError, match="changed while it ran: the training data"):
        run_trial(tasks[0])


def test_stores_that_do_not_fit_each_other_are_refused(place: Place):
    shutil.rmtree(place.out)
    shutil.copytree(place.folder / "test", place.folder / "kept")
    build(place.folder, tokenizer="train:bpe:300")
    with pytest.raises(StoreError, match="another tokenizer"):
        place.start(test=(str(place.folder / "kept"),))
    assert place.ran == []


@pytest.mark.parametrize("paired", ["train", "test"])
def test_pairs_beside_single_texts_are_refused(place: Place, paired):
    shutil.rmtree(place.out)
    rows = (place.folder / f"{paired}.csv").read_text().splitlines()[1:]
    (place.folder / "pairs.csv").write_text("\n".join(["text,label,more", *(f"{row},more" for row in rows)]) + "\n")
    like = {"tokenizer": str(place.folder / "train" / "tokenizer"), "text": "text,more", "progress": False}
    pairs = prepare(str(place.folder / "pairs.csv"), place.folder / "pairs", **like)
    with pytest.raises(StoreError, match=r"has other columns of text than .*: prepare it with --like"):
        place.start(families=("lstm",), **{paired: (str(pairs.path),)})
    assert place.ran == place.measured == []


def test_the_report_refuses_a_mixture(place: Place):
    write_report(place.out)
    path = place.out / "trials" / "lstm-10-0.json"
    whole = path.read_text()
    for part, value in (("train", "0" * 64), ("test", "1" * 64)):
        document = json.loads(whole)
        document["made_from"][part] = value
        del document["crc32"]  # as whoever edits the file on purpose
        path.write_text(json.dumps(document))
        with pytest.raises(
            RunError, match=rf"lstm-10-0\.json is not of this study: the {part} data: {value[:12]} then"
        ):
            write_report(place.out)
    path.write_text(whole)
    path = place.out / "trials" / "encoder-10-0.json"
    document = json.loads(path.read_text())
    document["made_from"]["encoder"] = "2" * 32
    del document["crc32"]
    path.write_text(json.dumps(document))
    with pytest.raises(RunError, match="different encoders"):
        write_report(place.out)


def test_every_trial_and_cost_carries_what_it_was_made_from(place: Place):
    results = {result.trial.name: result.made_from for result in read_results(place.out / "trials")}
    assert all(made is not None and len(made.train) == 64 for made in results.values())
    assert results["lstm-10-0"].encoder is None
    assert results["encoder-10-0"].encoder == encoder_fingerprint(str(place.encoder))
    assert results["encoder-10-0"].settings["training.learning_rate"] > 0
    for family in ("lstm", "encoder"):
        assert costs.read_cost(place.out / "costs" / f"{family}.json").made_from is not None


def test_a_difference_is_found_in_every_field():
    made = MadeFrom("a" * 64, "b" * 64, {"model.kind": "lstm", "training.epochs": 3}, None, None)
    assert difference(made, made) is None
    for name, value in {"train": "c" * 64, "test": "c" * 64, "encoder": "e", "max_test": 5, "format": 2}.items():
        assert str(value)[:12] in str(difference(made, dataclasses.replace(made, **{name: value})))


def test_a_setting_that_is_new_was_at_its_default():
    then = {"model.kind": "lstm"}
    defaults = {"training.weight_decay": 0.01, "training.calibrate": False}
    assert changed_setting(then, {"model.kind": "lstm", **defaults}) is None
    assert changed_setting(then, {"model.kind": "lstm", "training.weight_decay": 0.1}) is not None
    assert changed_setting({**then, "training.gone": 1}, {"model.kind": "lstm"}) is None


def test_costs_of_an_earlier_penstock_with_fewer_settings_stand():
    usual = Settings().flat()
    model = {key: value for key, value in usual.items() if key.startswith("model.") and key != "model.encoder"}
    now = MadeFrom("a", "b", model | {"model.kind": "lstm"}, None, None)
    old = {key: value for key, value in now.settings.items() if key not in ("model.ngrams", "model.buckets")}
    then = replace(now, settings=old)
    assert study_module._same_cost(then, now)
    assert not study_module._same_cost(then, replace(now, settings=now.settings | {"model.ngrams": 5}))
    assert not study_module._same_cost(then, replace(now, settings=now.settings | {"data.max_length": 9}))
    assert not study_module._same_cost(replace(then, settings=old | {"data.max_length": 9}), now)
    assert not study_module._same_cost(replace(then, train="c"), now)


@pytest.mark.slow
def test_an_encoder_of_the_hub_is_known_by_its_revision(tmp_path: Path):
    """Read in a process of its own: where the hub's cache lies is settled when its library is imported."""
    folder = tmp_path / "models--some--encoder"
    (folder / "refs").mkdir(parents=True)
    revisions = ["a" * 40, "b" * 40]
    for revision in revisions:
        save_encoder(folder / "snapshots" / revision)
    print_them = (
        "import pathlib, sys; from penstock.engine.study.fingerprints import encoder_fingerprint\n"
        "for revision in sys.argv[2:]:\n"
        " pathlib.Path(sys.argv[1]).write_text(revision); print(encoder_fingerprint('some/encoder'))"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", print_them, str(folder / "refs" / "main"), *revisions]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [f"some/encoder@{revision}" for revision in revisions], done.stderr


def test_a_study_says_what_train_and_test_share(place: Place, capsys, monkeypatch):
    shutil.copytree(place.folder / "train", place.folder / "same")
    shutil.rmtree(place.out)
    same = replace(place.settings, test=(str(place.folder / "same"),))
    run_study(
        same, place.out, run_trial=stand_in, measure=lambda family, *_: costs.Cost(family, 1, 1, 1, {}, {}, "", 1)
    )
    line = "60 of 60 test rows (100.0%) agree in all tokens kept with a training row, 0 under another label"
    assert f"train and test: {line}" in capsys.readouterr().err.splitlines()
    # known from then on
    monkeypatch.setattr(study_module, "find_overlap", lambda *_: pytest.fail("read again"))
    run_study(same, place.out, progress=False, run_trial=stand_in)
    assert json.loads((place.out / "study.json").read_text())["overlap"]["shared"] == 60


def test_options_that_a_store_has_settled_get_a_line(place: Place, capsys):
    changed = replace(place.settings, text="body", max_length=9999, overrides=("lstm-embeddings.training.epochs=2",))
    shutil.rmtree(place.out)
    run_study(
        changed, place.out, run_trial=stand_in, measure=lambda family, *_: costs.Cost(family, 1, 1, 1, {}, {}, "", 1)
    )
    notes = capsys.readouterr().err
    for part in ("--text body is not used", "--max-length 9999: ", "settings for lstm-embeddings"):
        assert part in notes
