import math

import pytest
import torch

from penstock.engine.training.metrics import Metrics, count_confusion


def confusion_of(labels, predictions, num_labels):
    confusion = torch.zeros(num_labels, num_labels, dtype=torch.int64)
    count_confusion(confusion, torch.tensor(labels, dtype=torch.int64), torch.tensor(predictions, dtype=torch.int64))
    return confusion


def metrics_of(labels, predictions, num_labels, loss_sum=0.0):
    return Metrics.from_confusion(confusion_of(labels, predictions, num_labels), loss_sum)


def test_by_hand():
    # class 0: TP 2, FP 1, FN 1; class 1: TP 1, FP 1, FN 1; class 2: TP 1, FP 1, FN 1
    metrics = metrics_of([0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2, 0], 3, loss_sum=3.5)
    assert metrics.num_examples == 7
    assert metrics.accuracy == pytest.approx(4 / 7)
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert metrics.loss == pytest.approx(0.5)


def test_a_class_that_is_never_predicted_counts_as_zero_and_an_absent_one_not_at_all():
    metrics = metrics_of([0, 0, 1], [0, 0, 0], 4)
    assert metrics.macro_f1 == pytest.approx((2 * 2 / (2 * 2 + 1) + 0.0) / 2)


def test_counts():
    assert confusion_of([0, 1, 1, 1], [1, 1, 0, 1], 2).tolist() == [[0, 1], [1, 2]]
    assert confusion_of([], [], 2).sum() == 0


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "loss"])
def test_better(metric):
    good, bad = Metrics(0.9, 0.9, 0.1, 10), Metrics(0.8, 0.8, 0.2, 10)
    assert good.better_than(bad, metric)
    assert not bad.better_than(good, metric)
    assert not good.better_than(good, metric)
    assert bad.better_than(None, metric)


def test_equal_accuracy_is_settled_by_the_loss():
    assert Metrics(0.9, 0.5, 0.1, 10).better_than(Metrics(0.9, 0.9, 0.2, 10), "accuracy")


def test_a_loss_that_is_not_a_number_is_never_better():
    assert not Metrics(0.9, 0.9, math.nan, 10).better_than(Metrics(0.9, 0.9, 0.1, 10), "loss")
