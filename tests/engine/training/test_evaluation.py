"""Every figure against its definition, and against values by hand."""

import json
import math

import figures_by_definition as of
import numpy as np
import pytest
import torch
from subtested import as_subtests

from penstock.engine.training import evaluation as evaluation_module
from penstock.engine.training.evaluation import EvaluationCounter, binary_auroc
from penstock.engine.training.evaluation_page import evaluation_page, print_evaluation
from penstock.engine.training.metrics import Metrics, count_confusion


def draw(examples, num_labels, seed, sharpness=2.0, classes_present=None):
    """Labels and probabilities (examples, num_labels) that are better than chance."""
    random = np.random.default_rng(seed)
    labels = random.choice(classes_present or num_labels, examples)
    logits = random.normal(size=(examples, num_labels)) + sharpness * np.eye(num_labels)[labels]
    return torch.from_numpy(labels), torch.from_numpy(logits).float().softmax(-1)


def evaluate(labels, probabilities, parts=3, names=None):
    counter = EvaluationCounter(names or [f"class {i}" for i in range(probabilities.shape[1])])
    for some, scores in zip(labels.chunk(parts), probabilities.chunk(parts), strict=True):
        counter.add(some, scores, float(-scores[torch.arange(len(some)), some].log().sum()))
    return counter.result()


CASES = [(400, 2, 0, None), (500, 5, 1, None), (300, 7, 2, [0, 2, 5]), (50, 30, 3, None), (64, 3, 4, [1])]


@as_subtests("examples, num_labels, seed, present", CASES)
def test_equals_its_definition(examples, num_labels, seed, present):
    labels, probabilities = draw(examples, num_labels, seed, classes_present=present)
    found = evaluate(labels, probabilities)
    truth, scores = labels.numpy(), probabilities.numpy()
    predicted = scores.argmax(1)
    metrics = found.metrics
    assert metrics.accuracy == pytest.approx((truth == predicted).mean())
    precision, recall, f1 = np.transpose(
        [of.precision_recall_f1(truth == number, predicted == number) for number in range(num_labels)]
    )
    support = np.array([(truth == number).sum() for number in range(num_labels)])
    assert metrics.macro_f1 == pytest.approx(np.nanmean(f1))
    assert metrics.weighted_f1 == pytest.approx(np.nansum(f1 * support) / examples)
    assert metrics.balanced_accuracy == pytest.approx(np.nanmean(recall))
    assert metrics.mcc == pytest.approx(of.matthews(truth, predicted, num_labels))
    assert metrics.loss == pytest.approx(-np.log(scores[np.arange(examples), truth]).mean(), rel=1e-4)
    for number, figures in enumerate(found.classes):
        for mine, theirs in ((figures.precision, precision), (figures.recall, recall), (figures.f1, f1)):
            assert (math.nan if mine is None else mine) == pytest.approx(theirs[number], nan_ok=True)
        assert figures.support == support[number]
        expected = of.auroc(truth == number, scores[:, number])
        assert (math.nan if figures.auroc is None else figures.auroc) == pytest.approx(expected, nan_ok=True)
    assert np.array_equal(found.confusion, of.confusion(truth, predicted, num_labels))


def test_by_hand():
    # labels a a a b b c, predictions a a b b b a: a has TP 2 FP 1 FN 1, b TP 2 FP 1 FN 0, c TP 0 FP 0 FN 1
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    probabilities = torch.tensor(
        [[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.1, 0.9, 0.0], [0.2, 0.6, 0.2], [0.7, 0.1, 0.2]]
    )
    found = evaluate(labels, probabilities, names=["a", "b", "c"])
    metrics = found.metrics
    assert metrics.accuracy == pytest.approx(4 / 6)
    assert metrics.majority_share == pytest.approx(3 / 6)
    assert metrics.balanced_accuracy == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)
    assert metrics.weighted_f1 == pytest.approx((3 * 2 / 3 + 2 * 4 / 5 + 0) / 6)
    # (c s - sum p t) / sqrt((s^2 - sum p^2)(s^2 - sum t^2)), c = 4, s = 6, p = (3, 3, 0), t = (3, 2, 1)
    assert metrics.mcc == pytest.approx((4 * 6 - 15) / math.sqrt((36 - 18) * (36 - 14)))
    assert (metrics.num_never_predicted, metrics.never_predicted) == (1, ("c",))
    assert found.classes[2].precision is None
    # a against the rest: 0.9 above all; 0.8 above all; 0.3 above 0.1 and 0.2, below 0.7
    assert found.classes[0].auroc == pytest.approx((3 + 3 + 2) / 9)
    # bins of 1/15; confidences 0.9 0.8 0.4 0.9 0.6 0.7, right 1 1 0 1 1 0
    assert found.ece == pytest.approx((abs(1.8 - 2) + 0.2 + 0.4 + 0.4 + 0.7) / 6, abs=1e-6)
    used = [part for part in found.reliability if part.count]
    assert sum(part.count for part in used) == 6
    assert all(part.low - 1e-6 <= part.confidence <= part.high + 1e-6 for part in used)


def test_auroc_counts_ties_as_half():
    positive = np.array([True, False, True, False])
    assert binary_auroc(positive, np.zeros(4)) == 0.5
    assert binary_auroc(positive, np.array([1.0, 1.0, 2.0, 0.0])) == pytest.approx((1.5 + 2) / 4)
    assert binary_auroc(np.ones(3, bool), np.arange(3)) is None


def test_memory_is_bounded_and_the_sample_is_even(monkeypatch):
    labels, probabilities = draw(1000, 4, 5)
    whole = evaluate(labels, probabilities, parts=10)
    monkeypatch.setattr(evaluation_module, "MAX_SCORES", 4 * 300)
    counter = EvaluationCounter(list("abcd"))
    for some, scores in zip(labels.split(37), probabilities.split(37), strict=True):
        counter.add(some, scores, 0.0)
        assert counter._scores._count <= 300
    found = counter.result()
    assert found.auroc_examples == 250
    assert np.array_equal(counter._scores.rows()[0], labels[::4].numpy())
    assert found.auroc == pytest.approx(whole.auroc, abs=0.05)
    assert found.ece == pytest.approx(whole.ece)
    assert np.array_equal(found.confusion, whole.confusion)


@pytest.mark.parametrize("present", [[0], [0, 1], [3]])
def test_a_constant_answer(present):
    labels = torch.tensor(present * 10)
    probabilities = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(len(labels), 1)
    found = evaluate(labels, probabilities)
    assert found.metrics.mcc == 0.0
    assert found.metrics.majority_share == 1 / len(present)
    missing = [number for number in present if number != 0]
    assert found.metrics.num_never_predicted == len(missing)
    line = found.summary()
    assert f"the most frequent class alone would make {1 / len(present):.4f}" in line
    assert ("never predicted" in line) == bool(missing)
    json.loads(json.dumps(found.to_json(), allow_nan=False))


def test_the_line_names_the_most_frequent_of_the_classes_never_predicted():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2] * 5 + [3] * 4 + [4] * 3)
    confusion = torch.zeros(6, 6, dtype=torch.int64)
    count_confusion(confusion, labels, torch.zeros_like(labels))
    metrics = Metrics.from_confusion(confusion, 1.0, ["a", "b", "c", "d", "e", "unseen"])
    assert metrics.summary().endswith("4 of 6 classes are never predicted: c, d, e, …")


def test_nothing_to_judge_by_is_an_error():
    with pytest.raises(ValueError, match="no examples"):
        Metrics.from_confusion(torch.zeros(2, 2), 0.0)


def test_figures_of_an_older_run_load_and_read_as_before():
    old = Metrics(**{"accuracy": 0.5, "macro_f1": 0.4, "loss": 0.7, "num_examples": 10})
    assert old.summary() == "accuracy 0.5000, macro-F1 0.4000, loss 0.7000 on 10 examples"


@pytest.mark.slow
@as_subtests("num_labels", [2, 12, 13, 40])
def test_the_page_and_the_table_hold_every_number_of_classes(num_labels, capsys):
    labels, probabilities = draw(400, num_labels, 6)
    names = [f"<b>class {number}</b> $x$ [red]" for number in range(num_labels)]
    found = evaluate(labels, probabilities, names=names)
    page = evaluation_page(found, "runs/a <run>", "data.csv")
    assert page.count("data:image/png;base64,") == 2
    assert "<b>class" not in page
    assert "http" not in page.replace("https://", "http://").split("<style>")[0]
    print_evaluation(found)
    out = capsys.readouterr().out
    assert ("The worst and the best" in out) == (num_labels > 30)
    assert "[red]" in out
