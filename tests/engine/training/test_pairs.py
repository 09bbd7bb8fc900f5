"""Training on pairs of texts: what a saved run computes in stock transformers is what it computed here."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from tiny_encoders import CONFIGS, stock_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from penstock.engine.cli import app
from penstock.engine.data.prepare import prepare
from penstock.engine.data.sources import open_source
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizer_training import parse_train_spec, train_tokenizer
from penstock.engine.errors import ModelError, SourceError, StoreError
from penstock.engine.training.trained import TrainedRun

FILLER = "the a film story actor scene music plot it was and with lovely bright dull broken"
WORDS = FILLER.split(" ")
QUICK = ["training.epochs=1", "training.precision=fp32", "training.tensorboard=false", "data.tokens_per_batch=256"]
QUICK += ["training.weight_decay=0", "training.learning_rate=1e-2"]
TYPES = ["input_ids", "token_type_ids", "attention_mask"]


def penstock(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def make_pairs(count: int, seed: int) -> list[tuple[tuple[str, str], str]]:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(0, 25))) for _ in range(2 * count)]
    return [((texts[2 * i], texts[2 * i + 1]), ("bad", "fair", "good")[i % 3]) for i in range(count)]


def write(path: Path, rows) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "body", "label"])
        writer.writerows([i, *pair, label] for i, (pair, label) in enumerate(rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    return {name: write(folder / f"{name}.csv", make_pairs(40, seed)) for name, seed in (("train", 0), ("test", 1))}


def encoder_folder(name: str, folder: Path, inputs: list[str] | None = None, **changes) -> Path:
    """A tiny encoder with a tokenizer of its kind, which gives BERT's and ELECTRA's token types."""
    fairseq = name in ("roberta", "xlm-roberta", "camembert")
    spec = parse_train_spec("train:bpe:300" if fairseq else "train:wordpiece:100")
    tokenizer = train_tokenizer(spec, lambda: [[FILLER] * 3])
    tokenizer.save_pretrained(folder)
    inputs = inputs or (TYPES if name in ("bert", "electra") else ["input_ids", "attention_mask"])
    AutoTokenizer.from_pretrained(folder, model_input_names=inputs).save_pretrained(folder)
    sizes = {"vocab_size": 300, "pad_token_id": 1} if fairseq else {"vocab_size": 101, "pad_token_id": 0}
    stock_model(name, **sizes, **changes).save_pretrained(folder)
    return folder


def stock_probabilities(run: Path, pairs, **changes) -> torch.Tensor:
    """What transformers alone makes of a saved run."""
    model = AutoModelForSequenceClassification.from_pretrained(run / "best").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "best")
    rows = []
    with torch.no_grad():
        for first, second in pairs:
            rows.append(model(**tokenizer([first], [second], truncation=True, return_tensors="pt") | changes).logits[0])
    return torch.stack(rows).softmax(-1)


def ours(trained: TrainedRun, texts) -> torch.Tensor:
    table = trained.predict(texts, probabilities=True, keep=[])
    return torch.tensor([table[f"probability_{name}"].to_pylist() for name in trained.label_names]).T


# of each group of architectures that place pairs alike, one
OFTEN = ("bert", "roberta", "distilbert", "modernbert")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in CONFIGS]
)
def test_stock_transformers_computes_the_same(name, tmp_path, files):
    encoder = encoder_folder(name, tmp_path / "encoder")
    options = {"tokenizer": str(encoder), "text": "title,body", "max_length": 30, "progress": False}
    store = prepare(str(files["train"]), tmp_path / "train", **options)
    test = prepare(str(files["test"]), tmp_path / "test", like=store.path, progress=False)
    assert store.manifest.truncated_texts
    run = tmp_path / "run"
    assert penstock("train", "--train", store.path, "--encoder", encoder, "--out", run, *QUICK).exit_code == 0

    pairs = [pair for pair, _ in make_pairs(40, 1)]
    trained = TrainedRun.open(run, "cpu")
    expected = stock_probabilities(run, pairs)
    torch.testing.assert_close(ours(trained, pairs), expected, atol=1e-5, rtol=1e-4)
    raw = open_source(str(files["test"]), text="title,body", need_label=False)
    torch.testing.assert_close(ours(trained, raw), expected, atol=1e-5, rtol=1e-4)
    labels = torch.tensor([trained.label_names.index(label) for _, label in make_pairs(40, 1)])
    loss = torch.nn.functional.nll_loss(expected.log(), labels).item()
    for found in (
        trained.evaluate_store(test),
        trained.evaluate_source(open_source(str(files["test"]), text="title,body")),
    ):
        assert found.metrics.loss == pytest.approx(loss, rel=1e-4)
    if name in ("bert", "electra"):
        untyped = stock_probabilities(run, pairs, token_type_ids=None)
        assert (untyped - expected).abs().max() > 1e-3, "token types make no difference here"
        before, after = (
            AutoModelForSequenceClassification.from_pretrained(
                folder
            ).base_model.embeddings.token_type_embeddings.weight
            for folder in (encoder, run / "best")
        )
        assert not torch.equal(before[1], after[1]), "the second text's type was not trained"


@pytest.fixture(scope="module")
def run(files, tmp_path_factory) -> Path:
    """An LSTM, trained on pairs from the command line."""
    folder = tmp_path_factory.mktemp("lstm")
    options = ["--tokenizer", "train:wordpiece:100", "--text", "title,body", "--max-length", "30"]
    assert penstock("prepare", files["train"], "--out", folder / "store", *options).exit_code == 0
    tiny = ["model.hidden_size=8", "model.embedding_size=8"]
    train = ["train", "--model", "lstm", "--train", folder / "store", "--out", folder / "run"]
    assert penstock(*train, *tiny, *QUICK).exit_code == 0
    return folder / "run"


def test_an_lstm_reads_a_pair_as_one_sequence(run):
    pairs = [pair for pair, _ in make_pairs(20, 3)] + [("a film", ""), ("", "a film"), ("", "")]
    trained = TrainedRun.open(run, "cpu")
    torch.testing.assert_close(ours(trained, pairs), stock_probabilities(run, pairs), atol=1e-5, rtol=1e-4)
    assert not torch.equal(ours(trained, [("a film", "it was")]), ours(trained, [("it was", "a film")]))


def test_a_run_remembers_its_columns(run, files, tmp_path):
    store = Store.open(json.loads((run / "run.json").read_text())["data"]["store"])
    assert store.is_pair
    expected = TrainedRun.open(run).predict([pair for pair, _ in make_pairs(40, 1)])["label"].to_pylist()
    assert penstock("predict", run, files["test"], "--out", tmp_path / "out.csv", "--keep", "id").exit_code == 0
    with open(tmp_path / "out.csv") as file:
        assert [row["label"] for row in csv.DictReader(file)] == expected
    result = penstock("evaluate", run, "--data", files["test"], "--json", "-")
    assert result.exit_code == 0
    assert sum(figures["support"] for figures in json.loads(result.stdout)["classes"]) == 40
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(files["test"].read_text().replace("title,body", "one,two", 1))
    assert penstock("predict", run, renamed, "--out", tmp_path / "o.csv", "--text", "one,two").exit_code == 0
    with pytest.raises(SourceError, match="no column 'title'"):
        penstock("predict", run, renamed, "--out", tmp_path / "o.csv")


def test_single_texts_are_no_pairs(run, files, tmp_path):
    trained = TrainedRun.open(run)
    for text in ("title", "title+body"):
        with pytest.raises(SourceError, match="was trained on pairs"):
            penstock("predict", run, files["test"], "--out", tmp_path / "out.csv", "--text", text)
    for wrong in (["a text"], [("a", "b"), "c"], [("a",)], [("a", 3)], [("a", "b", "c")]):
        with pytest.raises(TypeError, match="pairs of texts"):
            trained.predict(wrong)
    table = trained.predict([None, ("a", None), ("a", "b")])
    assert [label is None for label in table["label"].to_pylist()] == [True, True, False]
    assert trained.predict([]).num_rows == 0
    with pytest.raises(SourceError, match="was trained on pairs"):
        trained.predict(open_source(str(files["test"]), text="title", need_label=False))
    store = json.loads((run / "run.json").read_text())["data"]["store"]
    rows = [("a b", "bad"), ("c d", "good"), ("c", "fair")]
    singles = prepare(rows, tmp_path / "singles", tokenizer=str(Path(store) / "tokenizer"), progress=False)
    with pytest.raises(StoreError, match="other columns of text"):
        trained.evaluate_store(singles)


@pytest.mark.parametrize(
    ("name", "changes"), [("bert", {"type_vocab_size": 1}), ("distilbert", {}), ("modernbert", {})], ids=str
)
def test_an_encoder_that_does_not_know_the_types_is_refused(name, changes, tmp_path, files):
    """As transformers could not run it on what its tokenizer gives."""
    encoder = encoder_folder(name, tmp_path / "encoder", TYPES, **changes)
    options = ["--tokenizer", encoder, "--text", "title,body", "--max-length", "30"]
    assert penstock("prepare", files["train"], "--out", tmp_path / "store", *options).exit_code == 0
    with pytest.raises(ModelError, match="token type 1"):
        penstock("train", "--train", tmp_path / "store", "--encoder", encoder, "--out", tmp_path / "run", *QUICK)
