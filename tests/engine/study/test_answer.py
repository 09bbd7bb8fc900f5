"""The sentences that a report begins with, for every way that a study can come out."""

import itertools
import math
from dataclasses import replace

import pytest
from fabricated_study import result
from subtested import as_subtests

from penstock.engine.statistics.mcnemar import Discordant, rows_needed
from penstock.engine.statistics.verdict import kind_of
from penstock.engine.study.answer import Contest, answer, settling_rows
from penstock.engine.study.break_even import BreakEven, rounded
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.table import Point, Table

NOT_REACHED = BreakEven(None, math.inf, math.inf, 500, 8000, reliable=math.inf)
REACHED = BreakEven(3200.0, 2000.0, 5100.0, 500, 8000, reliable=4900.0)
AT_ONCE = BreakEven(0.0, 0.0, 600.0, 500, 8000, reliable=0.0)
BASE = Contest(
    encoder="a fine-tuned MiniLM",
    rival="linear",
    size=8000,
    accuracies=(0.569, 0.55),
    gap=Estimate(0.019, 0.009, 0.029, 3, rows=True),
    pairs=Discordant(2000, 1700, 12000, 0.001),
    rows=4000,
    break_even=NOT_REACHED,
    needed={"linear": (12300.0, 9100.0, 20400.0), "lstm": (22000.0, 9500.0, math.inf)},
    largest={"linear": 32000, "lstm": 200000},
)
HALF = 1.96 * math.sqrt(((2000 + 1700) / 12000 - 0.007**2) / 4000)  # of one pair of models


def gap(mean: float, low: float | None, high: float | None, seeds: int = 3) -> Estimate:
    return Estimate(mean, low, high, seeds, rows=low is not None)


def case(mean: float, low: float | None, high: float | None, seeds: int = 3, **changed) -> Contest:
    own = 0.55 + mean
    return replace(BASE, accuracies=(own, 0.55), gap=gap(mean, low, high, seeds), **changed)


@as_subtests(
    "contest, kind, sentences",
    [
        pytest.param(
            BASE,
            "pays",
            [
                "With 8,000 labels fine-tuning still pays: 56.9% for a fine-tuned MiniLM against 55.0% for a linear "
                "model (+1.9 points, 95% interval +0.9 to +2.9).",
                "A linear model is as accurate as a fine-tuned MiniLM is with 8,000 from about 12,000 labels on (95% "
                "interval 9,100 to 20,000).",
            ],
            id="pays",
        ),
        pytest.param(
            case(0.019, 0.009, 0.029, needed={"linear": (math.inf, 15000.0, math.inf)}),
            "pays",
            ["No other family tried, with up to 32,000 labels, is as accurate as a fine-tuned MiniLM is with 8,000."],
            id="not-reached",
        ),
        pytest.param(
            case(0.019, 0.009, 0.029, needed=dict.fromkeys(("bag", "linear", "lstm"), (math.inf, None, None)),
                 largest={"bag": 32000, "linear": 32000, "lstm": 8000}),
            "pays",
            ["No other family tried is as accurate as a fine-tuned MiniLM is with 8,000: a BiLSTM from scratch with up "
             "to 8,000; a bag of n-grams, a linear model with up to 32,000."],
            id="not-reached-by-any-with-what-it-had",
        ),
        pytest.param(
            case(0.019, 0.009, 0.029, needed={"linear": (math.inf, None, None)}, taught=True),
            "pays",
            ["But for those that it teaches, no other family tried, with up to 32,000 labels, is as accurate as"],
            id="not-reached-but-by-students",
        ),
        pytest.param(
            case(0.003, 0.0003, 0.0057),
            "pays little",
            ["still ahead, but by less than one point", "(+0.3 points, 95% interval +0.03 to +0.57)"],
            id="an-end-near-nothing",
        ),
        pytest.param(
            case(0.007, 0.0044, 0.00996),
            "pays little",
            ["still ahead, but by less than one point", "(+0.7 points, 95% interval +0.440 to +0.996)"],
            id="an-end-near-a-point",
        ),
        pytest.param(
            replace(case(0.019, 0.005, 0.033, 1), gap=replace(gap(0.019, 0.005, 0.033, 1), borrowed=True)),
            "pays",
            ["This is one seed: how much others would differ is taken from sizes and families that have several."],
            id="one-seed-of-a-study-with-more",
        ),
        pytest.param(
            case(0.019, 0.009, 0.029, needed={"linear": (30000.0, 0, math.inf)}),
            "pays",
            ["from about 30,000 labels on (95% interval fewer to more than 32,000)."],
            id="wide",
        ),
        pytest.param(
            case(0.004, 0.001, 0.007),
            "pays little",
            ["fine-tuning is still ahead, but by less than one point: 55.4% for", "from about 12,000 labels on"],
            id="pays-little",
        ),
        pytest.param(
            case(-0.003, -0.012, 0.006, break_even=REACHED),
            "no longer pays",
            [
                "With 8,000 labels fine-tuning no longer pays: 54.7% for a fine-tuned MiniLM against 55.0% for a "
                "linear model (−0.3 points, 95% interval −1.2 to +0.6).",
                "From about 3,200 labels on the lead over a linear model is below one point, reliably (in 95% of "
                "draws) from about 4,900.",
            ],
            id="no-worse",
        ),
        pytest.param(
            case(-0.03, -0.04, -0.02, break_even=AT_ONCE),
            "no longer pays",
            [
                "no longer pays",
                "On average the lead over a linear model is below one point at every size measured, from 500 labels "
                "on, reliably (in 95% of draws) at all of these too.",
            ],
            id="rival-better",
        ),
        pytest.param(
            case(-0.003, -0.012, 0.006, break_even=replace(AT_ONCE, reliable=1200.0)),
            "no longer pays",
            ["at every size measured, from 500 labels on, reliably (in 95% of draws) from about 1,200."],
            id="on-average-at-once",
        ),
        pytest.param(
            case(-0.003, -0.012, 0.006, break_even=replace(REACHED, reliable=math.inf)),
            "no longer pays",
            ["From about 3,200 labels on", "one point, reliably (in 95% of draws) not within the sizes measured."],
            id="not-reliably",
        ),
        pytest.param(
            case(-0.003, -0.012, 0.006, break_even=replace(AT_ONCE, reliable=None)),
            "no longer pays",
            ["below one point at every size measured, from 500 labels on."],
            id="nothing-tells-how-reliably",
        ),
        pytest.param(
            case(0.007, -0.013, 0.027),
            "cannot tell",
            ["these 4,000 test rows cannot tell whether fine-tuning still pays", "About 49,000 test rows would."],
            id="too-few-rows",
        ),
        pytest.param(
            case(0.02, -0.013, 0.06, rows=400000),
            "cannot tell",
            ["cannot tell whether fine-tuning still pays", "More seeds would."],
            id="enough-rows",
        ),
        pytest.param(
            case(0.007, -0.053, 0.067),
            "cannot tell",
            ["cannot tell whether fine-tuning still pays", "More seeds would."],
            id="too-few-seeds",
        ),
        pytest.param(
            case(0.007, -0.053, 0.067, groups=40),
            "cannot tell",
            ["cannot tell whether fine-tuning still pays", "More groups of test rows, or more seeds, would."],
            id="in-groups",
        ),
        pytest.param(  # rows alone, four times as wide as of independent ones: each counts for a sixteenth
            case(0.007, 0.007 - 4 * HALF, 0.007 + 4 * HALF, 1, groups=40),
            "cannot tell",
            [f"About {rounded(16 * 40 * settling_rows(0.007, BASE.pairs) / 4000)} groups of test rows would."],
            id="in-groups-one-seed",
        ),
        pytest.param(
            case(0.0, -0.02, 0.02, pairs=Discordant(0, 0, 12000, 1.0)),
            "cannot tell",
            ["More test rows would."],
            id="always-agree",
        ),
        pytest.param(
            case(0.019, None, None, 1),
            "no interval",
            [
                "fine-tuning is ahead, as far as one seed tells",
                "This is one seed: it leaves out what another subset or other initial weights would change.",
            ],
            id="one-seed-without-predictions",
        ),
        pytest.param(
            case(0.019, 0.005, 0.033, 1),
            "pays",
            ["still pays", "This is one seed: the interval is over test rows alone and leaves out what another subset"],
            id="one-seed",
        ),
    ],
)  # fmt: skip
def test_what_the_answer_says(contest, kind, sentences):
    found = contest.answer()
    assert found.kind == kind
    assert (found.size, found.rival) == (8000, "linear")
    text = " ".join(found.sentences)
    for sentence in sentences:
        assert sentence in text
    assert found.sentences[0].startswith("With 8,000 labels ")
    assert all(sentence.endswith(".") for sentence in found.sentences)
    assert not {"nan", "inf"} & set(text.split())


@as_subtests(
    "mean, half",
    itertools.product([-0.03, -0.01, -0.002, 0.0, 0.004, 0.0099, 0.012, 0.05], [0.001, 0.004, 0.012, 0.08]),
)
def test_the_kind_follows_from_the_interval_alone(mean, half):
    kind = case(mean, mean - half, mean + half).kind
    excludes_none, below_a_point = mean - half > 0, mean + half < 0.01
    assert (kind in ("pays", "pays little")) == excludes_none
    assert (kind == "pays little") == (excludes_none and below_a_point)
    if kind == "no longer pays":
        assert mean + half <= 0.01
    if kind == "cannot tell":
        assert mean - half <= 0 < 0.01 < mean + half
    assert (kind == "cannot tell") == (kind_of(-mean - half, -mean + half) == "cannot tell")


@as_subtests("gap", [-0.02, 0.0, 0.002, 0.006, 0.01, 0.03])
def test_rows_that_would_settle_it(gap):
    """Either that the gap is above nothing or that it is below the threshold: the easier of the two."""
    pairs = Discordant(1500, 1500, 12000, 1.0)
    assert settling_rows(gap, pairs) == rows_needed(0.25, max(gap, 0.01 - gap))
    assert settling_rows(gap, None) is None
    assert settling_rows(gap, Discordant(0, 0, 12000, 1.0)) is None, "they agree everywhere"


GRID = {"lstm": (500, 2000, 32000), "lstm-embeddings": (500, 2000), "encoder": (500, 2000)}


def table(families: dict[str, tuple[int, ...]], seeds: int = 3) -> Table:
    return Table(
        [result(name, size, seed) for name, sizes in families.items() for size in sizes for seed in range(seeds)]
    )


def answered(families: dict[str, tuple[int, ...]], seeds: int = 3):
    made = table(families, seeds)
    needed = {name: {2000: (9000.0, 8000.0, 10000.0)} for name in families if name != "encoder"}
    return answer(made, "a fine-tuned BERT", dict.fromkeys(families, NOT_REACHED), needed)


def test_the_rival_is_the_best_at_the_largest_common_size():
    made = table(GRID)
    found = answered(GRID)
    best = min(("lstm", "lstm-embeddings"), key=lambda name: made.get(name, 2000).gap.mean)
    assert (found.kind, found.size, found.rival) == ("pays", 2000, best)
    point = made.get(best, 2000)
    encoder = sum(made.get("encoder", 2000).accuracies.values()) / 3
    assert (
        f"{100 * encoder:.1f}% for a fine-tuned BERT against {100 * point.accuracy.mean:.1f}% for" in found.sentences[0]
    )
    assert (
        "With 32,000, which a fine-tuned BERT was not trained on, a BiLSTM from scratch reaches" in found.sentences[2]
    )


@as_subtests(
    "families, kind, said",
    [
        ({"lstm": (500, 2000)}, "no encoder", "With 2,000 labels a BiLSTM from scratch reaches"),
        ({"lstm": (500,), "lstm-embeddings": (2000,)}, "no encoder", "With 2,000 labels a BiLSTM on pretrained"),
        ({"encoder": (500, 2000)}, "only the encoder", "there is no other family to compare"),
        ({"lstm": (500,), "encoder": (2000,)}, "no common size", "were trained on no common size"),
    ],
)
def test_studies_with_nothing_to_compare(families, kind, said):
    found = answered(families)
    assert found.kind == kind
    assert said in found.sentences[0]
    assert len(found.sentences) == 1


def test_the_most_frequent_class_is_no_rival():
    made = [result("lstm", 500, seed) for seed in range(2)] + [result("encoder", 500, seed) for seed in range(2)]
    line = [replace(one, trial=replace(one.trial, family="majority"), accuracy=0.99) for one in made[:2]]
    found = answer(Table(made + line), "an encoder", {"lstm": NOT_REACHED}, {"lstm": {500: (math.inf, None, None)}})
    assert found.rival == "lstm"


def test_accuracies_are_over_the_seeds_that_both_have():
    """So that they differ by the gap."""
    made = [result("lstm", 500, seed) for seed in range(2)] + [result("encoder", 500, seed) for seed in range(1, 3)]
    found = answer(Table(made), "an encoder", {"lstm": NOT_REACHED}, {"lstm": {500: (math.inf, None, None)}})
    own, theirs = result("encoder", 500, 1).accuracy, result("lstm", 500, 1).accuracy
    assert f"{100 * own:.1f}% for an encoder against {100 * theirs:.1f}%" in found.sentences[0]
    assert found.kind == "no interval"


def test_a_larger_size_without_the_encoder_is_told():
    beyond = Point("lstm", 200000, {0: 0.616}, 0, Estimate(0.616, 0.601, 0.631, 1, rows=True), None, {})
    found = replace(BASE, best_beyond=beyond).answer()
    assert found.sentences[2].startswith("With 200,000, which a fine-tuned MiniLM was not trained on, a BiLSTM from")
    assert found.sentences[2].endswith("reaches 61.6% (60.1 to 63.1).")


def some(*trials: tuple[str, int, int, bool]) -> Table:
    """Trials as (family, size, seed, whether it is done)."""
    made = [result(*own) if done else replace(result(*own), status="diverged", accuracy=None) for *own, done in trials]
    return Table(made)


def answer_of(table: Table):
    needed = {name: {500: (math.inf, None, None)} for name in ("lstm", "lstm-embeddings")}
    return answer(table, "an encoder", dict.fromkeys(needed, NOT_REACHED), needed)


@as_subtests(
    "trials, kind, said, not_said",
    [
        (
            [("lstm", 500, 0, True), ("encoder", 500, 1, True), ("encoder", 500, 0, False)],
            "no common size",
            "An encoder and the other families have no seed of one size that is done by both",
            "trained on no common size",
        ),
        (
            [("lstm", 500, 0, True), ("encoder", 500, 0, False), ("encoder", 2000, 0, True)],
            "no common size",
            "have no seed of one size that is done by both",
            "trained on no common size",
        ),
        (
            [("lstm", 500, 0, False), ("encoder", 500, 0, True)],
            "only the encoder",
            "no trial of a family to compare is done",
            "no other family",
        ),
        (
            [("lstm", 500, 0, True), ("encoder", 500, 0, False)],
            "no encoder",
            "no trial of the fine-tuned encoder is done to measure a gap from",
            "there is no fine-tuned encoder",
        ),
        (
            [(*own, 0, own != ("encoder", 2000)) for own in itertools.product(("lstm", "encoder"), (500, 2000))],
            "no interval",
            "With 2,000, where no trial of an encoder is done, a BiLSTM from scratch reaches",
            "was not trained on",
        ),
        (
            [(name, size, int((name, size) == ("encoder", 2000)), True)
             for name, size in itertools.product(("lstm", "encoder"), (500, 2000))],
            "no interval",
            "With 2,000, where an encoder shares no seed with another family, a BiLSTM from scratch reaches",
            "was not trained on",
        ),
        (
            [(name, 500, seed, (name, seed) != ("lstm", 2)) for name in ("lstm", "encoder") for seed in range(3)],
            "pays",
            ", over the 2 seeds that both have).",
            "no seed",
        ),
        (
            [(name, 500, seed, True) for name in ("lstm", "encoder") for seed in range(3)],
            "pays",
            "With 500 labels fine-tuning still pays",
            "that both have",
        ),
    ],
)  # fmt: skip
def test_what_was_lost_is_not_taken_for_what_was_not_tried(trials, kind, said, not_said):
    found = answer_of(some(*trials))
    text = " ".join(found.sentences)
    assert found.kind == kind, text
    assert said in text, text
    assert not_said not in text, text


def test_a_student_alone_is_no_family_to_compare():
    made = [result("encoder", 500, seed) for seed in range(3)]
    taught = [replace(one, trial=replace(one.trial, family="lstm-distilled")) for one in made[:2]]
    found = answer_of(Table(made + taught))
    assert found.kind == "only the encoder"
    assert "there is no family to compare that does without it" in found.sentences[0]
    assert found.sentences[1].endswith(", over the 2 seeds that both have).")
