"""Figures over seeds and test rows, from the predictions that trials keep."""

import csv
import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fabricated_study import no_cost, result, stand_in, with_predictions
from subtested import as_subtests

from penstock.engine.data.clusters import cluster_file, read_cluster_file
from penstock.engine.data.prepare import prepare
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.errors import RunError, SourceError, StoreError
from penstock.engine.statistics.clusters import Clusters
from penstock.engine.statistics.mcnemar import holm, mcnemar
from penstock.engine.statistics.resample import Series, draw
from penstock.engine.study.break_even import break_even, equivalent_size
from penstock.engine.study.findings import Findings
from penstock.engine.study.intervals import t_interval
from penstock.engine.study.paired import Paired, macro_f1_scores
from penstock.engine.study.predictions import PredictionsRecorder, read_predictions
from penstock.engine.study.report import break_even_lines, write_report
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.study.table import Table
from penstock.engine.study.trials import write_result

ACCURACIES = {
    "lstm": {100: 0.50, 1000: 0.70, 10000: 0.80},
    "encoder": {100: 0.75, 1000: 0.79, 10000: 0.802},
}


pytestmark = pytest.mark.usefixtures("undrawn")


def fabricate(folder: Path, accuracies=ACCURACIES, seeds=lambda size: 3, rows=1000, old=()) -> Path:
    """A study whose trials have kept predictions, but for those named in `old`."""
    (folder / "trials").mkdir(parents=True)
    (folder / "costs").mkdir()
    names = []
    for family, own in accuracies.items():
        for size, accuracy in own.items():
            for seed in range(seeds(size)):
                made = dataclasses.replace(result(family, size, seed), accuracy=accuracy, evaluation=None)
                if made.trial.name not in old:
                    made = with_predictions(folder / "trials", made, rows, accuracy)
                write_result(folder / "trials", made)
                names.append(made.trial.name)
    identity = {"train": ["a.csv"], "test": ["b.csv"], "encoder": "some/encoder", "max_length": 256}
    document = {"format": 1, "identity": identity, "trials": names, "labels": ["bad", "good", "rare"]}
    (folder / "study.json").write_text(json.dumps(document))
    return folder


def right_of(folder: Path, findings: Findings, family: str, size: int) -> np.ndarray:
    trials = findings.table.trials(family, size)
    return np.stack([read_predictions(folder / "trials", trial.predictions).right for trial in trials]).astype(float)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_figures_are_those_of_the_kept_predictions(tmp_path):
    folder = fabricate(tmp_path / "study")
    findings = write_report(folder)
    single = Clusters.single(1000)
    gaps, p_values, exact = {}, [], []
    for size in (100, 1000, 10000):
        encoder, own = (right_of(folder, findings, family, size) for family in ("encoder", "lstm"))
        gaps["lstm", size] = Series(encoder - own, size)
        exact.append(mcnemar(encoder > 0, own > 0))
    drawn = draw(gaps, single, "difference")
    for key, test in zip(gaps, exact, strict=True):
        size, point = key[1], findings.table.get(*key)
        assert (point.gap.mean, (point.gap.low, point.gap.high)) == (drawn[key].mean, drawn[key].interval)
        assert point.accuracy.mean == pytest.approx(right_of(folder, findings, "lstm", size).mean())
        assert point.accuracy.low < point.accuracy.mean < point.accuracy.high
        assert point.test.pairs == test
        p_values.append(drawn[key].p_value())
    lines = [line for line in rows(folder / "gap.csv") if line["family"] == "lstm"]
    assert [float(line["p_value"]) for line in lines] == p_values
    assert [float(line["p_adjusted"]) for line in lines] == holm(p_values)
    assert [float(line["mcnemar_p_adjusted"]) for line in lines] == holm([test.p_value for test in exact])
    assert [int(line["only_encoder_right"]) for line in lines] == [test.first for test in exact]
    assert {(line["test_rows"], line["test_clusters"], line["pairs"]) for line in lines} == {("1000", "1000", "3000")}
    page = (folder / "report.md").read_text()
    assert "over seeds and test rows" in page
    assert re.search(r"\| BiLSTM from scratch, 100 \| \+2\d\.\d \| \+\d+\.\d to \+\d+\.\d \| ≤ 0\.002 \| 3 \|", page)


def test_one_seed_has_an_interval_and_the_report_says_what_it_leaves_out(tmp_path):
    folder = fabricate(tmp_path / "study", seeds=lambda size: 1 if size == 10000 else 2)
    findings = write_report(folder)
    assert all(line["low"] and line["high"] for line in rows(folder / "accuracy.csv") + rows(folder / "gap.csv"))
    wilson = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert findings.table.get("lstm", 10000).accuracy.half_width > 1.2 * wilson
    assert findings.break_evens["lstm"].reliable is not None
    page = (folder / "report.md").read_text()
    assert "From one seed: BiLSTM from scratch at 10,000; fine-tuned encoder at 10,000. How much others would" in page
    assert "(where there is one seed, how seeds differ is taken from others)" in page
    assert "over test rows alone" not in page


def test_one_seed_everywhere_tells_nothing_of_others(tmp_path):
    folder = fabricate(tmp_path / "study", seeds=lambda size: 1)
    findings = write_report(folder)
    wilson = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert findings.table.get("lstm", 10000).accuracy.half_width == pytest.approx(wilson, rel=0.1)
    found = findings.break_evens["lstm"]
    assert (found.reliable, found.of_rows) == (None, True)
    assert "reliably" not in " ".join(break_even_lines(findings))
    assert ("over test rows alone where there is one seed" in str(found)) == ("95% interval" in str(found))
    page = (folder / "report.md").read_text()
    assert "Their intervals are over test rows alone and leave out how much another subset" in page


def test_few_rows_of_one_seed_decide_no_more_than_the_exact_test(tmp_path):
    """Four rows that only the encoder has right (p = 0.12)."""
    random, results = np.random.default_rng(0), []
    right = random.random(200) < 0.7
    for family, wrong in (("encoder", 0), ("lstm", 4)):
        own = right.copy()
        own[np.flatnonzero(right)[:wrong]] = False
        recorder = PredictionsRecorder(np.arange(200), 2)
        recorder.add(torch.arange(200), torch.ones(200, dtype=torch.long), torch.from_numpy(np.eye(2)[own.astype(int)]))
        path = tmp_path / f"{family}-100-0.parquet"
        about = {"test": "0" * 64, "max_test": None, "test_rows": 200, "label_names": ["a", "b"]}
        made = result("encoder", 100, 0)
        trial = dataclasses.replace(made.trial, family=family)
        entry = recorder.write(path, **about)
        results.append(dataclasses.replace(made, trial=trial, accuracy=float(own.mean()), predictions=entry))
    paired = Paired.of(tmp_path, results)
    assert paired.tests["lstm", 100].pairs.p_value == paired.tests["lstm", 100].p_value == 0.125
    gap = Table(results, paired).get("lstm", 100).gap
    assert (gap.mean, gap.low) == (0.02, 0.0)


@pytest.mark.parametrize("kept", [True, False])
def test_no_interval_leaves_what_is_possible(tmp_path, kept):
    """Few rows, two seeds, and accuracies at both ends."""
    ends = {"lstm": {10: 0.01, 100: 0.4, 1000: 0.97}, "encoder": {10: 0.99, 100: 0.5, 1000: 0.999}}
    names = [f"{family}-{size}-{seed}" for family, own in ends.items() for size in own for seed in (0, 1)]
    folder = fabricate(tmp_path / "study", ends, lambda size: 2, 25, () if kept else names)
    if not kept:
        for number, path in enumerate(sorted((folder / "trials").iterdir())):
            document = json.loads(path.read_text())
            document["accuracy"] = (
                1.0 if document["accuracy"] > 0.99 else document["accuracy"] * (0.2 + number % 2 * 0.8)
            )
            del document["crc32"]  # as whoever edits the file on purpose
            path.write_text(json.dumps(document))
    write_report(folder)
    for line in rows(folder / "accuracy.csv"):
        assert 0 <= float(line["low"]) <= float(line["mean"]) <= float(line["high"]) <= 1
    for line in rows(folder / "gap.csv"):
        assert -1 <= float(line["low"]) <= float(line["mean"]) <= float(line["high"]) <= 1


@as_subtests("mean, half", [(0.216, 0.375), (0.5, 2.0), (0.99, 0.02), (0.0, 0.1), (1.0, 0.1), (0.6, 0)])
def test_intervals_over_seeds_alone_stay_within_the_range(mean, half):
    estimate = dataclasses.replace(t_interval([mean, mean]), low=mean - half, high=mean + half)
    found = estimate.within(0, 1)
    assert 0 <= found.low <= mean + 1e-12
    assert mean - 1e-12 <= found.high <= 1
    narrow = dataclasses.replace(estimate, low=mean - 1e-4, high=mean + 1e-4).within(-1, 1)
    assert narrow.half_width == pytest.approx(1e-4, rel=0.6)


# Of the issue: two seeds up to 300 examples, one from there on.
EXAMPLE = {100: {0: 0.05, 1: 0.38}, 300: {0: 0.25}, 1000: {0: 0.20}, 3000: {0: 0.174}}


@pytest.mark.parametrize(
    "gaps",
    [
        EXAMPLE,
        EXAMPLE | {3000: {0: 0.1738, 1: 0.1742}},
        EXAMPLE | {300: {0: -0.1, 1: 0.6}, 3000: {0: 0.17, 1: 0.178, 2: 0.174}},
    ],
)
def test_a_range_that_the_gaps_rule_out_is_not_given(gaps):
    found = break_even(gaps)
    assert found.size is None
    # two seeds at one size do not tell how the others' differ
    known = None if gaps is EXAMPLE else math.inf
    assert (found.low, found.high, found.reliable) == (known, known, known)
    assert str(found) == "not reached within the sizes measured (up to 3,000)"


@as_subtests("seed", range(20))
def test_over_seeds_alone_no_range_contradicts_a_sizes_own_interval(seed):
    random = np.random.default_rng(seed)
    sizes = [100, 300, 1000, 3000]
    gaps = {
        size: dict(
            enumerate(random.normal(random.normal(0.02, 0.05), random.choice([0.001, 0.05]), random.integers(2, 4)))
        )
        for size in sizes
    }
    found = break_even(gaps)
    intervals = [t_interval(list(gaps[size].values())) for size in sizes]
    for place, interval in enumerate(intervals):
        if interval.low >= 0.01:
            assert found.low >= sizes[place]
        if all(own.high < 0.01 for own in intervals[place:]):
            assert found.high <= sizes[place]
    assert found.low <= (math.inf if found.size is None else found.size) <= found.high


def test_the_issues_example_with_predictions(tmp_path):
    accuracies = {
        "lstm": {100: 0.4, 300: 0.6, 1000: 0.7, 3000: 0.75},
        "encoder": {100: 0.6, 300: 0.85, 1000: 0.9, 3000: 0.924},
    }
    folder = fabricate(tmp_path / "study", accuracies, lambda size: 2 if size < 300 else 1)
    findings = write_report(folder)
    assert findings.break_evens["lstm"].low == math.inf
    assert "not reached within the sizes measured (up to 3,000);" in break_even_lines(findings)[0]
    assert "95% interval" not in break_even_lines(findings)[0].split(". At")[0]


def test_both_break_evens_are_told(tmp_path):
    accuracies = {"lstm": {100: 0.5, 1000: 0.75, 10000: 0.87}, "encoder": {100: 0.75, 1000: 0.80, 10000: 0.8}}
    folder = fabricate(tmp_path / "study", accuracies, rows=4000)
    findings = write_report(folder)
    found = findings.break_evens["lstm"]
    assert 1000 < found.low <= found.size <= found.reliable <= found.high < 10000
    assert re.search(
        r"about [\d,]+ examples, 95% interval [\d,]+ to [\d,]+; reliably \(in 95% of draws\) from", str(found)
    )
    (line,) = rows(folder / "break_even.csv")
    assert float(line["reliable"]) == found.reliable
    below = findings.table.paired.gaps
    sizes = [100, 1000, 10000]
    gaps = np.stack([below["lstm", size].draws for size in sizes], 1)
    at = np.interp(np.log(found.reliable), np.log(sizes), np.arange(3))
    share = at - 1
    interpolated = gaps[:, 1] * (1 - share) + gaps[:, 2] * share
    assert (interpolated < 0.01 + 1e-9).mean() == pytest.approx(0.95, abs=0.01)
    size, low, high = findings.equivalents["lstm"][1000]
    assert low < size < high
    assert size == pytest.approx(found.size, rel=0.5)


def test_reached_on_average_but_not_reliably(tmp_path):
    folder = fabricate(tmp_path / "study", rows=300)
    found = Findings.of(folder).break_evens["lstm"]
    if found.size is None:  # by the luck of the rows: then neither
        assert found.reliable == math.inf
    draws = {size: Findings.of(folder).table.paired.gaps["lstm", size] for size in (100, 1000, 10000)}
    shifted = {size: dataclasses.replace(own, draws=own.draws - (own.mean - 0.005 if size == 10000 else 0))
               for size, own in draws.items()}  # fmt: skip
    gaps = {size: {0: own.mean} for size, own in draws.items()} | {10000: {0: 0.005}}
    found = break_even(gaps, drawn=shifted)
    assert found.size > 1000
    assert (found.high, found.reliable) == (math.inf, math.inf)
    assert "reliably (in 95% of draws) not within the sizes measured" in str(found)


@pytest.mark.slow
def test_trials_without_predictions_stay_valid_and_are_told(tmp_path):
    old = [f"lstm-{size}-{seed}" for size in (100, 1000) for seed in range(3)]
    folder = fabricate(tmp_path / "study", old=old)
    findings = write_report(folder)
    kept, lacking = findings.table.get("lstm", 10000), findings.table.get("lstm", 100)
    assert kept.accuracy.rows
    assert not lacking.accuracy.rows
    assert lacking.test is None
    page = (folder / "report.md").read_text()
    assert "6 trials are of an earlier penstock and kept no predictions" in page
    assert "BiLSTM from scratch at 100, 1,000 are over seeds alone" in page


def test_predictions_of_other_rows_are_refused(tmp_path):
    folder = fabricate(tmp_path / "study")
    write_result(folder / "trials", with_predictions(folder / "trials", result("lstm", 100, 2), 999))
    with pytest.raises(RunError, match=r"lstm-100-2\.parquet: its predictions are of other test rows than those of"):
        write_report(folder)


def test_a_report_of_damaged_predictions_is_refused(tmp_path):
    folder = fabricate(tmp_path / "study")
    (folder / "trials" / "encoder-100-0.parquet").unlink()
    with pytest.raises(RunError, match=r"encoder-100-0\.parquet: the trial's predictions are missing; remove"):
        write_report(folder)


def test_macro_f1_moves_as_a_bootstraps_does():
    random = np.random.default_rng(0)
    truth = random.choice(5, 2000, p=[0.5, 0.3, 0.1, 0.1, 0])  # the last class occurs neither here nor there
    labels = np.where(random.random(2000) < 0.7, truth, random.choice(4, 2000))

    def macro_f1(truth, labels):
        hits = np.bincount(truth[truth == labels], minlength=5)
        sums = np.bincount(truth, minlength=5) + np.bincount(labels, minlength=5)
        return (2 * hits[sums > 0] / sums[sums > 0]).mean()

    scores = macro_f1_scores(truth, labels, 5)
    assert scores.mean() == pytest.approx(macro_f1(truth, labels))
    samples = random.integers(2000, size=(2000, 2000))
    exact = [macro_f1(truth[sample], labels[sample]) for sample in samples]
    found = draw({"f1": Series(scores[None], 1)}, Clusters.single(2000), "share")["f1"]
    assert np.diff(found.interval) == pytest.approx(np.diff(np.quantile(exact, [0.025, 0.975])), rel=0.06)


def trial_with_predictions(task):
    """1,000 fabricated test rows, in blocks of ten alike, so that films matter."""
    return with_predictions(task.predictions.parent, stand_in(task))


@pytest.fixture(scope="module")
def clustered(minilm, tmp_path_factory) -> StudySettings:
    folder = tmp_path_factory.mktemp("sources")
    for name, seed, count in (("train", 0, 120), ("test", 1, 60)):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["film", "text", "label", "empty"])
            for number, (text, label) in enumerate(generate_reviews(count, seed)):
                writer.writerow([f"film {number * 7 % 13}", text, label, ""])
    return StudySettings(
        train=(str(folder / "train.csv"),),
        test=(str(folder / "test.csv"),),
        encoder=minilm,
        sizes=parse_sizes("50"),
        seeds=parse_seeds("1"),
        max_sizes={},
        families=("lstm",),
        cluster="film",
    )


def run(settings, out, run_trial=stand_in):
    return run_study(settings, out, progress=False, run_trial=run_trial, measure=no_cost)


@pytest.mark.slow
def test_the_cluster_column_travels_to_the_report(clustered, tmp_path):
    from penstock.engine.data.store import Store

    run(clustered, tmp_path / "study")
    test = Store.open(tmp_path / "study" / "data" / "test")
    kept = read_cluster_file(cluster_file(test.path), test.fingerprint)
    column, codes = kept.column, kept.keys
    assert column == "film"
    films = [f"film {number * 7 % 13}" for number in range(60)]
    assert len(set(zip(films, codes.tolist(), strict=True))) == len(set(films)) == 13
    assert json.loads((tmp_path / "study" / "study.json").read_text())["cluster"] == "film"
    run(dataclasses.replace(clustered, cluster=None), tmp_path / "study")  # the same study: no trial depends on it
    assert json.loads((tmp_path / "study" / "study.json").read_text())["cluster"] is None
    # a store with its clusters beside it will do; a bare one will not
    data = tmp_path / "study" / "data"
    given = dataclasses.replace(clustered, train=(str(data / "train"),), test=(str(data / "test"),))
    run(given, tmp_path / "given")
    assert (tmp_path / "given" / "data" / "test.clusters.parquet").is_file()
    bare = prepare(clustered.test[0], tmp_path / "bare", like=data / "train", progress=False)
    for settings, message in (
        (dataclasses.replace(given, test=(str(bare.path),)), "a store keeps no column 'film'.* give the source"),
        (dataclasses.replace(given, cluster="director"), "has the clusters of column 'film', not 'director'"),
    ):
        with pytest.raises(StoreError, match=message):
            run(settings, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "message"), [("flim", "no column 'flim'"), ("empty", r"line 2: column 'empty' is empty")]
)
def test_a_column_that_cannot_be_used_is_one_line(clustered, tmp_path, column, message):
    with pytest.raises(SourceError, match=message) as raised:
        run(dataclasses.replace(clustered, cluster=column), tmp_path / "study")
    assert len(str(raised.value).splitlines()) == 1


def test_clusters_are_resampled_whole(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = fabricate(tmp_path / "study")
    alone = Findings.of(folder).table.get("encoder", 1000).accuracy
    truth_and_luck = read_predictions(
        folder / "trials", Findings.of(folder).table.trials("encoder", 1000)[0].predictions
    ).right
    codes = np.empty(1000, np.int32)  # rows that are right together, and wrong together
    codes[np.argsort(truth_and_luck, kind="stable")] = np.arange(1000) // 20
    (folder / "data").mkdir()
    metadata = {"penstock.clusters": "1", "penstock.column": "film", "penstock.store": "0" * 64}
    table = pa.table({"cluster": codes}).replace_schema_metadata(metadata)
    pq.write_table(table, folder / "data" / "test.clusters.parquet")
    study = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(study | {"cluster": "film"}))
    findings = write_report(folder)
    together = findings.table.get("encoder", 1000).accuracy
    assert together.mean == alone.mean
    assert together.half_width > 2 * alone.half_width
    assert (findings.table.paired.rows, findings.table.paired.clusters) == (1000, 50)
    page = (folder / "report.md").read_text()
    assert "50 groups of test rows with the same 'film', 1,000 rows in all" in page
    pq.write_table(
        table.replace_schema_metadata(metadata | {"penstock.store": "1" * 64}),
        folder / "data" / "test.clusters.parquet",
    )
    with pytest.raises(StoreError, match="of another store than the test data"):
        write_report(folder)


def test_equivalents_from_draws_agree_with_the_figures(tmp_path):
    folder = fabricate(tmp_path / "study", rows=4000)
    findings = Findings.of(folder)
    accuracies = {point.size: point.accuracies for point in findings.table.points("lstm")}
    for size, (needed, low, high) in findings.equivalents["lstm"].items():
        target = findings.table.get("encoder", size).accuracies
        assert needed == equivalent_size(accuracies, target)[0]
        assert low <= needed <= high
