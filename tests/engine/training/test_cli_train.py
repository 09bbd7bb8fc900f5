import csv
import json
import re
import shutil

import pyarrow.parquet
import pytest
from subtested import as_subtests
from tiny_encoders import stock_model
from typer.testing import CliRunner

from penstock.engine.cli import app
from penstock.engine.errors import ConfigError, RunError, SourceError, StoreError
from penstock.engine.training.run_record import open_like_training
from penstock.engine.training.settings import load_saved_settings

TINY = [
    "model.hidden_size=8",
    "model.embedding_size=8",
    "data.tokens_per_batch=256",
    "training.learning_rate=3e-2",
    "training.epochs=5",
    "training.tensorboard=false",
]


def penstock(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def run(store, test_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    result = penstock(
        "train", "--model", "lstm", "--train", store.path, "--eval", test_store.path, "--out", folder, *TINY
    )
    assert result.exit_code == 0
    assert "stopped by epochs" in result.output
    assert "test: accuracy" in result.output
    return folder


def test_evaluate_gives_the_same_of_a_store_and_of_its_source(run, texts, test_store):
    of_store = penstock("evaluate", run, "--data", test_store.path).output
    of_source = penstock("evaluate", run, "--data", texts["test"]).output
    test = json.loads((run / "run.json").read_text())["result"]["test"]
    assert of_store == of_source
    assert of_store.startswith(
        f"accuracy {test['accuracy']:.4f}, macro-F1 {test['macro_f1']:.4f}, loss {test['loss']:.4f}"
    )


def test_a_test_set_that_is_the_training_data_is_named(run, store, test_store, tmp_path):
    said = "accuracy there says nothing of other texts"
    assert (
        f"{store.path} is what {run} was trained on: {said}" in penstock("evaluate", run, "--data", store.path).stderr
    )
    assert said not in penstock("evaluate", run, "--data", test_store.path).stderr
    made = ["train", "--model", "bag", "--train", store.path, "--eval", store.path, "--out", tmp_path / "bag"]
    begun = penstock(*made, "training.max_steps=2", "training.tensorboard=false")
    assert f"warning: {store.path} is the training data: {said}" in begun.stderr
    again = penstock(*made, "training.max_steps=2", "training.tensorboard=false")
    assert f"{tmp_path / 'bag'} is complete: nothing is trained, this is its result" in again.stderr
    assert again.stdout == begun.stdout


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_predict(run, texts, tmp_path, form):
    out = tmp_path / f"predictions.{form}"
    source = tmp_path / "unlabelled.csv"
    with open(texts["test"], newline="") as file:
        rows = list(csv.DictReader(file))
    with open(source, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["text"], *([row["text"]] for row in rows)])
    assert penstock("predict", run, source, "--out", out, "--probabilities").exit_code == 0
    if form == "csv":
        with open(out, newline="") as file:
            found = list(csv.DictReader(file))
    elif form == "jsonl":
        found = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        found = pyarrow.parquet.read_table(out).to_pylist()
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    right = sum(row["label"] == truth["label"] for row, truth in zip(found, rows, strict=True))
    test = json.loads((run / "run.json").read_text())["result"]["test"]
    assert right / 90 == pytest.approx(test["accuracy"])
    for row in found:
        probabilities = [float(row[f"probability_{name}"]) for name in ("bad", "fair", "good")]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert row["label"] == ("bad", "fair", "good")[probabilities.index(max(probabilities))]


# (header of new data, what is read, of a run on the columns review and verdict, what is said to be missing)
COLUMNS = [
    ("review,verdict,text,label", ("review", "verdict"), []),
    ("review,text,label", ("review", "label"), ["verdict"]),
    ("text,verdict,label", ("text", "verdict"), ["review"]),
    ("text,label", ("text", "label"), ["review", "verdict"]),
]


def write_columns(path, header):
    """Texts that `write_texts` might have made."""
    cells = {"review": "a lovely film", "text": "the awful plot", "verdict": "good", "label": "bad"}
    names = header.split(",")
    path.write_text("\n".join([header, *[",".join(cells[name] for name in names)] * 3]) + "\n")
    return path


@as_subtests("header, read, missing", COLUMNS)
def test_columns_are_those_of_the_training_or_said(run, tmp_path, header, read, missing):
    """Where there is but one of them too."""
    named = {"text": "review", "label": "verdict"}
    changed = tmp_path / "run"
    shutil.copytree(run, changed, symlinks=True)
    record = json.loads((changed / "run.json").read_text())
    del record["crc32"]
    (changed / "run.json").write_text(json.dumps({**record, "data": {**record["data"], **named}}))
    data = write_columns(tmp_path / "new.csv", header)
    result = penstock("evaluate", changed, "--data", data, "--json", tmp_path / "found.json")
    lines = [line for line in result.stderr.splitlines() if "there is none called" in line]
    assert [re.search("none called '(.*)', as in training", line)[1] for line in lines] == missing
    assert [line.split("column ")[1].split(";")[0] for line in lines] == [
        repr(now) for now, before in zip(read, named.values(), strict=True) if now != before
    ]
    (source,) = open_like_training(str(data), {**record["data"], **named})
    assert (source.text, source.label) == read
    out = tmp_path / "out.csv"
    predicted = penstock("predict", changed, data, "--out", out).stderr
    assert ("there is none called 'review'" in predicted) == ("review" in missing)
    assert "verdict" not in predicted


def test_rows_are_not_evaluated_twice(run, tmp_path):
    write_columns(tmp_path / "one.csv", "text,label")
    (tmp_path / "two.csv").symlink_to(tmp_path / "one.csv")
    with pytest.raises(SourceError, match=r"one\.csv is given twice, also as .*two\.csv: its rows would count twice"):
        penstock("evaluate", run, "--data", tmp_path)
    assert penstock("predict", run, tmp_path / "two.csv", "--out", "-").exit_code == 0


def test_of_a_setting_given_twice_the_last_one_counts(store, tmp_path):
    train = ["train", "--train", store.path, "--out", tmp_path / "new", *TINY]
    said = penstock(*train, "training.max_steps=1", "training.seed=2", "training.seed=4", "training.seed=4").stderr
    assert [line for line in said.splitlines() if "given before it" in line] == [
        "note: training.seed=4 counts, not training.seed=2, which is given before it"
    ]
    assert load_saved_settings(tmp_path / "new/config.yaml").training.seed == 4


def test_wrong_uses(run, texts, store, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("text,label\na film,splendid\n")
    with pytest.raises(SourceError, match=r"line 2: the label 'splendid' was not there in training"):
        penstock("evaluate", run, "--data", other)
    with pytest.raises(ConfigError, match=r"the ending names the format, one of \.csv, \.tsv, \.jsonl, \.parquet"):
        penstock("predict", run, texts["test"], "--out", tmp_path / "out.txt")
    with pytest.raises(RunError, match="holds no run"):
        penstock("predict", tmp_path, texts["test"], "--out", tmp_path / "out.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError):
        penstock("evaluate", run, "--data", tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"unknown setting 'training.epoch': did you mean 'training.epochs'\?"):
        penstock("train", "--train", store.path, "--out", tmp_path / "new", "training.epoch=1")
    with pytest.raises(RunError, match=r"holds another run: training\.seed is 0 there and 6 here"):
        penstock("train", "--train", store.path, "--out", run, *TINY, "training.seed=6")
    assert not (tmp_path / "out.csv").exists()


def test_a_configuration_file_under_the_command_line(store, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("model:\n  kind: lstm\n  hidden_size: 8\ntraining:\n  max_steps: 3\n  tensorboard: false\n")
    arguments = ["--config", config, "training.max_steps=2"]
    assert "2 steps" in penstock("train", "--train", store.path, "--out", tmp_path / "run", *arguments).output


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["lstm", "lstm-of-encoder", "encoder", "bag", "lists", "from", "pretrain", "pretrain-encoder", "distil"],
)
def test_the_configuration_of_a_run_makes_the_same_run(kind, store, texts, tmp_path):
    quick = ["training.max_steps=3", "training.tensorboard=false", "training.epochs=2"]
    lstm = ["model.hidden_size=8", "model.embedding_size=8"]
    if "encoder" in kind:
        stock_model("bert", vocab_size=store.vocab_size).save_pretrained(tmp_path / "encoder")
        store.tokenizer().save_pretrained(tmp_path / "encoder")
        lstm = ["--model", "lstm", "model.hidden_size=8", "model.embeddings=encoder"] if kind.startswith("lstm") else []
        lstm += ["--encoder", tmp_path / "encoder"]
    command, data = "train", ["--train", store.path]
    if kind == "bag":
        lstm = ["--model", "bag"]
    if kind == "lists":
        lists = tmp_path / "lists.csv"
        lists.write_text("text,label\n" + "".join(f"a film {i},{['x', 'x|y', ''][i % 3]}\n" for i in range(40)))
        tokenizer = ["--tokenizer", store.path / "tokenizer"]
        penstock("prepare", lists, "--out", tmp_path / "lists", *tokenizer, "--label-separator", "|")
        data, lstm = ["--train", tmp_path / "lists"], [*lstm, "data.validation_fraction=0"]
    if kind in ("from", "distil"):
        penstock("train", *data, "--out", tmp_path / "earlier", *lstm, *quick)
    if kind == "from":
        lstm = ["--from", tmp_path / "earlier"]
    if kind == "distil":
        command, logits = "distil", ["--logits", tmp_path / "logits"]
        data = ["--teacher", tmp_path / "earlier", "--unlabelled", store.path, *logits]
    if kind.startswith("pretrain"):
        command, data = "pretrain", ["--texts", store.path]
    penstock(command, *data, "--out", tmp_path / "run", *lstm, *quick)
    penstock(command, *data, "--out", tmp_path / "again", "--config", tmp_path / "run" / "config.yaml")
    for name in ("config.yaml", "last/config.json", "last/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_every_setting_is_listed():
    listing = penstock("train", "--settings").output
    assert "training.max_steps=null  (a whole number or null)" in listing
    assert "data.tokens_per_batch=null" in listing
    assert 'model.pooling="max"  (max | mean | last | attention)' in listing
