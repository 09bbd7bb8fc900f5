"""`penstock export onnx`: onnxruntime computes with the file what the run computes, whatever it is given."""

import csv
import itertools
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import penstock
from few_texts import write_texts
from subtested import as_subtests
from tiny_encoders import CONFIGS, POSITIONS, VOCAB, stock_model

from penstock.engine.data.prepare import prepare
from penstock.engine.errors import ModelError
from penstock.engine.models import BagClassifier, BagClassifierConfig, EncoderClassifier, LSTMClassifier
from penstock.engine.models import LSTMClassifierConfig as LSTMConfig
from penstock.engine.training.trained import TrainedRun

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from penstock.engine.export import compare as comparing  # noqa: E402
from penstock.engine.export import onnx_file  # noqa: E402
from penstock.engine.export.bag import bag_graph  # noqa: E402
from penstock.engine.export.compare import compare  # noqa: E402
from penstock.engine.export.graph import INPUTS  # noqa: E402
from penstock.engine.export.lstm import lstm_graph  # noqa: E402

VOCABULARY = 37
# Lengths of the texts, and the number of columns: with and without padding, without any token, one text, many.
BATCHES = [([5, 0, 3, 1], 5), ([1], 1), ([0], 4), ([0, 0], 0), ([2, 2], 2), ([40, 7, 0, 12, 39], 43), ([1] * 17, 1)]
SIDES = ("right", "left")


def session_of(graph) -> "onnxruntime.InferenceSession":
    file = graph.SerializeToString()
    onnx.checker.check_model(file, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def batch_of(lengths, columns, side="right", vocabulary=VOCABULARY, padding=0, seed=0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    mask = (np.arange(columns) < np.array(lengths)[:, None]).astype(np.int64)
    mask = mask if side == "right" else mask[:, ::-1].copy()
    ids = np.where(mask, draw.integers(2, vocabulary, mask.shape), padding)
    return {"input_ids": ids, "attention_mask": mask}


def differ(model, session, batch) -> float:
    """The greatest difference of two logits, in units of the greatest logit."""
    with torch.no_grad():
        ours = model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.numpy()
    theirs = session.run(["logits"], batch)[0]
    assert theirs.dtype == np.float32
    assert theirs.shape == ours.shape
    return float((np.abs(ours - theirs) / max(1.0, np.abs(ours).max())).max())


def randomised(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model.eval()


LSTMS = list(itertools.product((1, 2, 3), (False, True), ("max", "mean", "last", "attention")))


@as_subtests("layers, bidirectional, pooling", LSTMS)
def test_an_lstm(layers, bidirectional, pooling):
    config = LSTMConfig(
        vocab_size=VOCABULARY,
        embedding_size=5,
        hidden_size=7,
        num_layers=layers,
        bidirectional=bidirectional,
        pooling=pooling,
        num_labels=4,
    )
    model = randomised(LSTMClassifier(config))
    graph = lstm_graph(model)
    assert [node.op_type for node in graph.graph.node].count("LSTM") == layers
    session = session_of(graph)
    for (lengths, columns), side in itertools.product(BATCHES, SIDES):
        assert differ(model, session, batch_of(lengths, columns, side)) < 1e-5, (lengths, side)


@as_subtests("ngrams", [1, 2, 3, 5])
def test_a_bag_hashes_as_ours_does(ngrams):
    config = BagClassifierConfig(
        vocab_size=VOCABULARY, buckets=1009, embedding_size=6, ngrams=ngrams, num_labels=4, pad_token_id=0
    )
    model = randomised(BagClassifier(config))  # every bucket has a vector of its own: one other hash would show
    session = session_of(bag_graph(model))
    for (lengths, columns), side in itertools.product(BATCHES, SIDES):
        assert differ(model, session, batch_of(lengths, columns, side)) < 1e-5, (lengths, side)


@as_subtests("kind", ["lstm", "bag"])
def test_what_stands_where_no_token_is_does_not_matter(kind):
    if kind == "lstm":
        model = randomised(LSTMClassifier(LSTMConfig(vocab_size=VOCABULARY, embedding_size=5, hidden_size=6)))
    else:
        model = randomised(BagClassifier(BagClassifierConfig(vocab_size=VOCABULARY, buckets=64, ngrams=2)))
    session = session_of((lstm_graph if kind == "lstm" else bag_graph)(model))
    plain = batch_of([4, 2], 6)
    want = session.run(["logits"], plain)[0]
    for padding, one in ((-100, 1), (10**9, 1), (3, 7), (0, -1)):
        batch = batch_of([4, 2], 6, padding=padding)
        np.testing.assert_array_equal(
            session.run(["logits"], {**batch, "attention_mask": batch["attention_mask"] * one})[0], want
        )
    beyond = {**plain, "input_ids": plain["input_ids"] + VOCABULARY}
    with pytest.raises(Exception, match=r"out of data bounds|out of bounds"):
        session.run(["logits"], beyond)


OFTEN = ("bert", "modernbert")  # the exporter takes seconds
ENCODERS = [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in CONFIGS]


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder(name, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from penstock.engine.export.encoder import encoder_graph

    stock_model(name).save_pretrained(tmp_path)
    model = EncoderClassifier.from_pretrained(tmp_path, whole=True).eval()
    session = session_of(encoder_graph(tmp_path, INPUTS))
    assert {each.name: each.shape for each in session.get_inputs()} == {name: ["batch", "length"] for name in INPUTS}
    padding = model.config.pad_token_id or 0
    for lengths, columns in [([5, 1, 3], 5), ([1], 1), ([2, 2], 4), ([POSITIONS - 2, 9, 30, 1], POSITIONS - 2)]:
        batch = batch_of(lengths, columns, vocabulary=VOCAB, padding=padding)
        assert differ(model, session, batch) < 1e-5, lengths


# Of whole runs: how the store is prepared, and the model.
SMALL = ["training.tensorboard=false", "data.tokens_per_batch=256", "training.epochs=2", "training.learning_rate=3e-2"]
FP32 = ["training.precision=fp32"]  # of a bag there is no other
LSTM = [*FP32, "model.hidden_size=8", "model.embedding_size=8", "model.num_layers=2"]
RUNS = {
    "lstm": ("text", "head", LSTM),
    "lstm tail": ("text", "tail", LSTM),
    "lstm head+tail": ("text", "head+tail", [*LSTM, "training.calibrate=true"]),
    "lstm lists": ("lists", "head", LSTM),
    "lstm pairs": ("pairs", "tail", LSTM),
    "bag": ("text", "head", ["model.kind=bag", "model.ngrams=3", "model.buckets=5000"]),
    "bag lists": ("lists", "head", ["model.kind=bag", "model.buckets=5000"]),
    "encoder pairs, adapters": ("pairs", "head", [*FP32, "model.kind=encoder", "model.lora_rank=2"]),
    "encoder lists": ("lists", "head+tail", [*FP32, "model.kind=encoder"]),
}
LONGEST = 14  # tokens: most of the texts are longer


def write_rows(form: str, folder: Path) -> tuple[Path, dict]:
    """A file of texts and what `prepare` needs to know of it."""
    plain = write_texts(folder / "text.csv", 240, 0)
    if form == "text":
        return plain, {}
    with plain.open() as file:
        rows = list(csv.DictReader(file))
    draw = random.Random(0)
    if form == "pairs":
        rows = [{"text": row["text"], "other": draw.choice(rows)["text"], "label": row["label"]} for row in rows]
        options: dict = {"text": "text,other"}
    else:
        rows = [{**row, "label": [row["label"], "long"] if len(row["text"]) > 40 else [row["label"]]} for row in rows]
        options = {}
    path = folder / f"{form}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, options


def encoder_for(store, folder: Path) -> Path:
    """A tiny BERT with the store's tokenizer, which knows two token types."""
    sizes = {"vocab_size": store.vocab_size, "pad_token_id": store.tokenizer().pad_token_id}
    stock_model("bert", **sizes).save_pretrained(folder)
    for file in (store.path / "tokenizer").iterdir():
        shutil.copy(file, folder)
    return folder


def make_run(name: str, folder: Path) -> Path:
    form, truncation, model = RUNS[name]
    path, options = write_rows(form, folder)
    spec = "train:wordpiece:150"
    if form == "pairs":  # with a tokenizer that gives token types
        first = prepare(str(path), folder / "first", tokenizer=spec, max_length=64, progress=False, **options)
        tokenizer = first.tokenizer()
        tokenizer.model_input_names = [*INPUTS, "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
        tokenizer.save_pretrained(folder / "typed")
        spec = str(folder / "typed")
    cut = [f"data.max_length={LONGEST}", f"data.truncation={truncation}"]
    options |= {"tokenizer": spec, "max_length": 64}
    if form == "pairs":  # these are cut when they are prepared
        cut, options = [], {**options, "max_length": LONGEST, "truncation": truncation}
    store = prepare(str(path), folder / "store", progress=False, **options)
    if "model.kind=encoder" in model:
        model = [*model, f"model.encoder={encoder_for(store, folder / 'encoder')}"]
    arguments = ["train", "--train", store.path, "--out", folder / "run", *SMALL, *model, *cut]
    done = penstock(*arguments)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_printed_lines_give_the_runs_own_labels(name, tmp_path, monkeypatch):
    if "encoder" in name:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    if "adapters" in name:
        pytest.importorskip("peft", reason="peft is not installed")
    run = make_run(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    done = penstock("export", "onnx", run, "--out", "model.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    said, _, program = done.stdout.partition("\n\n")
    assert "the same as the run on 11 generated texts" in said

    trained = TrainedRun.open(run, "cpu")
    types = ["token_type_ids"] if name.startswith("encoder pairs") else []
    session = onnxruntime.InferenceSession("model.onnx")
    assert [each.name for each in session.get_inputs()] == [*INPUTS, *types]
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == trained.label_names
    assert json.loads(facts["max_length"]) == LONGEST
    assert facts["problem_type"] == ("multi_label" if "lists" in name else "single_label") + "_classification"

    # the printed program, with its own texts and with longer and shorter ones in their place
    draw = random.Random(3)
    words = ["the", "a", "film", "awful", "dull", "plain", "usual", "lovely", "superb", "[UNK]", "[SEP]", "ünï"]
    texts = [" ".join(draw.choices(words, k=length)) for length in (1, 40, 5, 13, 2, 90, 12, 30, 0, 3)]
    own = next(line.removeprefix("rows = tokenizer.encode_batch") for line in program.splitlines() if "_batch" in line)
    for given in (eval(own), list(zip(texts, reversed(texts), strict=True)) if trained.is_pair else texts):
        said_labels, logits = run_program(program.replace(own, f"({given!r})"))
        table = trained.predict(given, probabilities=True)
        expected = np.stack([table[f"probability_{label}"].to_numpy() for label in trained.label_names], 1)
        found = torch.tensor(logits).sigmoid() if trained.multi_label else torch.tensor(logits).softmax(1)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        labels = table["label"].to_pylist()  # a list of labels begins with the most probable one
        assert list(map(sorted, said_labels)) == list(map(sorted, labels))


def run_program(program: str) -> tuple[list, np.ndarray]:
    """What it prints, and its logits."""
    printed: list = []
    names: dict = {"print": printed.append}
    exec(program, names)
    assert len(printed) == 1
    return printed[0], names["logits"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run("lstm", tmp_path_factory.mktemp("export"))


def test_a_file_that_is_there_stays_unless_it_is_to_be_overwritten(run, tmp_path):
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    refused = penstock("export", "onnx", run, "--out", out)
    assert (refused.returncode, out.read_text()) == (6, "mine")
    assert "--overwrite" in refused.stderr
    assert penstock("export", "onnx", run, "--out", out, "--overwrite").returncode == 0
    assert out.stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def damaged(run: Path, folder: Path, file: str, content: bytes | None) -> Path:
    shutil.copytree(run, folder / "damaged", symlinks=True)
    path = folder / "damaged" / "best" / file if file != "run.json" else folder / "damaged" / file
    if content is None:
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + content + data[len(data) // 2 + len(content) :])
    return folder / "damaged"


DAMAGES = [
    ("model.safetensors", b"\0" * 64, 8),
    ("model.safetensors", None, 8),
    ("tokenizer.json", b"{", 8),
    ("config.json", b"]", 8),
    ("run.json", b"]", 7),
    ("run.json", None, 7),
]


@as_subtests("file, content, code", DAMAGES)
def test_a_damaged_run_is_one_line_and_no_file(file, content, code, run, tmp_path):
    done = penstock("export", "onnx", damaged(run, tmp_path, file, content), "--out", tmp_path / "model.onnx")
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (code, 1, ""), done.stderr
    assert not (tmp_path / "model.onnx").exists()


MISTAKES = [
    (["export", "tflite", "{run}", "--out", "{new}/a.onnx"], 2, "onnx"),
    (["export", "onnx", "{new}/nothing", "--out", "{new}/a.onnx"], 7, "run.json"),
    (["export", "onnx", "{run}", "--out", "{new}/a.bin"], 6, ".onnx"),
    (["export", "onnx", "{run}", "--out", "{new}/nothing/a.onnx"], 9, "there is no folder"),
    (["export", "onnx", "{run}", "--out", "{new}"], 6, ".onnx"),
    (["export", "onnx", "{run}"], 2, "--out"),
]


@as_subtests("arguments, code, said", MISTAKES)
def test_mistakes(arguments, code, said, run, tmp_path):
    done = penstock(*(each.format(run=run, new=tmp_path) for each in arguments))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_named_like_a_file_is_refused(run, tmp_path):
    (tmp_path / "a.onnx").mkdir()
    done = penstock("export", "onnx", run, "--out", tmp_path / "a.onnx", "--overwrite")
    assert (done.returncode, "is a folder" in done.stderr) == (6, True)


def test_without_onnx_the_extra_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = penstock("export", "onnx", run, "--out", tmp_path / "model.onnx")
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)
    assert "pip install 'penstock[onnx]'" in done.stderr


def test_without_onnxruntime_the_file_is_written_and_that_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = penstock("export", "onnx", run, "--out", tmp_path / "model.onnx")
    assert done.returncode == 0
    assert "not compared with the run: onnxruntime is not installed" in done.stderr
    onnx.checker.check_model(str(tmp_path / "model.onnx"))


def test_a_file_that_computes_something_else_is_never_written(run, tmp_path, monkeypatch):
    def wrong(model):
        """The forget gate's weights where the output gate's belong."""
        graph = lstm_graph(model)
        for constant in graph.graph.initializer:
            if constant.dims[1:2] == [8 * 4]:
                array = onnx.numpy_helper.to_array(constant).copy()
                array[:, 8:24] = array[:, [*range(16, 24), *range(8, 16)]]
                constant.CopyFrom(onnx.numpy_helper.from_array(array, constant.name))
        return graph

    monkeypatch.setattr("penstock.engine.export.lstm.lstm_graph", wrong)
    (tmp_path / "model.onnx").write_text("mine")
    done = penstock("export", "onnx", run, "--out", tmp_path / "model.onnx", "--overwrite")
    assert (done.returncode, done.stderr.count("\n")) == (8, 1)
    assert "logits differ by up to" in done.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_values_that_are_no_numbers_are_a_difference(run):
    model = TrainedRun.open(run, "cpu").model
    other = TrainedRun.open(run, "cpu").model
    with torch.no_grad():
        other.classifier.bias[0] = float("nan")
    with pytest.raises(ModelError, match="differ by up to inf"):
        compare(model, lstm_graph(other).SerializeToString(), INPUTS)


def test_a_model_beyond_what_onnx_holds_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_MOST_BYTES", 1000)
    done = penstock("export", "onnx", run, "--out", tmp_path / "model.onnx")
    assert (done.returncode, "GiB" in done.stderr) == (8, True)
    assert not list(tmp_path.iterdir())


def test_the_comparison_reads_texts_of_many_lengths(run):
    model = TrainedRun.open(run, "cpu").model
    lengths = [length for batch in comparing._batches(model) for length in batch["attention_mask"].sum(1).tolist()]
    assert len(lengths) == 11
    assert max(lengths) == 200
    assert len(set(lengths)) > 6
