"""A student learns from teachers' logits: what it learns, from which texts, and what ends in one line instead."""

import json
import math
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import penstock
from few_texts import write_texts
from rank_runs import distil_in_ranks
from ranks import run_ranks
from stopping import stop_at
from subtested import as_subtests

from penstock.engine.data import logits as logits_module
from penstock.engine.data.loader import Loader
from penstock.engine.data.logits import Logits, make_logits, missing_parts
from penstock.engine.data.overlap import shared_rows
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.prepare import prepare
from penstock.engine.data.sources import PLAIN_READING
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, PenstockError, RunError, StoreError
from penstock.engine.files import FolderLock
from penstock.engine.models.output import distillation_loss
from penstock.engine.training import distil as distil_module
from penstock.engine.training.distil import distil, go_on
from penstock.engine.training.distil_command import Options, read_distil_command
from penstock.engine.training.raw_texts import RawTexts
from penstock.engine.training.settings import load_settings
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.teachers import Labeller, logits_of, open_teachers
from penstock.engine.training.train import train
from penstock.engine.training.trained import TrainedRun

RAW = 150


@pytest.fixture(scope="module", autouse=True)
def _small_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logits_module, "ROWS_PER_PART", 16)
        yield


@pytest.fixture(scope="module")
def raw(tmp_path_factory, store) -> Store:
    folder = tmp_path_factory.mktemp("raw")
    source = write_texts(folder / "raw.csv", RAW, 11)
    return prepare(str(source), folder / "raw", like=store.path, unlabelled=True, progress=False)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, store, settings) -> list[Path]:
    folder = tmp_path_factory.mktemp("teachers")
    for name, chosen in (("one", ["training.seed=1"]), ("two", ["training.seed=2", "data.max_length=6"])):
        train(settings(*chosen), store, folder / name, progress="none")
    return [folder / "one", folder / "two"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, teachers, raw, store, settings):
    """What an uninterrupted distillation comes to."""
    run = tmp_path_factory.mktemp("plain") / "run"
    result = distil(settings(), teachers, raw, run, train_store=store, progress="none")
    return run, result


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def folder_of_logits(run: Path) -> Path:
    return Path(record(run)["data"]["distillation"]["logits"][-1])


# -- the loss ----------------------------------------------------------------------------------------------------------


@as_subtests(("temperature", "mix", "smoothing"), [(1.0, 0.0, 0.0), (2.0, 0.5, 0.0), (4.0, 0.3, 0.1), (2.0, 1.0, 0.0)])
def test_the_loss_is_its_formula(temperature, mix, smoothing):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(9, 4, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    labels, labelled = torch.arange(9) % 4, torch.arange(9) < 5
    found = distillation_loss(
        ours, theirs, labels, labelled, temperature=temperature, mix=mix, label_smoothing=smoothing
    )
    for row in range(9):
        p = torch.exp(theirs[row] / temperature) / torch.exp(theirs[row] / temperature).sum()
        q = torch.exp(ours[row] / temperature) / torch.exp(ours[row] / temperature).sum()
        soft = temperature**2 * float((p * (p / q).log()).sum())
        target = torch.full((4,), smoothing / 4, dtype=torch.float64)
        target[labels[row]] += 1 - smoothing
        hard = -float((target * ours[row].log_softmax(-1)).sum())
        wanted = mix * hard + (1 - mix) * soft if row < 5 else soft
        assert math.isclose(float(found[row]), wanted, rel_tol=1e-9)


def test_a_student_like_its_teacher_has_no_gradient():
    logits = torch.randn(6, 3, requires_grad=True)
    labels, labelled = torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.bool)
    distillation_loss(logits, logits.detach() + 5, labels, labelled, temperature=2.0, mix=0.5).sum().backward()
    assert logits.grad.abs().max() < 1e-6


# -- what the teachers say ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_logits_are_what_predict_gives(teachers, raw, store, tmp_path):
    rows = np.arange(RAW)
    for chosen in (teachers[:1], teachers):
        opened = open_teachers(chosen)
        folder = tmp_path / str(len(chosen))
        assert make_logits(folder, logits_of(raw, rows, opened), Labeller(raw, rows, opened))
        found = Logits.open(folder, rows)
        texts = [line.rpartition(",")[0] for line in (raw.path.parent / "raw.csv").read_text().splitlines()[1:]]
        each = []
        for path in chosen:
            table = TrainedRun.open(path).predict(texts, probabilities=True)
            columns = [table[f"probability_{name}"] for name in store.label_names]
            each.append(np.log(np.stack([np.asarray(column) for column in columns], 1)))
        wanted = torch.from_numpy(np.mean(each, 0)).softmax(-1).numpy()
        ours = torch.from_numpy(found.of_rows(rows)).softmax(-1).numpy()
        assert np.abs(ours - wanted).max() < 2e-3
        assert (found.labels() == wanted.argmax(1)).all()


def test_shares_and_an_interruption_give_the_same_files(teachers, raw, tmp_path):
    rows, opened = np.arange(5, RAW, 2), open_teachers(teachers)
    of, read = logits_of(raw, rows, opened), Labeller(raw, rows, opened)
    assert of.parts == 5
    make_logits(tmp_path / "whole", of, read)
    done = [make_logits(tmp_path / "shares", of, read, (index, 3)) for index in (2, 0, 1)]
    assert done == [False, False, True]

    def stops(places: slice) -> np.ndarray:
        if places.start == 32:
            raise KeyboardInterrupt
        return read(places)

    with pytest.raises(KeyboardInterrupt):
        make_logits(tmp_path / "stopped", of, stops)
    assert missing_parts(tmp_path / "stopped", of) == [2, 3, 4]
    (tmp_path / "stopped" / "part-00001.arrow").write_bytes(b"half")  # a machine lost power
    asked = []
    make_logits(tmp_path / "stopped", of, lambda places: asked.append(places.start) or read(places))
    assert asked == [16, 32, 48, 64]
    wanted = contents(tmp_path / "whole")
    assert len(wanted) == 11
    for other in ("shares", "stopped"):
        assert contents(tmp_path / other) == wanted
    whole, rest = (Logits.open(tmp_path / name, rows) for name in ("whole", "stopped"))
    assert whole.fingerprint == rest.fingerprint
    assert whole.seconds > 0
    assert whole.cpu_seconds > 0


def test_a_process_waits_while_another_one_clears(teachers, raw, tmp_path):
    rows, opened = np.arange(RAW), open_teachers(teachers)
    of, read = logits_of(raw, rows, opened), Labeller(raw, rows, opened)
    make_logits(tmp_path, of, read)
    clearing = FolderLock(tmp_path, RunError("busy"))
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(make_logits, tmp_path, of, read, (1, 2))
        time.sleep(0.2)
        assert not second.done()
        clearing.close()
        assert second.result()


def contents(folder: Path) -> dict[str, object]:
    """All files, the receipts without times and checksum."""
    found: dict[str, object] = {}
    for path in folder.iterdir():
        found[path.name] = path.read_bytes()
        if path.name.startswith("part-") and path.suffix == ".json":
            entry = json.loads(path.read_bytes())
            found[path.name] = {key: entry[key] for key in entry.keys() - {"seconds", "cpu_seconds", "crc32"}}
    return found


def test_logits_that_are_no_numbers_are_refused(teachers, raw, tmp_path):
    rows, opened = np.arange(RAW), open_teachers(teachers)
    with pytest.raises(RunError, match=r"logits of text 17 of 150 are no numbers in float16 \(the largest is 1e\+06\)"):
        make_logits(
            tmp_path / "logits",
            logits_of(raw, rows, opened),
            lambda places: np.full((places.stop - places.start, 3), 1e6 if places.start else 1.0, np.float32),
        )


# -- what the student learns -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_batches_have_what_the_teachers_say(plain, teachers, raw, store):
    run, _ = plain
    origin = record(run)["data"]["distillation"]
    assert sorted(origin["teachers"]) == [str(path.resolve()) for path in teachers]
    assert (origin["labelled"], origin["unlabelled"]) == (str(store.path.resolve()), str(raw.path.resolve()))
    from penstock.engine.data.transfer_set import TransferSet

    sizes = store.num_examples, RAW
    opened = [Logits.open(Path(path), np.arange(size)) for path, size in zip(origin["logits"], sizes, strict=True)]
    masks = [np.full(size, place == 0) for place, size in enumerate(sizes)]
    for reader in ("mmap", "pread"):
        whole = TransferSet([store, raw], masks, opened, origin).cut_to(5).read_with(reader)
        loader = Loader(whole, seed=0, parameters=PlanParameters(64))
        seen = 0
        for batch in loader.batches():
            for place, row in enumerate(batch.tokens.ids.tolist()):
                part, own = (store, row) if row < sizes[0] else (raw, row - sizes[0])
                begin, end = batch.tokens.cu_seqlens[place : place + 2].tolist()
                assert batch.tokens.values[begin:end].tolist() == part.cut_to(5).tokens(own).tolist()
                logits = opened[part is raw].values[own]
                assert np.array_equal(batch.teacher[place].numpy(), logits.astype(np.float32))
                assert bool(batch.labelled[place]) == (part is store)
                assert int(batch.labels[place]) == (int(store.labels[own]) if part is store else int(logits.argmax()))
                seen += 1
        assert seen == sum(sizes)


def test_the_labels_of_unlabelled_texts_are_not_looked_at(tmp_path, teachers, raw, settings):
    """The same texts with labels, all of them wrong, teach the same."""
    lines = (raw.path.parent / "raw.csv").read_text().splitlines()
    (tmp_path / "wrong.csv").write_text(
        "\n".join([lines[0], *(f"{line.rpartition(',')[0]},{'xyz'[i % 3]}" for i, line in enumerate(lines[1:]))]) + "\n"
    )
    wrong = prepare(
        str(tmp_path / "wrong.csv"),
        tmp_path / "wrong",
        tokenizer=str(teachers[0] / "best"),
        max_length=64,
        progress=False,
    )
    assert wrong.label_names == ["x", "y", "z"]
    for name, store in (("raw", raw), ("wrong", wrong)):
        distil(settings(), teachers, store, tmp_path / f"{name}-run", progress="none")
    assert weights(tmp_path / "raw-run") == weights(tmp_path / "wrong-run")


def test_true_labels_are_learned_from(plain, teachers, raw, store, settings, tmp_path):
    distil(settings("distillation.mix=0"), teachers, raw, tmp_path / "run", train_store=store, progress="none")
    assert weights(plain[0]) != weights(tmp_path / "run")
    assert record(plain[0])["identity"]["distillation.mix"] == 0.5


@pytest.mark.parametrize("kind", ["encoder", "bag"])
def test_students_of_other_kinds(kind, tmp_path, teachers, raw, store, settings):
    chosen = [f"model.kind={kind}", "training.max_steps=6"]
    if kind == "encoder":
        from transformers import BertConfig, BertForSequenceClassification

        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = BertConfig(vocab_size=store.vocab_size, max_position_embeddings=64, **sizes)
        BertForSequenceClassification(config).save_pretrained(tmp_path / "encoder")
        store.tokenizer().save_pretrained(tmp_path / "encoder")
        chosen.append(f"model.encoder={tmp_path / 'encoder'}")
    quick = load_settings(None, [*chosen, "training.tensorboard=false", "data.tokens_per_batch=256"])
    result = distil(quick, teachers[:1], raw, tmp_path / "run", train_store=store, progress="none")
    assert result.steps == 6
    assert TrainedRun.open(tmp_path / "run").label_names == store.label_names


def test_fewer_texts(teachers, raw, settings, tmp_path):
    chosen = settings("distillation.texts=40", "data.validation_fraction=0", "training.epochs=1")
    result = distil(chosen, teachers, raw, tmp_path / "run", progress="none")
    assert result.examples == 40
    assert json.loads((folder_of_logits(tmp_path / "run") / "logits.json").read_text())["rows"] == 40


# -- test texts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def leaky(tmp_path_factory, raw, store) -> Store:
    """A test set with five of the raw texts, as a store that keeps fewer tokens of each."""
    folder = tmp_path_factory.mktemp("leaky")
    lines = (raw.path.parent / "raw.csv").read_text().splitlines()
    (folder / "test.csv").write_text("\n".join([lines[0], *lines[40:45], "none of the others,bad"]) + "\n")
    return prepare(str(folder / "test.csv"), folder / "test", like=store.path, progress=False)


def brute_force(raw: Store, test: Store) -> list[int]:
    there = {tuple(test.tokens(row).tolist()) for row in range(test.num_examples)}
    return [row for row in range(raw.num_examples) if tuple(raw.tokens(row).tolist()) in there]


def test_test_texts_are_named_counted_and_left_out(tmp_path, teachers, raw, leaky, settings):
    found = brute_force(raw, leaky)
    assert shared_rows(raw, leaky).tolist() == found
    assert len(found) >= 5
    place = f"{raw.path.parent}/raw.csv: {found[0] + 2}"
    message = (
        f"{raw.path}: {len(found)} of {RAW} texts agree in all tokens with texts of the test set {leaky.path} ({place}"
    )
    chosen = settings("data.validation_fraction=0", "training.epochs=1")
    with pytest.raises(StoreError) as caught:
        distil(chosen, teachers, raw, tmp_path / "run", test_store=leaky, progress="none")
    assert str(caught.value).startswith(message)
    assert "--drop-overlap" in str(caught.value)
    assert not (tmp_path / "run").exists()
    dropping = settings("data.validation_fraction=0", "training.epochs=1", "distillation.drop_overlap=true")
    assert distil(dropping, teachers, raw, tmp_path / "run", test_store=leaky, progress="none").examples == RAW - len(
        found
    )


def test_the_test_set_of_a_teacher_counts_too(tmp_path, raw, store, leaky, settings, capsys):
    quick = settings("training.max_steps=1")
    train(quick, store, tmp_path / "teacher", test_store=leaky, progress="none")
    with pytest.raises(StoreError, match=rf"test set {leaky.path} of the teacher {tmp_path / 'teacher'} "):
        distil(quick, [tmp_path / "teacher"], raw, tmp_path / "run", progress="none")
    moved = tmp_path / "moved"
    shutil.copytree(leaky.path, moved)
    record_of = json.loads((tmp_path / "teacher" / "run.json").read_text())
    del record_of["crc32"]
    record_of["data"]["test"] = str(tmp_path / "gone")
    (tmp_path / "teacher" / "run.json").write_text(json.dumps(record_of))
    distil(quick, [tmp_path / "teacher"], raw, tmp_path / "run", progress="plain")
    assert (
        f"is no longer at {tmp_path / 'gone'}: whether the unlabelled texts hold some of it" in capsys.readouterr().err
    )


@as_subtests(("store_length", "test_length"), [(64, 5), (5, 64), (5, 5), (64, 64)])
def test_overlap_of_stores_that_keep_different_lengths(tmp_path, store, store_length, test_length):
    made = []
    for name, length, texts in (
        ("raw", store_length, ["a b c d e f g h", "a b", "c"]),
        ("test", test_length, ["a b c d e f g h", "c", "d"]),
    ):
        source = tmp_path / f"{name}.csv"
        source.write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(texts)))
        tokenizer = str(store.path / "tokenizer")
        made.append(prepare(str(source), tmp_path / name, tokenizer=tokenizer, max_length=length, progress=False))
    assert shared_rows(*made).tolist() == [0, 2]


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 9])
def test_a_stopped_training_goes_on_to_the_same_weights(step, plain, teachers, raw, store, settings, tmp_path):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Interrupted):
            distil(settings(), teachers, raw, run, train_store=store, progress="none")
    assert distil(settings(), teachers, raw, run, train_store=store, progress="none").steps == plain[1].steps
    assert weights(run) == weights(plain[0])


def options_of(run: Path, plain_run: Path) -> list[str]:
    flat = settings_text(plain_run)
    return ["--out", str(run), *flat]


def settings_text(run: Path) -> list[str]:
    keys = ("hidden_size", "embedding_size", "num_layers")
    identity = record(run)["identity"]
    chosen = [f"model.{key}={identity[f'model.{key}']}" for key in keys]
    chosen += ["data.tokens_per_batch=256", "data.validation_fraction=0.1", "training.learning_rate=3e-2"]
    return [*chosen, "training.epochs=4", "training.log_every_steps=1", "training.tensorboard=false"]


@pytest.mark.slow
def test_the_command_does_the_same_and_goes_on_by_its_out_alone(plain, teachers, raw, store, tmp_path):
    run = tmp_path / "run"
    named = [part for path in teachers for part in ("--teacher", path)]
    arguments = [*named, "--unlabelled", raw.path, "--train", store.path, "--model", "lstm"]
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        done = penstock("distil", *arguments, *options_of(run, plain[0]))
    assert done.returncode == 128 + 15, done.stderr
    done = penstock("distil", "--out", run)
    assert done.returncode == 0, done.stderr
    assert "validation (against true labels, or else the teachers'), best at step" in done.stdout
    assert weights(run) == weights(plain[0])
    again = penstock("train", "--out", run)
    assert again.returncode == ConfigError.exit_code
    assert f"{run} learns from teachers: penstock distil --out {run} goes on with it" in again.stderr
    other = penstock("distil", "--out", run, "distillation.temperature=3")
    assert other.returncode == RunError.exit_code
    assert "distillation.temperature is 2.0 there and 3.0 here" in other.stderr


def go_on_alone(run: Path):
    """As `penstock distil --out RUN`."""
    command = read_distil_command(
        Options(run, [], None, None, None, None, None, RawTexts(None, PLAIN_READING), None), {}, []
    )
    return go_on(command.settings, command.teachers, command.unlabelled, run, train_store=command.train,
                 test_store=command.test, logits=command.logits, progress="auto")  # fmt: skip


def moved(teacher: Path, other: Path) -> None:
    teacher.rename(teacher.with_name("elsewhere"))


def trained_further(teacher: Path, other: Path) -> None:
    """The weights are others: here another run's."""
    shutil.rmtree(teacher)
    shutil.copytree(other, teacher)


@pytest.mark.parametrize(
    ("change", "most", "said"),
    [(moved, None, "elsewhere|no run|no such"), (trained_further, 100, "its teachers are no longer what they were")],
)
def test_a_run_alone_goes_on_whatever_has_become_of_its_teacher(
    change, most, said, teachers, raw, store, settings, tmp_path, capsys
):
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    chosen = settings() if most is None else settings(f"distillation.texts={most}")
    shutil.copytree(teachers[0], teacher)
    expected = tmp_path / "expected"
    distil(chosen, [teacher], raw, expected, train_store=store, progress="none")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            distil(chosen, [teacher], raw, run, train_store=store, progress="none")
    change(teacher, teachers[1])
    go_on_alone(run)
    assert re.search(f"note: .*({said}).*: {run} goes on with their logits in ", capsys.readouterr().err)
    assert weights(run) == weights(expected)
    shutil.rmtree(folder_of_logits(run))
    with pytest.raises(RunError):
        go_on_alone(run)


def test_texts_that_only_a_teacher_tells_are_not_guessed(teachers, raw, settings, tmp_path):
    """They may be all but those of a test set that is gone with the teacher."""
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(teachers[0], teacher)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            distil(settings("distillation.texts=100"), [teacher], raw, run, progress="none")
    moved(teacher, teacher)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distil_module, "chosen", lambda rows, most, seed: rows)
        with pytest.raises(RunError, match=r"cannot be told without its teachers .*: put them back, or give another"):
            go_on_alone(run)


def test_shards_on_the_command_line(teachers, raw, tmp_path):
    arguments = ["distil", "--teacher", teachers[0], "--unlabelled", raw.path, "--logits", tmp_path / "logits"]
    first = penstock(*arguments, "--shard", "1/2")
    assert first.stdout == f"{tmp_path / 'logits'}: 5 parts are missing\n", first.stderr
    assert penstock(*arguments, "--shard", "0/2").stdout == f"{tmp_path / 'logits'}: complete\n"


def test_the_order_of_teachers_changes_nothing(plain, teachers, raw, store, settings):
    run, result = plain
    read = sorted(raw.path.parent.rglob("logits.json"))
    assert distil(settings(), teachers[::-1], raw, run, train_store=store, progress="none") == result
    assert sorted(raw.path.parent.rglob("logits.json")) == read


def test_a_run_of_other_teachers_is_named_before_they_read(plain, teachers, raw, store, settings):
    read = sorted(raw.path.parent.rglob("logits.json"))
    with pytest.raises(RunError, match="holds another run, which learns from logits of other teachers; give another"):
        distil(settings(), teachers[:1], raw, plain[0], train_store=store, progress="none")
    assert sorted(raw.path.parent.rglob("logits.json")) == read


def test_mistakes_in_python(teachers, raw, store, settings, tmp_path):
    for arguments, named, error, said in (
        ([], {}, ValueError, "there are no teachers"),
        (str(teachers[0]), {}, TypeError, "teachers must be a list of runs, as in "),
        (teachers[0], {}, TypeError, "teachers must be a list of runs, as in "),
        (teachers, {"unlabelled": str(raw.path)}, TypeError, "unlabelled must be a Store, got str: give Store.open"),
        (teachers, {"train_store": store.path}, TypeError, "train_store must be a Store, got PosixPath"),
        (teachers, {"test_store": "x"}, TypeError, "test_store must be a Store, got str"),
    ):
        named = {"unlabelled": raw, "out_dir": tmp_path / "run", "progress": "none", **named}
        with pytest.raises(error, match=said):
            distil(settings(), arguments, **named)
    with pytest.raises(TypeError, match="train_store must be a Store, got str"):
        train(settings(), str(store.path), tmp_path / "run", progress="none")
    assert not (tmp_path / "run").exists()


def test_raw_texts_are_prepared(teachers, raw, settings, tmp_path):
    source = raw.path.parent / "raw.csv"
    quick = ["training.max_steps=2", "training.tensorboard=false", "model.hidden_size=8"]
    done = penstock("distil", "--teacher", teachers[0], "--unlabelled", source, "--out", tmp_path / "run", *quick)
    assert done.returncode == 0, done.stderr
    made = Store.open(tmp_path / "run.unlabelled", labelled=False)
    assert all(np.array_equal(made.tokens(row), raw.tokens(row)) for row in range(RAW))
    assert penstock("distil", "--out", tmp_path / "run").returncode == 0
    for option in (["--text", "text"], ["--separator", ";"], ["--encoding", "utf-8"]):
        again = penstock("distil", "--out", tmp_path / "run", *option)
        assert again.returncode == ConfigError.exit_code
        assert f"{option[0]} has no effect: {tmp_path / 'run'} goes on with the texts that it had" in again.stderr
    (tmp_path / "other.csv").write_text("text\nanother film\n")
    arguments = ["distil", "--teacher", teachers[0], "--out", tmp_path / "run", *quick]
    other = penstock(*arguments, "--unlabelled", tmp_path / "other.csv")
    assert other.returncode == StoreError.exit_code
    assert f"run.unlabelled was prepared from other texts or settings than {tmp_path}/other.csv gives" in other.stderr
    assert "--overwrite" not in other.stderr


@pytest.mark.parametrize("with_train", [False, True])
def test_raw_texts_are_read_from_the_teachers_column(store, texts, settings, tmp_path, with_train):
    lines = texts["train"].read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join(["review,label", *lines[1:]]) + "\n")
    tokenizer = str(store.path / "tokenizer")
    like = {"text": "review", "tokenizer": tokenizer, "max_length": 64, "progress": False}
    own = prepare(str(tmp_path / "train.csv"), tmp_path / "train", **like)
    train(settings("training.max_steps=1"), own, tmp_path / "teacher", progress="none")
    (tmp_path / "raw.csv").write_text("text,review\n" + "".join(f"x,a film {i}\n" for i in range(30)))
    quick = ["training.max_steps=1", "training.tensorboard=false", "model.hidden_size=8"]
    arguments = ["distil", "--teacher", tmp_path / "teacher", *(["--train", store.path] if with_train else []), *quick]
    done = penstock(*arguments, "--unlabelled", tmp_path / "raw.csv", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert Store.open(tmp_path / "run.unlabelled", labelled=False).manifest.sources[0].text == "review"
    (tmp_path / "other.csv").write_text("id,text\n" + "".join(f"{i},a film {i}\n" for i in range(30)))
    done = penstock(*arguments, "--unlabelled", tmp_path / "other.csv", "--out", tmp_path / "second")
    assert "texts are read from column 'text'; there is none called 'review', as in the training of" in done.stderr


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def misfits(tmp_path_factory, store, texts, settings, teachers, raw) -> dict[str, Path]:
    """Stores and runs that do not go with the others."""
    folder = tmp_path_factory.mktemp("misfits")
    tokenizer, quick = str(store.path / "tokenizer"), settings("training.max_steps=1")
    (folder / "two.csv").write_text(
        "text,label\n" + "".join(f"a film {i},{'yes' if i % 2 else 'no'}\n" for i in range(40))
    )
    two = prepare(str(folder / "two.csv"), folder / "two-store", tokenizer=tokenizer, max_length=64, progress=False)
    train(quick, two, folder / "two-labels", progress="none")
    other = prepare(str(texts["train"]), folder / "other", tokenizer="train:bpe:300", max_length=64, progress=False)
    train(quick, other, folder / "other-tokenizer", progress="none")
    prepare(str(texts["train"]), folder / "raw-other", like=other.path, unlabelled=True, progress=False)
    prepare(str(texts["train"]), folder / "raw-long", tokenizer=tokenizer, unlabelled=True, progress=False)
    (folder / "lists.jsonl").write_text(
        "".join(json.dumps({"text": f"a film {i}", "label": ["bad", "good"][: i % 3]}) + "\n" for i in range(40))
    )
    lists = prepare(str(folder / "lists.jsonl"), folder / "lists", tokenizer=tokenizer, max_length=64, progress=False)
    train(quick, lists, folder / "several-labels", progress="none")
    (folder / "pairs.csv").write_text(
        "text,more,label\n" + "".join(f"a {i},b,{'bad' if i % 2 else 'good'}\n" for i in range(40))
    )
    prepare(
        str(folder / "pairs.csv"),
        folder / "pairs",
        tokenizer=tokenizer,
        text="text,more",
        max_length=64,
        unlabelled=True,
        progress=False,
    )
    shutil.copytree(teachers[0], folder / "damaged", symlinks=True)
    file = next((folder / "damaged" / "checkpoints").glob("*/model.safetensors"))
    for file in (folder / "damaged" / "checkpoints").glob("*/model.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    return {path.name: path for path in folder.iterdir() if path.is_dir()}


MISFITS = {
    "no such teacher": ({"teachers": ["{folder}/none"]}, RunError, "holds no run"),
    "a damaged teacher": ({"teachers": ["{damaged}"]}, RunError, "model.safetensors is damaged"),
    "a teacher of lists": ({"teachers": ["{several-labels}"]}, RunError, "gives each text a list of labels"),
    "a teacher twice": ({"teachers": ["{one}", "{one}"]}, RunError, "is given twice, or has the weights of another"),
    "teachers of other labels": (
        {"teachers": ["{one}", "{two-labels}"]},
        RunError,
        "has other labels (no, yes) than .* (bad, fair, good)",
    ),
    "a teacher of other labels than the rows": (
        {"teachers": ["{two-labels}"], "train": "{store}"},
        StoreError,
        "prepared with other labels than .*two-labels",
    ),
    "a teacher of another tokenizer": (
        {"teachers": ["{other-tokenizer}"]},
        StoreError,
        "prepared with other tokenizer than .* --unlabelled --like",
    ),
    "texts of another tokenizer": ({"unlabelled": "{raw-other}"}, StoreError, "prepared with other tokenizer"),
    "labelled rows of another tokenizer": ({"train": "{other}"}, StoreError, "prepared with other tokenizer"),
    "texts cut elsewhere than the labelled rows": (
        {"unlabelled": "{raw-long}", "train": "{store}"},
        StoreError,
        "with another --max-length than .* --unlabelled --like",
    ),
    "pairs of texts": ({"unlabelled": "{pairs}"}, StoreError, "prepared with other columns of text"),
    "rows with lists of labels": ({"train": "{lists}"}, StoreError, "has lists of labels: only rows with one label"),
    "texts with lists of labels": (
        {"unlabelled": "{lists}"},
        StoreError,
        "has lists of labels: only rows with one label",
    ),
    "labelled rows without labels": ({"train": "{raw}"}, StoreError, "has no labels, which are needed here"),
    "a test set without labels": ({"eval": "{raw}"}, StoreError, "has no labels, which are needed here"),
    "a test set of other labels": ({"eval": "{two-store}"}, StoreError, "prepared with other labels"),
    "logits of another store": (
        {"logits": "{logits of store}"},
        RunError,
        "holds logits of another store: remove the folder",
    ),
    "logits of another teacher": ({"logits": "{logits of two}"}, RunError, "holds logits of other teachers"),
    "logits of other rows": ({"logits": "{logits of some}"}, RunError, "holds logits of other rows"),
    "a record that was edited": ({"logits": "{edited}"}, RunError, "logits.json: damaged: its checksum"),
    "a record of nothing": ({"logits": "{empty}"}, RunError, "logits.json: damaged: "),
    "class weights": ({"set": "training.class_weights=balanced"}, ConfigError, "cannot be had in a distillation: most"),
    "calibration": ({"set": "training.calibrate=true"}, ConfigError, "cannot be had in a distillation: most of its"),
    "graphs": ({"set": "training.cuda_graphs=true"}, ConfigError, "cannot be had in a distillation: graphs hold no"),
    "no such mix": ({"set": "distillation.mix=1.5"}, ConfigError, "distillation.mix must be between 0.0 and 1.0"),
    "no such temperature": ({"set": "distillation.temperature=0"}, ConfigError, "must be at least 0.01"),
    "no teacher": ({"teachers": []}, ConfigError, "say what to learn from: --teacher RUN"),
    "no texts": ({"unlabelled": None}, ConfigError, "say what to learn from: --unlabelled STORE"),
    "no such texts": ({"unlabelled": "{folder}/none.csv"}, PenstockError, "none.csv"),
    "options of raw texts": ({"more": ["--text", "text"]}, ConfigError, "--text has no effect: .* is a store"),
    "a shard and a resumption": (
        {"more": ["--shard", "0/2", "--resume", "last"], "out": None},
        ConfigError,
        "--resume has no effect: --shard makes logits alone",
    ),
    "a shard and a run": ({"more": ["--shard", "0/2"]}, ConfigError, "--shard makes logits alone"),
    "no share": ({"more": ["--shard", "2/2"], "out": None}, ConfigError, "expected i/n with 0 <= i < n"),
    "no out": ({"out": None}, ConfigError, "say where the student goes: --out RUN"),
    "a run that learns from labels": (
        {"out": "{one}"},
        RunError,
        "learns from labels alone: give another --out",
    ),
}


@pytest.fixture(scope="module")
def places(misfits, teachers, raw, store, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    found = {**misfits, "one": teachers[0], "two": teachers[1], "raw": raw.path, "store": store.path, "folder": folder}
    opened = open_teachers(teachers[:1])
    for name, data, size, chosen in (
        ("logits of store", store, store.num_examples, opened),
        ("logits of two", raw, RAW, open_teachers(teachers[1:])),
        ("logits of some", raw, 20, opened),
        ("edited", raw, RAW, opened),
        ("empty", raw, RAW, opened),
    ):
        rows = np.arange(size)
        make_logits(folder / name, logits_of(data, rows, chosen), Labeller(data, rows, chosen))
        found[name] = folder / name
    entry = json.loads((folder / "edited" / "logits.json").read_text())
    (folder / "edited" / "logits.json").write_text(json.dumps({**entry, "rows": 149}))
    (folder / "empty" / "logits.json").write_text("{}")
    return found


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_one_line(case, places, tmp_path):
    changes, error, message = MISFITS[case]
    given = {"teachers": ["{one}"], "unlabelled": "{raw}", "out": str(tmp_path / "run"), **changes}
    before = {path: path.read_bytes() for path in places["folder"].rglob("*") if path.is_file()}

    def at(text: str) -> str:
        return text.format(**places)

    arguments = [part for teacher in given["teachers"] for part in ("--teacher", at(teacher))]
    for option in ("unlabelled", "train", "eval", "logits", "out"):
        arguments += [f"--{option}", at(given[option])] if given.get(option) is not None else []
    settings = ["training.max_steps=1", "training.tensorboard=false", *([given["set"]] if "set" in given else [])]
    done = penstock("distil", *arguments, *given.get("more", []), *settings)
    lines = done.stderr.splitlines()
    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), lines[-1]), done.stderr
    assert done.returncode in {kind.exit_code for kind in (error, *error.__subclasses__())}, done.stderr
    assert not [line for line in lines[:-1] if line.startswith("penstock:")]
    assert not (tmp_path / "run" / "run.json").exists()
    assert before == {path: path.read_bytes() for path in places["folder"].rglob("*") if path.is_file()}


def test_distillation_settings_have_no_effect_elsewhere(store, settings, tmp_path):
    with pytest.raises(ConfigError, match=r"distillation\.mix=0\.3 has no effect: this run learns from labels alone"):
        train(settings("distillation.mix=0.3"), store, tmp_path / "run", progress="none")


DAMAGE = {
    "a part that ends early": lambda folder: (folder / "part-00001.arrow").write_bytes(b"half"),
    "a turned bit": lambda folder: turned(folder / "part-00001.arrow"),
    "a part that is gone": lambda folder: (folder / "part-00001.arrow").unlink(),
    "a receipt that is gone": lambda folder: (folder / "part-00001.json").unlink(),
    "a receipt of another part": lambda folder: shutil.copy(folder / "part-00002.json", folder / "part-00001.json"),
    "a part of another place": lambda folder: (
        shutil.copy(folder / "part-00002.arrow", folder / "part-00001.arrow"),
        shutil.copy(folder / "part-00002.json", folder / "part-00001.json"),
    ),
    "a record that was edited": lambda folder: (folder / "logits.json").write_text(
        (folder / "logits.json").read_text().replace('"good"', '"fine"')
    ),
    "a folder that is empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


def turned(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_logits_are_found_and_made_again(damage, plain, teachers, raw, store, settings, tmp_path):
    """Reading them is one line; the same command mends parts, and asks for the rest to be removed."""
    run, _ = plain
    rows, opened = np.arange(RAW), open_teachers(teachers)
    shutil.copytree(folder_of_logits(run), tmp_path / "logits")
    DAMAGE[damage](tmp_path / "logits")
    with pytest.raises(RunError, match=f"^{tmp_path / 'logits'}"):
        Logits.open(tmp_path / "logits", rows, logits_of(raw, rows, opened))
    if "record" not in damage:
        assert make_logits(tmp_path / "logits", logits_of(raw, rows, opened), Labeller(raw, rows, opened))
        mended = Logits.open(tmp_path / "logits", rows)
        assert np.array_equal(mended.values, Logits.open(folder_of_logits(run), rows).values)


def test_several_processes_need_logits_that_are_there(teachers, raw, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"10 of 10 parts of the teachers' logits are missing: make them first"):
        distil(settings(), teachers, raw, tmp_path / "run", logits=tmp_path / "logits", progress="none")


@pytest.mark.slow
def test_several_processes_learn_what_one_learns(teachers, raw, store, tmp_path):
    chosen = ["model.hidden_size=8", "model.embedding_size=8", "model.num_layers=1", "data.tokens_per_batch=128"]
    chosen += ["data.batches_per_step=4", "training.learning_rate=1e-2", "training.max_steps=6"]
    chosen += ["training.log_every_steps=1", "training.tensorboard=false", "training.precision=fp32"]
    losses = {}
    for size in (1, 2):  # the second one finds the first one's logits
        each = run_ranks(size, distil_in_ranks, chosen, teachers, raw.path, store.path, tmp_path / str(size))
        assert all(one == each[0] for one in each)
        losses[size] = each[0]
    assert len(losses[1]) == 6
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
