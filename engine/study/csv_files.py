"""The figures behind the report's tables and plots, as CSV files."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from penstock.engine.csv_text import csv_text
from penstock.engine.statistics.learning_curves import PARAMETERS
from penstock.engine.study.classes import FIGURES, ClassRow, class_rows
from penstock.engine.study.costs import BATCH_SIZES
from penstock.engine.study.curves import Curve
from penstock.engine.study.external import ExternalFigures
from penstock.engine.study.findings import Findings
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.needs import Need
from penstock.engine.study.paired import GapTest
from penstock.engine.study.table import Table
from penstock.engine.study.trials import TrialResult

TAUGHT = {  # columns of trials.csv
    "texts": "unlabelled_texts",
    "teacher_seconds": "teacher_seconds",
    "teacher_cpu_seconds": "teacher_cpu_seconds",
    "reading_seconds": "teacher_reading_seconds",
    "reading_cpu_seconds": "teacher_reading_cpu_seconds",
}
PRETRAINED = {
    "texts": "pretraining_texts",
    "tokens": "pretraining_tokens",
    "seconds": "pretraining_seconds",
    "cpu_seconds": "pretraining_cpu_seconds",
}
LATENCIES = ("latency_ms", "latency_p95_ms", "latency_p99_ms")
TESTS = (
    *("p_value", "p_adjusted"),
    *("only_encoder_right", "only_family_right", "pairs", "mcnemar_p_value", "mcnemar_p_adjusted"),
)


def csv_files(findings: Findings) -> dict[str, str]:
    """{name: content} of trials.csv, classes.csv, accuracy.csv, gap.csv, break_even.csv, equivalents.csv, curves.csv,
    needs.csv, costs.csv and, where there are prices, money.csv.

    Accuracies, gaps and errors are shares, times seconds or milliseconds as their names say. What is unknown is
    empty; a size beyond all measured ones is inf, one below them 0. A curve's parameters are named as in
    statistics/learning_curves.py; those that its form has not are empty. The p-values of gap.csv: from the draws
    behind the interval, and McNemar's exact one of the trained models; each also adjusted by Holm over the family's
    sizes.
    """
    table = findings.table
    points = [point for family in table.families for point in table.points(family)]
    measured = [
        field.name
        for field in fields(TrialResult)
        if field.name
        not in ("trial", "evaluation", "made_from", "predictions", "chosen", "notes", "taught", "pretrained")
    ]
    interval = ["mean", "low", "high", "seeds"]
    over = ["test_rows", "test_clusters"]  # that the interval is over; empty where it is over seeds alone
    figures = [
        *("parameters", "embedding_parameters", "bytes_on_disk", "device", "threads"),
        *("texts_per_second", "texts", "memory_bytes", "others"),
    ]
    found = {
        "trials.csv": _csv(
            [
                "family",
                "size",
                "seed",
                *measured,
                *(name for name in FIGURES if name != "macro_f1"),
                *TAUGHT.values(),
                *PRETRAINED.values(),
            ],
            (
                [
                    *(result.trial.family, result.trial.size, result.trial.seed),
                    *(getattr(result, name) for name in measured),
                    *((result.evaluation or {}).get(name) for name in FIGURES if name != "macro_f1"),
                    *(None if result.taught is None else getattr(result.taught, name) for name in TAUGHT),
                    *(None if result.pretrained is None else getattr(result.pretrained, name) for name in PRETRAINED),
                ]
                for result in table.results
            ),
        ),
        "classes.csv": _csv(
            [field.name for field in fields(ClassRow)], (list(asdict(row).values()) for row in class_rows(table))
        ),
        "accuracy.csv": _csv(
            ["family", "size", *interval, "not_done", *over, *(f"macro_f1_{name}" for name in interval[:3])],
            (
                [
                    *(point.family, point.size, *_interval(point.accuracy), point.unfinished),
                    *_over(table, point.accuracy),
                    *_interval(point.macro_f1)[:3],
                ]
                for point in points
            ),
        ),
        "gap.csv": _csv(
            ["family", "size", *interval, *over, *TESTS],
            (
                [point.family, point.size, *_interval(point.gap), *_over(table, point.gap), *_test(point.test)]
                for point in points
                if point.gap is not None
            ),
        ),
        "break_even.csv": _csv(
            ["family", "size", "low", "high", "reliable", "smallest", "largest", "note"],
            (
                [family, found.size, found.low, found.high, found.reliable, found.smallest, found.largest, found.note]
                for family, found in findings.break_evens.items()
            ),
        ),
        "equivalents.csv": _csv(
            ["family", "encoder_size", "size", "low", "high"],
            ([family, size, *needed] for family, own in findings.equivalents.items() for size, needed in own.items()),
        ),
        "curves.csv": _csv(
            [
                *("family", "form", *PARAMETERS, "unit"),
                *(f"{name}_{end}" for name in PARAMETERS for end in ("low", "high")),
                "note",
            ],
            (_curve(family, curve) for family, curve in findings.curves.items()),
        ),
        "needs.csv": _csv(
            [field.name for field in fields(Need)], (list(asdict(need).values()) for need in findings.needs)
        ),
        "costs.csv": _csv(
            [
                "family",
                *figures,
                *(f"{name}_batch_{batch}" for name in LATENCIES for batch in BATCH_SIZES),
            ],
            (
                [
                    family,
                    *(getattr(cost, name) for name in figures),
                    *(getattr(cost, name).get(batch) for name in LATENCIES for batch in BATCH_SIZES),
                ]
                for family, cost in findings.costs.items()
            ),
        ),
    }
    if findings.externals:
        found["external.csv"] = _csv(
            ["name", *interval[:3], "size", *(f"gap_{name}" for name in interval[:3]), *TESTS],
            (
                [each.name, *_interval(each.accuracy)[:3], *line]
                for each in findings.externals
                for line in _external_lines(each)
            ),
        )
    if findings.prices is not None:
        found["money.csv"] = _csv(
            ["family", "size", "labels", "training", "predictions", "total"],
            (
                [bill.family, bill.size, bill.labels, bill.training, bill.predictions, bill.total]
                for bill in findings.bills
            ),
        )
    return found


def _external_lines(each: ExternalFigures) -> list[list[Any]]:
    """One for each size that the encoder has; one without a gap where it has none."""
    lines = [[size, *_interval(gap)[:3], *_test(each.tests[size])] for size, gap in each.gaps.items()]
    return lines or [[None] * (4 + len(TESTS))]


def _curve(family: str, curve: Curve | str) -> list[Any]:
    if isinstance(curve, str):
        return [family, *[None] * (2 + 3 * len(PARAMETERS)), curve]
    values = curve.fit.values
    ends = [curve.interval(name) if name in values else (None, None) for name in PARAMETERS]
    return [
        *(family, curve.fit.form.name, *(values.get(name) for name in PARAMETERS), curve.fit.unit),
        *(end for interval in ends for end in interval),
        curve.reason,
    ]


def _over(table: Table, estimate: Estimate | None) -> list[int | None]:
    known = estimate is not None and estimate.rows
    return [table.paired.rows, table.paired.clusters] if known else [None, None]


def _test(test: GapTest | None) -> list[float | None]:
    if test is None:
        return [None] * len(TESTS)
    pairs = test.pairs
    exact = [pairs.first, pairs.second, pairs.pairs, pairs.p_value, test.mcnemar_adjusted]
    return [test.p_value, test.adjusted, *exact]


def _interval(estimate: Estimate | None) -> list[Any]:
    return [None] * 4 if estimate is None else [estimate.mean, estimate.low, estimate.high, estimate.count]


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return csv_text([header, *rows])
