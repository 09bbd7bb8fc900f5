"""Models that give each text a list of labels: what they learn, by what they are judged, what a run keeps of it."""

import csv
import json
import random

import figures_by_definition as of
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command_line import penstock
from subtested import as_subtests
from typer.testing import CliRunner

from penstock.engine.cli import app
from penstock.engine.data.prepare import prepare
from penstock.engine.data.sources import open_source
from penstock.engine.errors import ConfigError, RunError, StoreError
from penstock.engine.models.build import build_model
from penstock.engine.models.output import classifier_output, multi_label_loss
from penstock.engine.models.settings import ModelSettings
from penstock.engine.training.calibrate import fit_temperature
from penstock.engine.training.class_weights import resolve_positive_weights
from penstock.engine.training.metrics import Metrics
from penstock.engine.training.multi_label import (
    MultiLabelMetrics,
    best_threshold,
    choose_thresholds,
    read_metrics,
)
from penstock.engine.training.multi_label_evaluation import MultiLabelCounter, average_precision
from penstock.engine.training.predictions import ListColumns
from penstock.engine.training.settings import load_settings
from penstock.engine.training.train import TrainResult, train
from penstock.engine.training.trained import TrainedRun
from penstock.kernels import Ragged
from tests.tiny_encoders import CONFIGS

WORDS = {
    "comedy": "laugh joke funny",
    "drama": "tears weep grief",
    "love": "kiss heart bride",
    "war": "soldier battle gun",
}
NAMES = list(WORDS)
SHARES = {"comedy": 0.3, "drama": 0.5, "love": 0.15, "war": 0.25}
FILLER = ("the", "a", "film", "story", "actor", "scene", "music", "plot", "it", "was", "and", "with")


def generate(rows, seed):
    draw = random.Random(seed)
    made = []
    for _ in range(rows):
        labels = [name for name in NAMES if draw.random() < SHARES[name]]
        words = draw.choices(FILLER, k=draw.randrange(2, 12)) + [draw.choice(WORDS[name].split()) for name in labels]
        draw.shuffle(words)
        made.append((" ".join(words), labels))
    return made


def write_csv(path, rows, separator="|"):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, separator.join(labels)) for text, labels in rows)
    return str(path)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": labels}) + "\n" for text, labels in rows))
    return str(path)


@pytest.fixture(scope="module")
def rows():
    return {"train": generate(480, 0), "test": generate(150, 1)}


@pytest.fixture(scope="module")
def lists_store(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "train"
    return prepare(rows["train"], folder, tokenizer="train:wordpiece:150", max_length=32, progress=False)


@pytest.fixture(scope="module")
def lists_test_store(rows, lists_store):
    return prepare(rows["test"], lists_store.path.with_name("test"), like=lists_store.path, progress=False)


# in float32: what stock transformers computes in, and here the faster one
LSTM = (
    "training.precision=fp32",
    "model.hidden_size=32",
    "model.embedding_size=32",
    "training.learning_rate=2e-2",
    "training.epochs=16",
)


@pytest.fixture(scope="module")
def run(lists_store, lists_test_store, tmp_path_factory):
    """A finished LSTM run and its result."""
    folder = tmp_path_factory.mktemp("runs") / "lstm"
    return folder, train(
        bare_settings("model.num_layers=1", *LSTM), lists_store, folder, test_store=lists_test_store, progress="none"
    )


def bare_settings(*overrides):
    """Without the sizes that `settings` gives every model."""
    return load_settings(None, ["data.tokens_per_batch=512", "training.tensorboard=false", *overrides])


def encoder_folder(folder, store):
    """A tiny random encoder with the store's tokenizer."""
    config = CONFIGS["bert"]()
    config.vocab_size, config.num_hidden_layers = store.vocab_size, 1
    torch.manual_seed(0)
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    store.tokenizer().save_pretrained(folder)
    return str(folder)


def test_int8_is_judged_by_micro_f1(lists_store, tmp_path):
    settings = bare_settings("training.max_steps=8", *LSTM)
    result = train(settings, lists_store, tmp_path, progress="none")
    check = TrainedRun.open(tmp_path).answer_in_int8()
    assert check.before == pytest.approx(result.thresholds.micro_f1_after)
    assert check.summary().startswith("int8: micro-F1 ")


@pytest.mark.slow
def test_an_lstm_learns(run, lists_test_store):
    _, result = run
    assert isinstance(result.test, MultiLabelMetrics)
    assert result.test.micro_f1 > 0.95
    assert result.test.macro_f1 > 0.9
    assert result.test.accuracy > 0.85
    assert result.test.num_examples == 150
    assert result.thresholds.micro_f1_after >= result.thresholds.micro_f1_before
    assert len(result.thresholds.values) == 4


@pytest.mark.slow
def test_an_encoder_learns_and_is_stock(tmp_path, rows, lists_store):
    name = encoder_folder(tmp_path / "encoder", lists_store)
    wanted = bare_settings(
        "model.kind=encoder",
        f"model.encoder={name}",
        "training.learning_rate=5e-3",
        "training.epochs=20",
        "training.precision=fp32",
        "data.tokens_per_batch=256",
    )
    result = train(wanted, lists_store, tmp_path / "run", progress="none")
    assert result.validation.micro_f1 > 0.9
    from transformers import pipeline

    texts = [text for text, _ in rows["test"][:8]]
    stock = pipeline("text-classification", str(tmp_path / "run"), top_k=None)
    assert type(stock.model).__module__.startswith("transformers.")
    check_scores(TrainedRun.open(tmp_path / "run"), texts, stock(texts))


def test_the_pipeline_gives_the_sigmoid_scores(run, rows):
    from transformers import pipeline

    texts = [text for text, _ in rows["test"][:8]]
    check_scores(TrainedRun.open(run[0]), texts, pipeline("text-classification", str(run[0]), top_k=None)(texts))


def check_scores(trained, texts, answers):
    assert trained.model.config.problem_type == "multi_label_classification"
    table = trained.predict(texts, probabilities=True)
    for row, answer in enumerate(answers):
        ours = {name: table[f"probability_{name}"][row].as_py() for name in NAMES}
        theirs = {each["label"]: each["score"] for each in answer}
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_the_best_model_is_chosen_by_micro_f1_unless_something_else_is_said(tmp_path, run, lists_store, settings):
    assert "metric: micro_f1" in (run[0] / "config.yaml").read_text()
    train(settings("training.metric=accuracy", "training.max_steps=2"), lists_store, tmp_path, progress="none")
    assert "metric: accuracy" in (tmp_path / "config.yaml").read_text()


def test_micro_f1_of_single_labels_is_their_accuracy(tmp_path, store, settings):
    by_accuracy = train(settings(), store, tmp_path / "a", progress="none")
    by_micro = train(settings("training.metric=micro_f1"), store, tmp_path / "b", progress="none")
    assert by_micro.validation == by_accuracy.validation
    assert type(by_micro.validation) is Metrics
    assert "thresholds" not in json.loads((tmp_path / "b" / "run.json").read_text())["result"]
    assert json.loads((tmp_path / "b" / "config.json").read_text()).get("problem_type") is None


def test_what_a_run_keeps(run):
    folder, result = run
    config = json.loads((folder / "config.json").read_text())
    record = json.loads((folder / "run.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["thresholds"] == record["thresholds"]["values"] == list(result.thresholds.values)
    assert record["data"]["multi_label"] is True
    assert TrainResult.from_json(record["result"]) == result
    assert TrainedRun.open(folder).thresholds.tolist() == config["thresholds"]


@pytest.mark.slow
def test_a_stopped_and_an_extended_run(tmp_path, lists_store, settings):
    whole = train(settings("training.epochs=3"), lists_store, tmp_path / "whole", progress="none")
    first = train(settings("training.epochs=2"), lists_store, tmp_path / "run", progress="none")
    again = train(settings("training.epochs=2"), lists_store, tmp_path / "run", progress="none")
    assert again == first
    longer = train(settings("training.epochs=3"), lists_store, tmp_path / "run", progress="none")
    assert longer.steps == whole.steps
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["thresholds"]
    assert kept == list(longer.thresholds.values)
    assert isinstance(longer.validation, MultiLabelMetrics)


def test_start_from_another_run(tmp_path, run, store, lists_store, settings):
    train(settings("training.max_steps=2"), store, tmp_path / "single", progress="none")
    started = bare_settings(f"model.start_from={tmp_path / 'single'}")
    with pytest.raises(StoreError, match="tokenizer"):
        train(started, lists_store, tmp_path / "x", progress="none")
    started = bare_settings(f"model.start_from={run[0]}", "training.max_steps=1", "training.learning_rate=1e-6")
    result = train(started, lists_store, tmp_path / "y", progress="none")
    assert result.validation.micro_f1 > 0.8  # the output layer is kept
    config = json.loads((tmp_path / "y" / "config.json").read_text())
    assert config["thresholds"] == list(result.thresholds.values)


def test_other_kinds_of_labels_get_a_new_output_layer(tmp_path, run, rows, capsys):
    single = [(text, labels[0]) for text, labels in rows["train"] if labels]
    store = prepare(single, tmp_path / "store", tokenizer=str(run[0]), max_length=32, progress=False)
    assert store.label_names == NAMES
    started = bare_settings(f"model.start_from={run[0]}", "training.max_steps=1")
    train(started, store, tmp_path / "run", progress="plain")
    assert "its texts had lists of labels, the data's have one label: the output layer" in capsys.readouterr().err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config.get("problem_type") is None
    assert "thresholds" not in config


def test_settings_that_make_no_sense(tmp_path, lists_store, settings):
    with pytest.raises(ConfigError, match=r"training\.label_smoothing=0\.1 has no meaning with the lists of labels"):
        train(settings("training.label_smoothing=0.1"), lists_store, tmp_path / "run", progress="none")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="there is no label 'luve'"):
        train(settings("training.class_weights={luve: 2}"), lists_store, tmp_path / "run", progress="none")


def test_the_opening_line(tmp_path, lists_store, settings, capsys):
    train(settings("training.max_steps=1"), lists_store, tmp_path, progress="plain")
    mean = sum(lists_store.manifest.label_counts) / 480
    line = next(line for line in capsys.readouterr().err.splitlines() if "multi-label" in line)
    found = float(line.split("multi-label: 4 labels, mean ")[1].split(" per example")[0])
    assert found == pytest.approx(mean, abs=0.1)


@pytest.mark.slow
def test_calibration(tmp_path, lists_store, settings):
    options = ("training.precision=fp32", "training.epochs=3", "training.learning_rate=1e-2")
    plain = train(settings(*options), lists_store, tmp_path / "plain", progress="none")
    result = train(settings(*options, "training.calibrate=true"), lists_store, tmp_path / "run", progress="none")
    assert result.calibration.loss_after <= result.calibration.loss_before == pytest.approx(plain.validation.loss, 1e-3)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["calibration_temperature"] == result.calibration.temperature
    assert config["thresholds"] == list(result.thresholds.values)
    # the decisions are the same, whatever the temperature
    assert result.thresholds.micro_f1_after == pytest.approx(plain.thresholds.micro_f1_after, abs=0.02)


def test_the_temperature_of_sigmoids_is_found():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 3))
    targets = (random.random((4000, 3)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    found = fit_temperature(logits * 2.5, targets)
    assert found.temperature == pytest.approx(2.5, rel=0.1)
    assert found.error_after < 0.02 < found.error_before


@pytest.mark.slow
def test_without_validation_rows_the_line_is_at_a_half(tmp_path, lists_store, lists_test_store, settings):
    result = train(
        settings(*LSTM, "data.validation_fraction=0"),
        lists_store,
        tmp_path,
        test_store=lists_test_store,
        progress="none",
    )
    assert result.thresholds is None
    assert result.test.micro_f1 > 0.5
    assert TrainedRun.open(tmp_path).thresholds.tolist() == [0.5] * 4


def test_class_weights_find_more_of_what_is_rare(tmp_path, lists_store, lists_test_store, settings):
    few = ("training.precision=fp32", "training.epochs=2", "training.learning_rate=5e-3", "data.validation_fraction=0")
    recall = {}
    for name, more in {"plain": (), "balanced": ("training.class_weights=balanced",)}.items():
        result = train(
            settings(*few, *more), lists_store, tmp_path / name, test_store=lists_test_store, progress="none"
        )
        recall[name] = result.test.micro_recall
    assert recall["balanced"] > recall["plain"]


def test_positive_weights():
    counts = np.array([10, 0, 40, 5])
    assert resolve_positive_weights("balanced", NAMES, counts, 40).tolist() == [3, 1, 1, 7]
    assert resolve_positive_weights({"love": 3.0}, NAMES, counts, 40).tolist() == [1, 1, 3, 1]
    assert resolve_positive_weights(None, NAMES, counts, 40) is None


def test_the_loss_is_that_of_transformers_and_of_torch():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 4), (torch.rand(5, 4) > 0.5).float()
    expected = torch.nn.BCEWithLogitsLoss()(logits, targets)
    torch.testing.assert_close(multi_label_loss(logits, targets, "mean"), expected)
    torch.testing.assert_close(multi_label_loss(logits, targets, "sum"), expected * 5)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    weighted = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, targets)
    torch.testing.assert_close(multi_label_loss(logits, targets, "mean", weights), weighted)
    assert classifier_output(logits, targets, "none", multi_label=True).loss.shape == (5,)
    with pytest.raises(ValueError, match="of 4 labels each"):
        classifier_output(logits, torch.zeros(5), "mean", multi_label=True)


def test_a_model_computes_its_loss():
    model = build_model(
        ModelSettings(kind="lstm", num_layers=1, hidden_size=8, embedding_size=8),
        vocab_size=20,
        num_labels=3,
        multi_label=True,
    ).eval()
    tokens = Ragged.from_lengths(torch.tensor([1, 2, 3, 4, 5], dtype=torch.int32), [2, 3])
    targets = torch.tensor([[1, 0, 1], [0, 0, 0]])
    output = model(tokens, labels=targets)
    torch.testing.assert_close(output.loss, torch.nn.BCEWithLogitsLoss()(output.logits, targets.float()))


def test_accumulation_is_one_large_batch(tmp_path, lists_store, settings):
    from safetensors.torch import load_file

    same = ("training.max_steps=2", "training.precision=fp32", "model.dropout=0", "model.head_dropout=0",
            "data.mode=pack", "training.class_weights=balanced")  # fmt: skip
    train(settings(*same, "data.tokens_per_batch=800"), lists_store, tmp_path / "one", progress="none")
    train(
        settings(*same, "data.tokens_per_batch=200", "data.batches_per_step=4"),
        lists_store,
        tmp_path / "four",
        progress="none",
    )
    first = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[1])["loss"] for name in ("one", "four")
    ]
    assert first[0] == pytest.approx(first[1], rel=0.1)
    assert load_file(tmp_path / "one" / "model.safetensors").keys()


# --- figures ---------------------------------------------------------------------------------------------------------


def scored(seed=0, examples=300, labels=4):
    random = np.random.default_rng(seed)
    truth = random.random((examples, labels)) < np.array([0.5, 0.3, 0.1, 0.05])[:labels]
    scores = 1 / (1 + np.exp(-(2 * truth + random.normal(size=truth.shape) - 1)))
    scores = np.round(scores, 2).astype(np.float32)  # with ties
    return truth, scores, np.array([0.5, 0.4, 0.3, 0.45])[:labels]


def counted(truth, scores, thresholds, names=tuple(NAMES)):
    counter = MultiLabelCounter(names, thresholds)
    for part in (slice(0, 100), slice(100, None)):
        counter.add(torch.from_numpy(truth[part].astype(np.float32)), torch.from_numpy(scores[part]), 1.0)
    return counter.result(bad_rows=2)


def test_figures_by_hand():
    truth = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]], bool)
    scores = np.array([[0.9, 0.2, 0.4], [0.6, 0.8, 0.1], [0.7, 0.3, 0.2], [0.1, 0.1, 0.1]], np.float32)
    found = counted(truth, scores, np.full(3, 0.5), ("a", "b", "c"))
    metrics = found.metrics
    # predicted: a in rows 0, 1, 2; b in row 1; c never
    assert metrics.micro_precision == 3 / 4
    assert metrics.micro_recall == 3 / 5
    assert metrics.micro_f1 == pytest.approx(2 * 3 / (4 + 5))
    assert metrics.macro_f1 == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert metrics.weighted_f1 == pytest.approx((2 * 4 / 5 + 2 * 2 / 3) / 5)
    assert metrics.accuracy == 1 / 4
    assert metrics.hamming_loss == 3 / 12
    assert (metrics.labels_per_example, metrics.predicted_per_example) == (5 / 4, 1)
    assert (metrics.num_never_predicted, metrics.never_predicted) == (1, ("c",))
    assert metrics.loss == 0.5
    assert [figures.auroc for figures in found.labels] == [1.0, 1.0, 1.0]
    assert found.labels[2].average_precision == 1.0
    assert found.labels[2].precision is None
    assert found.bad_rows == 2
    assert json.loads(json.dumps(found.to_json()))["subset_accuracy"] == 1 / 4


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_as_defined(seed):
    truth, scores, thresholds = scored(seed)
    predicted = scores >= thresholds
    found = counted(truth, scores, thresholds)
    metrics = found.metrics
    by_label = np.array([of.precision_recall_f1(truth[:, i], predicted[:, i]) for i in range(4)])
    support = truth.sum(0)
    precision, recall, f1 = of.precision_recall_f1(truth.ravel(), predicted.ravel())
    assert (metrics.micro_precision, metrics.micro_recall, metrics.micro_f1) == pytest.approx((precision, recall, f1))
    assert metrics.macro_f1 == pytest.approx(by_label[:, 2].mean())
    assert metrics.weighted_f1 == pytest.approx((by_label[:, 2] * support).sum() / support.sum())
    assert metrics.accuracy == pytest.approx(np.mean([(a == b).all() for a, b in zip(truth, predicted, strict=True)]))
    assert metrics.hamming_loss == pytest.approx(np.mean(truth != predicted))
    for number, figures in enumerate(found.labels):
        assert (figures.precision, figures.recall, figures.f1) == pytest.approx(tuple(by_label[number]))
        assert figures.support == support[number]
    for name, one in (("auroc", of.auroc), ("average_precision", of.average_precision)):
        assert getattr(found, name) == pytest.approx(np.mean([one(truth[:, i], scores[:, i]) for i in range(4)]))
        assert getattr(found, f"micro_{name}") == pytest.approx(one(truth.ravel(), scores.ravel()))


def test_average_precision_by_hand():
    assert average_precision(np.array([1, 0, 1, 0], bool), np.array([0.9, 0.8, 0.7, 0.1])) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert average_precision(np.array([1, 0], bool), np.array([0.5, 0.5])) == 0.5
    assert average_precision(np.zeros(2, bool), np.array([0.5, 0.5])) is None


@as_subtests("seed", range(5))
def test_the_best_threshold_is_the_best(seed):
    truth, scores, _ = scored(seed, examples=60)
    for label in range(4):
        line = best_threshold(scores[:, label], truth[:, label])

        def f1(at, label=label):
            predicted = scores[:, label] >= at
            return 2 * (predicted & truth[:, label]).sum() / max(predicted.sum() + truth[:, label].sum(), 1)

        assert f1(line) == max(f1(at) for at in np.linspace(0, 1, 1001))


def test_labels_with_few_rows_share_a_threshold():
    truth, scores, _ = scored(2, examples=150)
    assert truth.sum(0)[3] < 10 <= truth.sum(0)[2]
    found = choose_thresholds(scores, truth.astype(np.float32))
    assert found.num_own == 3
    assert found.values[3] == found.shared == best_threshold(scores.ravel(), truth.ravel())
    assert found.values[0] == best_threshold(scores[:, 0], truth[:, 0])
    assert found.micro_f1_after > found.micro_f1_before
    nothing = choose_thresholds(scores, np.zeros_like(scores))
    assert set(nothing.values) == {0.5}


def test_metrics_come_back_of_their_kind():
    truth, scores, thresholds = scored()
    metrics = counted(truth, scores, thresholds).metrics
    record = json.loads(json.dumps(metrics.__dict__))
    assert read_metrics(record) == metrics
    single = {"accuracy": 0.5, "macro_f1": 0.4, "loss": 0.7, "num_examples": 10}
    assert type(read_metrics(single)) is Metrics


# --- evaluate and predict --------------------------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_evaluating_a_store_and_raw_data_is_the_same(tmp_path, run, rows, lists_test_store):
    trained = TrainedRun.open(run[0])
    of_store = trained.evaluate_store(lists_test_store).to_json()
    assert of_store["micro_f1"] == pytest.approx(run[1].test.micro_f1)
    assert of_store["macro_f1"] == pytest.approx(run[1].test.macro_f1)
    raw = write_jsonl(tmp_path / "a.jsonl", rows["test"])
    of_source = trained.evaluate_source(open_source(raw)).to_json()
    assert of_source["micro_f1"] == pytest.approx(of_store["micro_f1"], abs=0.01)
    assert [each["support"] for each in of_source["labels"]] == [each["support"] for each in of_store["labels"]]
    source = write_csv(tmp_path / "b.csv", rows["test"], ";")
    files = ("--json", tmp_path / "a.json", "--html", tmp_path / "a.html")
    done = invoke("evaluate", run[0], "--data", source, "--label-separator", ";", *files)
    assert done.exit_code == 0, done.output
    assert "micro-F1" in done.output
    assert "comedy" in done.output
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["micro_f1"] == pytest.approx(of_source["micro_f1"])
    page = (tmp_path / "a.html").read_text()
    assert "Label by label" in page
    assert page.count("<img") == 1


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("text,label\nx,comedy|drama\n", 3, "one label a row, the training data had lists: --label-separator"),
        ("text,label\nx,horror|drama\n", 3, "line 2: the label 'horror' was not there in training"),
    ],
)
def test_evaluating_other_labels(tmp_path, run, content, code, message):
    path = tmp_path / "a.csv"
    path.write_text(content)
    more = () if code == 3 and "horror" not in content else ("--label-separator", "|")
    done = penstock("evaluate", run[0], "--data", path, *more)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_rows_of_raw_data_are_counted(tmp_path, run, rows):
    path = write_jsonl(tmp_path / "a.jsonl", [*rows["test"][:20], ("x", ["horror", "drama"]), ("y", [])])
    noted = []
    found = TrainedRun.open(run[0]).evaluate_source(open_source(path), on_bad=lambda source, bad: noted.extend(bad))
    assert (found.metrics.num_examples, found.bad_rows) == (21, 1)
    assert [row.position for row in noted] == [21]


def test_stores_of_the_other_kind_do_not_fit(tmp_path, run, rows):
    single = [(text, labels[0]) for text, labels in rows["train"] if labels]
    store = prepare(single, tmp_path / "store", tokenizer=str(run[0]), max_length=32, progress=False)
    with pytest.raises(StoreError, match="one label a row, the training data had lists of labels"):
        TrainedRun.open(run[0]).evaluate_store(store)


def test_predictions_are_lists(run, rows):
    trained = TrainedRun.open(run[0])
    texts = [text for text, _ in rows["test"]]
    table = trained.predict([*texts, None], probabilities=True)
    assert str(table.schema.field("label").type) == "list<item: string>"
    labels, chances = table["label"].to_pylist(), table["probability"].to_pylist()
    assert labels[-1] is None
    assert chances[-1] is None
    lines = dict(zip(NAMES, trained.thresholds, strict=True))
    for row in range(len(texts)):
        each = {name: table[f"probability_{name}"][row].as_py() for name in NAMES}
        wanted = sorted((name for name in NAMES if each[name] >= lines[name]), key=lambda name: -each[name])
        assert labels[row] == wanted
        assert chances[row] == [each[name] for name in wanted]
    right = sum(set(found) == set(there) for found, (_, there) in zip(labels, rows["test"], strict=False))
    assert right / len(texts) > 0.85
    most = trained.predict(texts, top_k=2)["label"].to_pylist()
    assert all(len(found) == 2 for found in most)


def test_columns_by_hand():
    columns = ListColumns(["text"], ["a", "b", "c"], np.array([0.5, 0.3, 0.9]))
    scores = np.array([[0.6, 0.3, 0.8], [0.1, 0.1, 0.1], [np.nan] * 3, [0.2, 0.95, 0.9]], np.float64)
    labels, chances = (column.to_pylist() for column in columns.of(scores))
    assert labels == [["a", "b"], [], None, ["b", "c"]]
    assert [each and [round(one, 2) for one in each] for each in chances] == [[0.6, 0.3], [], None, [0.95, 0.9]]


def test_files_of_predictions(tmp_path, run, rows):
    source = write_csv(tmp_path / "new.csv", rows["test"][:30])
    expected = TrainedRun.open(run[0]).predict([text for text, _ in rows["test"][:30]])["label"].to_pylist()
    for name, more in (("a.csv", ()), ("a.tsv", ("--label-separator", ", ")), ("a.jsonl", ()), ("a.parquet", ())):
        done = invoke("predict", run[0], source, "--out", tmp_path / name, *more)
        assert done.exit_code == 0, done.output
    with open(tmp_path / "a.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["label"].split("|") if row["label"] else [] for row in read] == expected
    counts = [len(row["probability"].split("|")) if row["probability"] else 0 for row in read]
    assert counts == [len(labels) for labels in expected]
    with open(tmp_path / "a.tsv", newline="") as file:
        read = list(csv.DictReader(file, delimiter="\t"))
    assert [row["label"].split(", ") if row["label"] else [] for row in read] == expected
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == expected
    assert pq.read_table(tmp_path / "a.parquet")["label"].to_pylist() == expected
    done = invoke("predict", run[0], source, "--out", tmp_path / "k.jsonl", "--top-k", "2")
    assert done.exit_code == 0
    assert all(len(json.loads(line)["label"]) == 2 for line in (tmp_path / "k.jsonl").read_text().splitlines())
    done = invoke("predict", run[0], source, "--out", tmp_path / "b.csv", "--label-separator", "o")
    assert isinstance(done.exception, ConfigError) or done.exit_code == 6
    for name in ("b.jsonl", "b.parquet"):
        done = invoke("predict", run[0], source, "--out", tmp_path / name, "--label-separator", ";")
        assert isinstance(done.exception, ConfigError)
        assert "--label-separator has no effect" in str(done.exception)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("prepared", [True, False])
def test_a_study_refuses_lists(tmp_path, rows, lists_store, lists_test_store, prepared):
    if prepared:
        given = [lists_store.path, lists_test_store.path]
    else:
        given = [write_jsonl(tmp_path / name, rows["test"]) for name in ("a.jsonl", "b.jsonl")]
    encoder = encoder_folder(tmp_path / "encoder", lists_store)
    options = ["--train", given[0], "--test", given[1], "--encoder", encoder, "--out", tmp_path / "out"]
    done = penstock("study", *options, "--sizes", "50,100")
    assert done.returncode == (5 if prepared else 3), done.stderr
    assert "has lists of labels; a study compares models that choose one label" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_another_run_in_the_directory(tmp_path, lists_store, store, settings):
    train(settings("training.max_steps=1"), lists_store, tmp_path, progress="none")
    with pytest.raises(RunError):
        train(settings("training.max_steps=1"), store, tmp_path, progress="none")
