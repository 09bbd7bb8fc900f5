"""Each check, on a study that has what it is about and on one that has not."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from fabricated_study import evaluation, result, with_predictions
from subtested import as_subtests

from penstock.engine.study import costs
from penstock.engine.study.checks import Check, run_checks
from penstock.engine.study.costs import Cost
from penstock.engine.study.paired import Paired
from penstock.engine.study.table import Table
from penstock.engine.study.trials import AT_THE_END, Trial, TrialResult

ROOT = Path(__file__).resolve().parents[3]
SOUND = {"linear": {500: 0.55, 2000: 0.62, 8000: 0.68}, "encoder": {500: 0.75, 2000: 0.79, 8000: 0.82}}


def trial(family: str, size: int, seed: int, accuracy: float, **changed) -> TrialResult:
    made = TrialResult(Trial(size, seed, family), "done", accuracy=accuracy, evaluation=evaluation(accuracy))
    whole = dict(made.evaluation or {}, majority_share=0.4)
    whole["classes"] = [one | {"predicted": max(one["predicted"], 1)} for one in whole["classes"]]
    return dataclasses.replace(made, evaluation=whole, **changed)


def study(folder: Path, accuracies=SOUND, seeds=3, rows=2000) -> list[TrialResult]:
    """Trials that have kept predictions."""
    return [
        with_predictions(folder, trial(family, size, seed, accuracy), rows, accuracy)
        for family, own in accuracies.items()
        for size, accuracy in own.items()
        for seed in range(seeds)
    ]


def checks(
    folder: Path, results: list[TrialResult], costs: dict | None = None, overlap=(2000, 0, 0)
) -> dict[str, Check]:
    table = Table(results, Paired.of(folder, results))
    document = {"overlap": dict(zip(("test_rows", "shared", "other_label"), overlap, strict=True))}
    found = run_checks(document, table, costs or {})
    assert [check.code for check in found] == sorted(check.code for check in found)
    for check in found:
        assert str(check) == f"{check.code} {check.found}: {check.advice}"
        assert "\n" not in str(check)
    return {check.code: check for check in found}


def test_a_sound_study_has_nothing_to_mind(tmp_path):
    assert checks(tmp_path, study(tmp_path)) == {}


def test_an_encoder_that_is_worse_than_a_linear_model(tmp_path):
    worse = {"linear": {500: 0.75, 2000: 0.79, 8000: 0.7}, "encoder": {500: 0.6, 2000: 0.66, 8000: 0.82}}
    found = checks(tmp_path, study(tmp_path, worse))["PS001"]
    assert "the fine-tuned encoder is worse than a linear model with 500, 2,000 labels" in found.found
    assert "encoder.training.epochs" in found.advice


def test_an_encoder_that_is_worse_than_a_bilstm_is_no_fault(tmp_path):
    worse = {"lstm": {500: 0.75, 2000: 0.79, 8000: 0.85}, "encoder": {500: 0.6, 2000: 0.66, 8000: 0.8}}
    assert "PS001" not in checks(tmp_path, study(tmp_path, worse))


@pytest.mark.slow
@as_subtests(
    ("student", "better"),
    [
        ({500: 0.86, 2000: 0.88, 8000: 0.82}, "500, 2,000"),
        ({500: 0.74, 2000: 0.78, 8000: 0.81}, None),
        ({500: 0.751, 2000: 0.79, 8000: 0.82}, None),
    ],
)
def test_a_student_that_is_better_than_its_teacher(tmp_path, student, better):
    found = checks(tmp_path, study(tmp_path, SOUND | {"lstm-distilled": student})).get("PS014")
    assert (found is None) == (better is None)
    if found is not None:
        assert found.found == f"a BiLSTM distilled from the encoder is better than its teacher with {better} labels"
        assert "leak" in found.advice


@pytest.mark.slow
@as_subtests(
    "own, ill, kept",
    [
        (own, ill, kept)
        for kept in (True, False)
        for own, ill in [
            ({500: 0.75, 2000: 0.70, 8000: 0.82}, True),
            ({500: 0.75, 2000: 0.79, 8000: 0.70}, True),
            ({500: 0.75, 2000: 0.748, 8000: 0.82}, False),
            ({500: 0.75, 2000: 0.75, 8000: 0.75}, False),
            ({500: 0.70, 2000: 0.79, 8000: 0.82}, False),
        ]
    ],
)
def test_accuracy_that_falls_with_more_labels(tmp_path, own, ill, kept):
    """By more than seeds, and test rows where they are known, explain."""
    if kept:
        results = study(tmp_path, SOUND | {"encoder": own})
    else:
        noise = (-0.004, 0.001, 0.003)
        results = [
            trial("encoder", size, seed, value + noise[seed]) for size, value in own.items() for seed in range(3)
        ]
    found = checks(tmp_path, results)
    assert ("PS002" in found) == ill
    if ill:
        assert "the fine-tuned encoder gets worse with more labels" in found["PS002"].found


def test_test_rows_among_the_training_data(tmp_path):
    results = study(tmp_path)
    assert "12 of 2,000 test rows (0.6%)" in checks(tmp_path, results, overlap=(2000, 12, 2))["PS003"].found
    assert "PS003" not in checks(tmp_path, results, overlap=(2000, 0, 0))


@pytest.mark.parametrize(("rows", "small"), [(300, True), (20000, False)])
def test_too_few_test_rows(tmp_path, rows, small):
    close = {"linear": {500: 0.70, 2000: 0.775}, "encoder": {500: 0.75, 2000: 0.80}}
    found = checks(tmp_path, study(tmp_path, close, 1, rows))
    assert ("PS004" in found) == small
    if small:
        pattern = r"300 test rows are too few to .* a linear model with 2,000 labels \(about ([\d,]+) test rows would"
        needed = re.search(pattern, found["PS004"].found)
        assert int(needed[1].replace(",", "")) > 300


def test_a_choice_at_the_edge_of_its_range(tmp_path):
    results = study(tmp_path)
    note = f"C=100 {AT_THE_END} (1 to 100)"
    results[0] = dataclasses.replace(results[0], notes=(note,))
    found = checks(tmp_path, results)["PS005"]
    assert f"{note} (linear-500-0)" in found.found
    assert "widen the range" in found.advice


def test_a_limit_that_was_met_is_no_choice_at_an_edge(tmp_path):
    results = study(tmp_path)
    note = "trained on 100 of 500 rows: its limit of memory and time is 1,000 tokens"
    results[0] = dataclasses.replace(results[0], notes=(note,))
    found = checks(tmp_path, results)["PS005"]
    assert note in found.found
    assert "range" not in found.advice


def test_a_class_that_is_never_predicted(tmp_path):
    results = study(tmp_path)
    last = next(place for place, one in enumerate(results) if one.trial.name == "encoder-8000-1")
    whole = dict(results[last].evaluation)
    whole["classes"] = [one | {"predicted": 0 if one["name"] == "rare" else 9} for one in whole["classes"]]
    results[last] = dataclasses.replace(results[last], evaluation=whole)
    found = checks(tmp_path, results)["PS006"].found
    assert "(rare): never predicted by one of the 3 seeds of the fine-tuned encoder with 8,000 labels" in found


def test_a_class_that_some_seeds_predict_is_not_never_predicted(tmp_path):
    results = study(tmp_path)
    for place, one in enumerate(results):
        if one.trial.family == "encoder" and one.trial.size == 8000:
            missed = {"rare"} | ({"good"} if one.trial.seed else set())
            classes = [own | {"predicted": 0 if own["name"] in missed else 9} for own in one.evaluation["classes"]]
            results[place] = dataclasses.replace(one, evaluation=one.evaluation | {"classes": classes})
    found = [one.found for one in run_checks({}, Table(results), {}) if one.code == "PS006"]
    assert found == [
        "a class that the test data has (rare): never predicted by the fine-tuned encoder with 8,000 labels",
        "a class that the test data has (good): never predicted by up to 2 of the 3 seeds of the fine-tuned encoder "
        "with 8,000 labels",
    ]


def test_what_one_seed_says_of_others_is_not_claimed(tmp_path):
    """A fall is told only where something tells how seeds differ; who is behind is told with the number of seeds."""
    falling = {"linear": {500: 0.9, 2000: 0.9}, "encoder": {500: 0.75, 2000: 0.55}}
    found = checks(tmp_path, study(tmp_path, falling, 1))
    assert "PS002" not in found
    assert "worse than a linear model with 500 (one seed), 2,000 (one seed) labels" in found["PS001"].found
    assert "PS002" in checks(tmp_path, study(tmp_path, falling, 3))


@pytest.mark.slow
def test_a_flat_curve_is_rarely_taken_for_a_falling_one(tmp_path):
    """Seeds that differ by a point, three at two sizes and one at the third, which have nothing else apart."""
    alarms = 0
    for number in range(60):
        random = np.random.default_rng(number)
        results = [
            with_predictions(tmp_path, trial(family, size, seed, 0.8), 4000, 0.8 + random.normal(0, 0.01))
            for family in ("linear", "lstm")
            for size in (500, 2000, 8000)
            for seed in range(3 if size < 8000 else 1)
        ]
        alarms += "PS002" in checks(tmp_path, results)
    assert alarms / 60 < 0.1 + 2 * (0.1 * 0.9 / 60) ** 0.5  # one in twenty for each of the two families


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_trials_that_are_not_done(tmp_path, status):
    results = [*study(tmp_path), TrialResult(Trial(8000, 3, "encoder"), status, error="loss is nan")]
    assert f"1 trial {status}: encoder-8000-3 (loss is nan)" in checks(tmp_path, results)["PS007"].found


@pytest.mark.parametrize(("others", "busy"), [(None, False), (0.01, False), (0.9, True)])
def test_costs_of_a_busy_machine(tmp_path, monkeypatch, others, busy):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    cost = Cost("encoder", 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 9, 32: 9}, "CPU", 2, others=others)
    found = checks(tmp_path, study(tmp_path), {"encoder": cost})
    assert ("PS008" in found) == busy
    if busy:
        assert "up to 0.9 cores busy while costs were measured (the fine-tuned encoder)" in found["PS008"].found


def test_one_seed_only(tmp_path):
    results = [one for one in study(tmp_path) if one.trial.size < 8000 or one.trial.seed == 0]
    assert "with 8,000 labels a linear model, the fine-tuned encoder" in checks(tmp_path, results)["PS009"].found


def test_a_family_that_guesses(tmp_path):
    guesses = {"lstm": {500: 0.41, 2000: 0.41, 8000: 0.41}}
    found = checks(tmp_path, study(tmp_path, SOUND | guesses))["PS010"]
    assert "a BiLSTM from scratch with 8,000 labels" in found.found
    assert "always saying the most frequent class (40.0%)" in found.found


def test_every_code_is_documented():
    source = (ROOT / "engine" / "study" / "checks.py").read_text()
    documented = re.findall(r"^\| (PS\d{3}) \|", (ROOT / "docs" / "study.md").read_text(), re.MULTILINE)
    assert documented == sorted(set(re.findall(r'"(PS\d{3})"', source)))


def test_costs_of_an_earlier_penstock_are_read(tmp_path):
    made = result("lstm", 500, 0)
    assert made.notes == ()
    path = tmp_path / "lstm.json"
    path.write_text(
        '{"family": "lstm", "parameters": 3, "embedding_parameters": 1, "bytes_on_disk": 12, "latency_ms": {"1": 2.0, '
        '"32": 3.0}, "runs": {"1": 20, "32": 20}, "device": "CPU", "threads": 2, "made_from": null}'
    )
    cost = costs.read_cost(path)
    assert (cost.latency_ms[32], cost.texts_per_second, cost.memory_bytes, cost.busy) == (3.0, None, None, False)
    new = dataclasses.replace(
        cost, latency_p95_ms={1: 2.5}, texts_per_second=99.5, texts=64, memory_bytes=5, others=0.5
    )
    costs.write_cost(path, new)
    assert costs.read_cost(path) == new
