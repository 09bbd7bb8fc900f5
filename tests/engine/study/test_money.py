"""What models cost in money, and what their accuracy would cost by another family."""

import csv
import json
import math
import re
from dataclasses import replace

import pytest
from command_line import penstock
from fabricated_study import fabricate, result
from subtested import as_subtests

from penstock.engine.errors import ConfigError, RunError
from penstock.engine.study.costs import Cost
from penstock.engine.study.families import REFERENCE
from penstock.engine.study.money import Prices, bills, exchanges, training_seconds
from penstock.engine.study.report import write_report
from penstock.engine.study.report_costs import exchange_line
from penstock.engine.study.table import Table
from penstock.engine.study.trials import Pretrained, Taught

pytestmark = pytest.mark.usefixtures("undrawn")

PRICES = Prices(label=0.05, hour=0.4, predictions=1e6)
SPEEDS = {"lstm": 300.0, REFERENCE: 20.0}


def cost(family: str, speed: float | None) -> Cost:
    return Cost(family, 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 9, 32: 9}, "CPU", 2, texts_per_second=speed)


def table(sizes=(500, 2000, 8000)) -> Table:
    return Table([result(family, size, seed) for family in SPEEDS for size in sizes for seed in range(2)])


COSTS = {family: cost(family, speed) for family, speed in SPEEDS.items()}


def test_a_bill_is_labels_training_and_predictions():
    for bill in bills(table(), COSTS, PRICES):
        seconds = bill.size / {"lstm": 900, REFERENCE: 40}[bill.family]
        assert bill.labels == pytest.approx(0.05 * bill.size)
        assert bill.training == pytest.approx(0.4 * seconds / 3600)
        assert bill.predictions == pytest.approx(0.4 * 1e6 / SPEEDS[bill.family] / 3600)
        assert bill.total == bill.labels + bill.training + bill.predictions


@as_subtests("jobs, share", [(None, 1.0), (1, 1.0), (2, 0.5), (4, 0.25)])
def test_trials_side_by_side_share_the_machines_hours(jobs, share):
    """The pretraining had it to itself."""
    before = Pretrained(100, 1000, 60.0, None)
    made = [replace(result("lstm", 500, seed), jobs=jobs, pretrained=before) for seed in range(2)]
    assert training_seconds(Table(made), "lstm", 500) == pytest.approx(60 + share * 500 / 900)


@as_subtests("jobs, teacher_jobs, share", [(4, 1, 1.0), (1, 2, 0.5), (4, None, 0.25)])
def test_a_teachers_time_is_shared_as_it_was_then(jobs, teacher_jobs, share):
    taught = Taught(1000, 0, 1000.0, None, 100.0, 90.0, 0.0, teacher_jobs)
    made = replace(result("lstm", 500, 0), train_seconds=50.0, jobs=jobs, taught=taught)
    assert made.machine_seconds == pytest.approx(share * 1000 + 150 / jobs)


def test_training_between_two_sizes_follows_a_power_law():
    made = table()
    assert training_seconds(made, "lstm", 2000) == pytest.approx(2000 / 900)
    assert training_seconds(made, "lstm", 1000) == pytest.approx(1000 / 900), "it is linear in the examples"
    assert training_seconds(made, "lstm", 8000) == pytest.approx(8000 / 900)


@as_subtests(
    "needed, costs, said",
    [
        ((6000.0, 5000.0, 7000.0), COSTS, r"needs about 6,000 labels for it, 300 \(95% interval 250 to 350\); below"),
        ((6000.0, 0, math.inf), COSTS, r"\(95% interval less than 25\.37 to more than 400\)"),
        ((6000.0, None, None), COSTS, r"needs about 6,000 labels for it, 300; below"),
        ((math.inf, 7000.0, math.inf), COSTS, r"does not reach that with 8,000 labels, for 400\."),
        ((0, 0, 0), COSTS, r"needs fewer than 500 labels for it, less than \d+"),
        ((6000.0, 5000.0, 7000.0), {}, r"needs about 6,000 labels for it, an unknown sum"),
    ],
)
def test_what_the_encoders_accuracy_costs_by_another_family(needed, costs, said):
    (found,) = exchanges(table(), costs, PRICES, {"lstm": {2000: needed}})
    line = exchange_line(found)
    assert line.startswith("A BiLSTM from scratch ")
    assert re.search(said, line), line


def test_at_the_price_between_both_cost_the_same():
    prices = Prices(label=0.0, hour=0.4, predictions=1e6)
    (found,) = exchanges(table(), COSTS, prices, {"lstm": {2000: (6000.0, None, None)}})
    assert found.even_at > 0
    at = Prices(found.even_at, 0.4, 1e6)
    (there,) = exchanges(table(), COSTS, at, {"lstm": {2000: (6000.0, None, None)}})
    assert there.encoder.total == pytest.approx(there.bill.total)
    (fewer,) = exchanges(table(), COSTS, prices, {"lstm": {2000: (1500.0, None, None)}})
    assert fewer.even_at is None, "fewer labels and cheaper hours: cheaper at any price"


@as_subtests(
    "given, said",
    [
        ((-1.0, None, None), "--price-label must be a number, 0 at least"),
        ((None, math.nan, None), "--price-hour must be a number"),
        ((None, 0.4, math.inf), "--predictions must be a number"),
        ((0.05, None, 1e6), "--predictions: what a prediction costs follows from --price-hour"),
    ],
)
def test_prices_that_make_no_sense(given, said):
    with pytest.raises(ConfigError, match=said):
        Prices.of(*given)


def test_no_price_no_section():
    assert Prices.of(None, None, None) is None
    assert Prices.in_study({}) is None


@pytest.mark.slow
def test_prices_are_kept_and_change_nothing_else(tmp_path):
    folder = fabricate(tmp_path / "study")
    before = json.loads((folder / "study.json").read_text())
    write_report(folder)
    assert "## In money" not in (folder / "report.md").read_text()
    assert not (folder / "money.csv").exists()
    shown = penstock("report", str(folder), "--price-label", "0.05", "--price-hour", "0.4")
    assert shown.returncode == 0, shown.stderr
    assert "The encoder's 8,000 labels reach" in " ".join(shown.stdout.split())
    after = json.loads((folder / "study.json").read_text())
    assert after.pop("prices") == {"label": 0.05, "hour": 0.4, "predictions": 0.0}
    assert after | {"crc32": None} == before | {"crc32": None}
    write_report(folder)
    page = (folder / "report.md").read_text()
    assert "At 0.05 a label, 0.4 an hour of this machine" in page
    lines = list(csv.DictReader((folder / "money.csv").open()))
    line = next(own for own in lines if (own["family"], own["size"]) == ("lstm", "2000"))
    assert float(line["labels"]) == 100.0
    document = json.loads((folder / "report.json").read_text())
    assert document["prices"]["label"] == 0.05
    assert {own["family"] for own in document["exchanges"]} == {"lstm", "lstm-embeddings"}


@as_subtests(
    "given, expected",
    [
        ((None, None, None), None),
        ((0.06, None, None), Prices(0.06, 0.4, 1e6)),
        ((None, 0.5, None), Prices(0.05, 0.5, 1e6)),
        ((None, None, 2e6), Prices(0.05, 0.4, 2e6)),
        ((None, None, 0.0), Prices(0.05, 0.4, 0.0)),
        ((0.0, 0.5, 0.0), Prices(0.0, 0.5, 0.0)),
    ],
)
def test_prices_that_are_not_given_are_those_that_were(given, expected, tmp_path):
    fabricate(tmp_path / "study")
    PRICES.keep(tmp_path / "study")
    assert Prices.of(*given, tmp_path / "study") == expected


@as_subtests(
    "given, said",
    [
        ((None, 0.0, None), "--price-hour 0: the 1,000,000 predictions that were given before .* --predictions 0 too"),
        ((None, 0.0, 2e6), "--predictions: .* follows from --price-hour: give one above 0 too"),
    ],
)
def test_predictions_without_a_price(given, said, tmp_path):
    fabricate(tmp_path / "study")
    PRICES.keep(tmp_path / "study")
    with pytest.raises(ConfigError, match=said):
        Prices.of(*given, tmp_path / "study")


def test_a_wrong_price_is_one_line(tmp_path):
    shown = penstock("report", str(tmp_path), "--price-label", "-1")
    assert shown.returncode != 0
    assert "--price-label must be a number, 0 at least, got -1.0" in shown.stderr
    assert "Traceback" not in shown.stderr


@as_subtests("kept", [{"label": -1}, {"label": "0.05"}, {"lable": 0.05}, {"hour": True}, [1], "free"])
def test_damaged_prices_are_one_line(kept):
    with pytest.raises(RunError, match=r"study\.json is damaged: .*give the prices again") as error:
        Prices.in_study({"prices": kept})
    assert "\n" not in str(error.value)


def test_prices_given_again_replace_damaged_ones(tmp_path):
    folder = fabricate(tmp_path / "study")
    study = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**study, "prices": {"lable": 1}}))
    Prices(0.05).keep(folder)
    assert Prices.in_study(json.loads((folder / "study.json").read_text())) == Prices(0.05)
