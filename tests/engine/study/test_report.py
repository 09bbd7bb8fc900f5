import base64
import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fabricated_study import fabricate, result, with_predictions

from penstock.engine.errors import RunError
from penstock.engine.statistics.mcnemar import Discordant
from penstock.engine.study.classes import class_blocks, class_rows
from penstock.engine.study.costs import read_cost, write_cost
from penstock.engine.study.external import ExternalFigures
from penstock.engine.study.findings import Findings
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.method import _method
from penstock.engine.study.paired import GapTest
from penstock.engine.study.plots import Level, accuracy_axis, frontier, limits
from penstock.engine.study.report import break_even_lines, headline, rich_table, write_report
from penstock.engine.study.report_costs import cost_blocks
from penstock.engine.study.report_external import external_blocks
from penstock.engine.study.report_tables import p_value
from penstock.engine.study.table import Table
from penstock.engine.study.trials import Pretrained, Taught, Trial, TrialResult, read_result, write_result


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A study whose report is written; to be read only."""
    folder = fabricate(tmp_path_factory.mktemp("written") / "study")
    write_report(folder)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_a_result_survives_the_disk(tmp_path):
    made = result("lstm", 500, 1)
    write_result(tmp_path, made)
    assert read_result(tmp_path / "lstm-500-1.json") == made


@pytest.mark.parametrize(("counts", "said"), [((80, 80), "80"), ((64, 4000), "64 to 4,000")])
def test_of_how_many_texts_the_speeds_are(tmp_path, counts, said):
    families = ("lstm", "encoder")
    folder = fabricate(tmp_path / "study", families=families)
    for family, count in zip(families, counts, strict=True):
        path = folder / "costs" / f"{family}.json"
        write_cost(path, replace(read_cost(path), texts=count, texts_per_second=9.0))
    (text,) = (block.text for block in cost_blocks(Findings.of(folder)) if "test texts" in getattr(block, "text", ""))
    assert f"from raw text to label of {said} test texts, decoded" in text


def test_tables_hold_the_figures_of_the_trials(written):
    accuracies = [result("lstm", 2000, seed).accuracy for seed in range(3)]
    gaps = [result("encoder", 2000, seed).accuracy - accuracies[seed] for seed in range(3)]
    mean, gap = 100 * sum(accuracies) / 3, 100 * sum(gaps) / 3
    report = (written / "report.md").read_text()
    assert re.search(rf"\| BiLSTM from scratch \| [^|]+ \| {mean:.1f} ± \d+\.\d \(\+{gap:.1f}\) \|", report)
    single = f"{100 * result('lstm', 100000, 0).accuracy:.1f}"
    assert re.search(rf"\| {single} \|\n", report), "a lone seed has no interval, and no encoder to be compared with"
    assert "| 1.2 / – / – | 8.5 / – / – | – |" in report, "an earlier penstock measured nothing else"
    assert "| 9.0 M | 7.8 M | 36 MB | – |" in report
    assert "some/encoder" in report
    assert "lstm.training.epochs=8" in report

    line = next(row for row in rows(written / "gap.csv") if (row["family"], row["size"]) == ("lstm", "2000"))
    assert float(line["mean"]) == pytest.approx(gap / 100)
    assert float(line["low"]) < gap / 100 < float(line["high"])
    line = next(row for row in rows(written / "accuracy.csv") if (row["family"], row["size"]) == ("lstm", "100000"))
    assert (line["low"], line["high"], line["seeds"]) == ("", "", "1")
    assert len(rows(written / "trials.csv")) == 11 + 10 + 9
    assert float(rows(written / "costs.csv")[0]["latency_ms_batch_32"]) == 8.5
    # the encoder has three sizes, the LSTM from scratch five
    notes = {row["family"]: row["note"] for row in rows(written / "curves.csv")}
    assert "takes 5" in notes["encoder"]
    assert notes["lstm"] == "" or "not pinned" in notes["lstm"]


def test_the_page_is_self_contained(written):
    page = (written / "report.html").read_text()
    assert page.count('<img alt="') == page.count('src="data:image/png;base64,') == 3
    assert page.count('srcset="data:image/png;base64,') == 3, "each also for a phone"
    assert "<script" not in page
    links = re.findall(r'(?:download="([^"]+)" )?href="([^"]+)"', page)
    assert {name for name, _ in links} >= {"trials.csv", "gap.csv", "costs.csv", "report.json"}
    for name, address in links:
        kind, _, content = address.partition(";base64,")
        assert kind in ("data:text/csv", "data:application/json")
        assert base64.b64decode(content) == (written / name).read_bytes()
    linked = set(re.findall(r"\]\(([^)]+)\)", (written / "report.md").read_text()))
    assert linked
    assert all((written / name).is_file() for name in linked)


def test_the_first_thing_is_the_answer_and_a_picture(written):
    page = (written / "report.md").read_text()
    first, picture = page.index("- **With 8,000 labels fine-tuning still pays"), page.index("(accuracy.png)")
    assert first < picture < page.index("\n## ")


def test_the_report_for_programs_has_the_figures_in_full(written):
    text = (written / "report.json").read_text()
    document = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert document["format"] == 1
    assert document["answer"]["kind"] == "pays"
    point = next(own for own in document["points"] if (own["family"], own["size"]) == ("lstm", 2000))
    accuracies = [result("lstm", 2000, seed).accuracy for seed in range(3)]
    assert point["accuracies"] == {str(seed): value for seed, value in enumerate(accuracies)}
    assert point["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 3, rel=1e-12)
    assert document["break_evens"]["lstm"]["size"] == "beyond"
    assert {own["encoder_size"] for own in document["equivalents"]} == {500, 2000, 8000}
    assert document["costs"]["lstm"]["latency_ms"]["1"] == 1.25
    assert [check["code"] for check in document["checks"]] == sorted(check["code"] for check in document["checks"])
    assert document["prices"] is None
    assert document["bills"] == []


def test_plots_stay_within_what_is_possible():
    wide = 37.5  # half of an interval, of the study that asked for this
    assert limits([20, 22], [21 - wide, 21 + wide], 0, 100) == pytest.approx((14.28, 27.72))
    assert limits([97, 99], [98, 103], 0, 100)[1] == 100
    assert limits([0.5, 3], [-1, 4], 0, 100)[0] == 0
    low, high = limits([0, 1, 17.4], [-20, 124], -100, 100)
    assert -21 < low < 0
    assert 17.4 < high < 40


@pytest.mark.parametrize(("level", "drawn"), [(82.0, True), (50.9, False), (99.0, False)])
def test_a_level_far_from_what_was_learnt_is_named_and_does_not_squeeze_it(level, drawn):
    figure, axes = plt.subplots()
    accuracy_axis(axes, [85.7, 89.0], [85.4, 89.3], [Level("most frequent class", level, "#000000", ":", 1.0)])
    low, high = axes.get_ylim()
    (label,) = axes.get_legend_handles_labels()[1]
    plt.close(figure)
    assert label == ("most frequent class" if drawn else f"most frequent class: {level}%")
    assert (low <= level <= high) == drawn
    assert 3.9 < high - low < (11 if drawn else 5)


def test_the_frontier_is_what_nothing_beats():
    points = [(1, 50), (2, 49), (3, 55), (3, 54), (10, 55), (20, 60)]
    assert frontier(points, cheap_is_left=True) == [(1, 50), (3, 55), (20, 60)]
    assert frontier(points, cheap_is_left=False) == [(20, 60)]
    random = np.random.default_rng(0)
    drawn = [tuple(own) for own in random.integers(0, 20, (60, 2)).tolist()]
    for cheap, sign in ((True, 1), (False, -1)):
        kept = frontier(drawn, cheap_is_left=cheap)
        beaten = {
            own for own in drawn for other in drawn
            if other != own and sign * other[0] <= sign * own[0] and other[1] >= own[1]
        }  # fmt: skip
        assert set(kept) == set(drawn) - beaten


def test_each_class_has_its_figures(written):
    page = (written / "report.md").read_text()
    section = page[page.index("## Class by class") :]
    assert re.search(r"\| BiLSTM from scratch, 100,000 \| [\d.]+ \| [\d.]+ \| [\d.]+ \| – \| 5\.0 \| 1 \|", section)
    assert re.search(r"\| rare \| 10 \| 0\.0 \| 0\.0 \| 0\.0 \|", section)
    of_classes = rows(written / "classes.csv")
    assert [row["size"] for row in of_classes] == ["100000"] * 3 + ["32000"] * 3 + ["8000"] * 3
    rare = next(row for row in of_classes if (row["family"], row["name"]) == ("encoder", "rare"))
    assert (rare["precision"], rare["recall"]) == ("", "0.0")
    assert (rare["never_predicted_by"], rare["seeds"]) == ("3", "3")
    assert float(rows(written / "trials.csv")[0]["expected_calibration_error"]) == 0.05


@pytest.mark.parametrize(("seeds", "said"), [((), "1"), ((0,), "0; 1 by 2 of 3 seeds"), ((0, 1, 2), "0")])
def test_a_class_is_never_predicted_where_no_seed_does(seeds, said):
    made = [result("encoder", 500, seed) for seed in range(3)]
    for seed in seeds:
        classes = [one | {"predicted": one["predicted"] or 3} for one in made[seed].evaluation["classes"]]
        made[seed] = replace(made[seed], evaluation=made[seed].evaluation | {"classes": classes})
    table = Table(made)
    rare = class_rows(table)[-1]
    assert (rare.name, rare.never_predicted_by, rare.seeds) == ("rare", 3 - len(seeds), 3)
    assert rare.never_predicted == (not seeds)
    assert class_blocks(table)[2].rows[0][-1] == said


@pytest.mark.parametrize("seeds", [{"lstm": 1, "encoder": 1}, {"lstm": 2, "encoder": 1}, {"lstm": 2, "encoder": 2}])
def test_a_figure_of_one_seed_is_over_test_rows_alone(tmp_path, undrawn, seeds):
    folder = fabricate(tmp_path / "study", families=())
    for family, count in seeds.items():
        for seed in range(count):
            made = replace(result(family, 500, seed), jobs=2)
            write_result(folder / "trials", with_predictions(folder / "trials", made, 200))
    write_report(folder)
    page = (folder / "report.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("Accuracy in %"))
    gap = next(line for line in page.splitlines() if line.startswith("The gap in points"))
    several = set(seeds.values()) - {1}
    assert ("over seeds and test rows" in line) == bool(several)
    assert ("test rows alone" in line) == (1 in seeds.values())
    assert ("over seeds and test rows" in gap) == ("other seeds and" in gap) == (1 not in seeds.values())
    assert ("two-way bootstrap" in page) == bool(several)
    assert "2 trials at a time" in page, "as the trials say, not the last start"
    gaps = [Estimate(0.1, 0.0, 0.2, min(seeds.values()), rows=True)]
    external = ExternalFigures(
        "gpt", "gpt.csv", gaps[0], {500: gaps[0]}, {500: GapTest(Discordant(1, 2, 9, 1), 1, 1, 1)}
    )
    assert ("over seeds and" in external_blocks([external])[1].text) == (1 not in seeds.values())


def test_the_time_that_was_spent_is_in_the_method(tmp_path, undrawn):
    """Lost trials count; what the frozen encoder had read before does not again."""
    folder = fabricate(tmp_path / "study", families=())
    done = replace(result("encoder", 500, 0), wall_seconds=600.0)
    frozen = replace(result("lstm", 500, 0), trial=Trial(500, 0, "frozen"), train_seconds=9e4, wall_seconds=300.0)
    lost = TrialResult(Trial(500, 0, "lstm"), "diverged", error="nan", wall_seconds=900.0)
    before = Pretrained(9, 9, 1200.0, None)
    own = [
        replace(result("lstm", 500, seed), trial=Trial(500, seed, "lstm-pretrained"), wall_seconds=60.0)
        for seed in range(2)
    ]
    for made in (done, frozen, lost, *(replace(one, pretrained=before) for one in own)):
        write_result(folder / "trials", made)
    write_report(folder)
    page = (folder / "report.md").read_text()
    assert "The trials and the pretraining that some begin with took 52 min in all, one after the other." in page
    assert "is of training steps alone; of a baseline, of all of its fit" in page


@pytest.mark.slow
def test_trials_without_class_figures_have_no_section(tmp_path, undrawn):
    """As those of an earlier penstock."""
    folder = fabricate(tmp_path / "study")
    for path in (folder / "trials").iterdir():
        document = json.loads(path.read_text())
        del document["evaluation"], document["crc32"]
        path.write_text(json.dumps(document))
    write_report(folder)
    assert "Class by class" not in (folder / "report.md").read_text()
    assert rows(folder / "classes.csv") == []


@pytest.mark.slow
def test_it_can_be_written_again(written, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "study"))
    write_report(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in written.iterdir() if path.is_file()
    }


def test_diverged_and_failed_trials_are_counted(tmp_path, undrawn):
    lost = {
        "lstm-2000-1": TrialResult(Trial(2000, 1, "lstm"), "diverged", error="loss is nan at step 12"),
        "encoder-8000-0": TrialResult(Trial(8000, 0, "encoder"), "failed", error="MemoryError: "),
    }
    folder = fabricate(tmp_path / "study", lost)
    write_report(folder)
    report = (folder / "report.md").read_text()
    assert "[1 not done]" in report
    assert "PS007 1 trial diverged: lstm-2000-1 (loss is nan at step 12)" in report
    assert "28 trials are done, 2 are not" in report
    assert "lstm-2000-1 diverged (loss is nan at step 12)" in report
    assert "1 trial is still to run" in report, "a failed trial is tried again, a diverged one is not"
    line = next(row for row in rows(folder / "accuracy.csv") if (row["family"], row["size"]) == ("lstm", "2000"))
    assert (line["seeds"], line["not_done"]) == ("2", "1")
    gaps = next(row for row in rows(folder / "gap.csv") if (row["family"], row["size"]) == ("lstm", "8000"))
    assert gaps["seeds"] == "2", "the gap is over the seeds that both have"


def test_a_study_of_one_family_has_no_gap(tmp_path, undrawn):
    folder = fabricate(tmp_path / "study", families=("lstm",))
    findings = write_report(folder)
    assert "there is no fine-tuned encoder to measure a gap from" in headline(findings)[0]
    assert findings.break_evens == {}
    assert "## The gap" not in (folder / "report.md").read_text()
    assert not (folder / "gap.png").exists()


def test_headline_says_whether_break_even_was_reached(tmp_path, undrawn):
    findings = write_report(fabricate(tmp_path / "study"))
    scratch, embeddings = break_even_lines(findings)
    assert "not reached within the sizes measured (up to 8,000)" in scratch
    assert "At 8,000 examples the gap is" in embeddings
    assert len(rich_table(findings).rows) == 3


def test_no_study_and_no_finished_trial(tmp_path):
    with pytest.raises(RunError, match="holds no study"):
        write_report(tmp_path)
    folder = fabricate(tmp_path / "study", families=("lstm",))
    for path in (folder / "trials").iterdir():
        path.unlink()
    with pytest.raises(RunError, match="no trial of this study is done"):
        write_report(folder)
    (folder / "trials" / "lstm-500-0.json").write_text("{}")
    with pytest.raises(RunError, match=r"lstm-500-0\.json: not a trial's result"):
        write_report(folder)


@pytest.mark.parametrize(
    ("value", "at_least", "shown"),
    [(0.0005, True, "< 0.001"), (0.0021, False, "0.002"), (0.0021, True, "≤ 0.003"), (0.2, False, "0.200")],
)
def test_what_draws_can_tell_at_least_is_a_bound(value, at_least, shown):
    assert p_value(value, at_least) == shown


def test_texts_that_were_read_are_counted(written):
    """Not all of the rest, where `distillation.texts` or `--pretrain-tokens` are fewer."""
    findings = Findings.of(written)
    made = [
        replace(result("lstm", size, 0), trial=Trial(size, 0, "lstm-distilled"), taught=Taught(texts, 7, 1, 1, 1, 1))
        for size, texts in ((500, 1000), (2000, 900))
    ]
    made.append(replace(result("lstm", 500, 0), pretrained=Pretrained(1234, 9, 1.0, 1.0)))
    said = " ".join(_method(replace(findings, table=Table(made), plan=None)))
    assert "it read 900 to 1,000 of the other training texts, whose labels nobody saw; 7 that are test texts" in said
    assert "pretrained once on 1,234 of the training texts" in said
    assert "the rest" not in said
