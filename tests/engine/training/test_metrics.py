import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from subtested import as_subtests

from penstock.engine.statistics.resample import Drawn
from penstock.engine.statistics.verdict import verdict
from penstock.engine.training.calibrate import Calibration
from penstock.engine.training.evaluation_page import figure_text
from penstock.engine.training.metrics import Metrics, count_confusion
from penstock.engine.training.multi_label import MultiLabelMetrics
from penstock.engine.training.pretraining_metrics import PretrainingMetrics
from penstock.engine.training.progress import describe_evaluation


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


@as_subtests("value", [-0.0, -1e-9])
def test_no_figure_is_printed_as_a_negative_zero(value):
    """Those that may be below 0, or come to it from there."""
    all_metrics = [cls(1.0, 1.0, value, 3) for cls in (Metrics, MultiLabelMetrics)]
    all_metrics.append(PretrainingMetrics(loss=value, accuracy=1.0, num_told=3, num_examples=3))
    lines = [
        *(each.summary() for each in all_metrics),
        *(describe_evaluation({"split": "x", "step": 1, **dataclasses.asdict(each)}) for each in all_metrics),
        figure_text(value),
        Calibration(1.0, value, value, 0.0, 0.0).describe(9),
        verdict(Drawn(value, np.full(9, value), 1, 9, 9), "A", "B").text,
    ]
    for line in lines:
        assert re.search(r"0\.0+\b", line)
        assert not re.search(r"[-−]0\.0+\b", line), line


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
