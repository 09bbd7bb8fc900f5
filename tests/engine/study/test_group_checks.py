"""Checks on the groups of test rows, and on LSTMs that models of n-grams beat."""

from dataclasses import replace

import pytest
from fabricated_study import with_predictions

from penstock.engine.data.clusters import ClusterOverlap
from penstock.engine.study.answer import what_would_tell
from penstock.engine.study.checks import Check, run_checks
from penstock.engine.study.paired import Paired
from penstock.engine.study.table import Table
from penstock.engine.study.trials import Trial, TrialResult


def study(folder, accuracies: dict[str, dict[int, float]], rows: int = 2000) -> list[TrialResult]:
    """Three seeds of each, with their predictions."""
    return [
        with_predictions(folder, TrialResult(Trial(size, seed, family), "done", accuracy=accuracy), rows, accuracy)
        for family, own in accuracies.items()
        for size, accuracy in own.items()
        for seed in range(3)
    ]


def checks(table: Table, document: dict | None = None) -> dict[str, Check]:
    return {check.code: check for check in run_checks(document or {}, table, {})}


@pytest.mark.parametrize(("shared", "rows"), [(0, 0), (1, 30), (3, 90)])
def test_groups_that_training_has_too(shared, rows):
    overlap = ClusterOverlap("film", 3, 90, shared, rows)
    found = checks(Table([]), {"cluster_overlap": overlap.to_json()})
    assert ("PS011" in found) == bool(shared)
    if shared:
        assert f"{shared} of 3 groups of test rows by 'film' ({rows} of 90 rows)" in found["PS011"].found


@pytest.mark.parametrize(("clusters", "column", "few"), [(29, "film", True), (30, "film", False), (5, None, False)])
def test_few_groups(clusters, column, few):
    found = checks(Table([], Paired({}, {}, {}, {}, 2000, clusters, column, 0)))
    assert ("PS012" in found) == few


@pytest.mark.parametrize("seeds", [1, 3])
def test_too_few_test_rows_in_groups(tmp_path, seeds):
    """They count as groups here as they do in the answer."""
    close = {"linear": {2000: 0.775}, "encoder": {2000: 0.78}}
    results = [one for one in study(tmp_path, close) if one.trial.seed < seeds]
    paired = Paired.of(tmp_path, results)
    table = Table(results, replace(paired, clusters=40, column="film"))
    found = checks(table)["PS004"]
    assert "2,000 test rows in 40 groups by 'film' are too few" in found.found
    assert ("groups of test rows would" if seeds == 1 else "test rows, or more seeds, would") in found.found
    assert "test rows of more groups" in found.advice
    point = table.get("linear", 2000)
    assert f"({what_would_tell(point.gap, point.test.pairs, 2000, 40)} would)" in found.found


# accuracies with 500 and 8,000 labels, and whether a model of n-grams is said to be better than the LSTM
CASES = {
    "bag ahead": ({"bag": (0.5, 0.8), "lstm": (0.5, 0.6)}, "a bag of n-grams is better"),
    "linear is best": ({"linear": (0.5, 0.9), "bag": (0.5, 0.8), "lstm": (0.5, 0.6)}, "a linear model is better"),
    "level": ({"bag": (0.5, 0.701), "lstm": (0.5, 0.70)}, None),
    "behind": ({"bag": (0.8, 0.6), "lstm": (0.5, 0.8)}, None),
    "nothing to compare": ({"lstm": (0.5, 0.6)}, None),
    "the encoder is no LSTM": ({"bag": (0.5, 0.8), "encoder": (0.5, 0.6)}, None),
    "pretrained embeddings": ({"linear": (0.5, 0.8), "lstm-embeddings": (0.5, 0.6)}, "a linear model is better"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_lstm_that_counting_beats(tmp_path, case):
    accuracies, expected = CASES[case]
    results = study(tmp_path, {name: dict(zip((500, 8000), own, strict=True)) for name, own in accuracies.items()})
    found = checks(Table(results, Paired.of(tmp_path, results)))
    assert ("PS013" in found) == (expected is not None)
    if expected is not None:
        assert expected in found["PS013"].found
        assert "with 8,000 labels" in found["PS013"].found
        assert found["PS013"].advice.startswith("use ")


def test_without_predictions_nothing_is_said(tmp_path):
    accuracies = {"bag": {8000: 0.9}, "lstm": {8000: 0.5}}
    assert "PS013" not in checks(Table(study(tmp_path, accuracies)))  # intervals over seeds alone
