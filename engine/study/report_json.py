"""The report for programs: `report.json`.

All figures of the report in full: accuracies, gaps and errors are shares, times seconds or milliseconds as their names
say, money in the currency of the prices. null is unknown. A size is a number of training examples; 0 stands for "the
smallest size or fewer", "beyond" for "more than the largest size measured".
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from penstock.engine.study.break_even import THRESHOLD
from penstock.engine.study.classes import class_rows
from penstock.engine.study.costs import Cost
from penstock.engine.study.curves import Curve
from penstock.engine.study.external import ExternalFigures
from penstock.engine.study.findings import Findings
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.money import Bill, Exchange
from penstock.engine.study.names import title_of
from penstock.engine.study.paired import GapTest
from penstock.engine.study.table import Point

FORMAT = 1  # higher when a reader of the older one would misread it
BEYOND = "beyond"


def report_json(findings: Findings, title: str) -> dict[str, Any]:
    table, answer = findings.table, findings.answer
    document = {
        "format": FORMAT,
        "title": title,
        "answer": {
            "kind": answer.kind,
            "sentences": list(answer.sentences),
            "size": answer.size,
            "rival": answer.rival,
        },
        "missing_trials": findings.missing,
        "test_rows": table.paired.rows or None,
        "test_clusters": table.paired.clusters or None,
        "cluster": table.paired.column,
        "threshold": THRESHOLD,
        "families": {family: {"title": title_of(family)} for family in table.families},
        "points": [_point(point) for family in table.families for point in table.points(family)],
        "break_evens": {
            family: {
                "size": BEYOND if found.size is None and found.largest else found.size,
                "low": found.low,
                "high": found.high,
                "reliable": found.reliable,
                "smallest_measured": found.smallest,
                "largest_measured": found.largest,
                "extrapolated": _interval(found.extrapolated),
                "note": found.note,
            }
            for family, found in findings.break_evens.items()
        },
        "equivalents": [
            {"family": family, "encoder_size": size, **_interval(needed)}
            for family, own in findings.equivalents.items()
            for size, needed in own.items()
        ],
        "externals": [_external(external) for external in findings.externals],
        "curves": {family: _curve(curve) for family, curve in findings.curves.items()},
        "classes": [asdict(row) for row in class_rows(table)],
        "costs": {family: _cost(cost) for family, cost in findings.costs.items()},
        "prices": None if findings.prices is None else findings.prices.to_json(),
        "bills": [_bill(bill) for bill in findings.bills],
        "needs": [asdict(need) for need in findings.needs],
        "exchanges": [_exchange(exchange) for exchange in findings.exchanges],
        "checks": [check.to_json() for check in findings.checks],
        "study": findings.study,
    }
    return _finite(document)


def _point(point: Point) -> dict[str, Any]:
    return {
        "family": point.family,
        "size": point.size,
        "accuracies": {str(seed): value for seed, value in point.accuracies.items()},
        "accuracy": _estimate(point.accuracy),
        "macro_f1": _estimate(point.macro_f1),
        "gaps": {str(seed): value for seed, value in point.gaps.items()},
        "gap": _estimate(point.gap),
        "test": None if point.test is None else _test(point.test, "family"),
        "not_done": point.unfinished,
    }


def _external(external: ExternalFigures) -> dict[str, Any]:
    return {
        "name": external.name,
        "source": external.source,
        "accuracy": _estimate(external.accuracy),
        "gaps": [
            {"encoder_size": size, "gap": _estimate(gap), "test": _test(external.tests[size], "external")}
            for size, gap in external.gaps.items()
        ],
    }


def _test(test: GapTest, other: str) -> dict[str, Any]:
    return {
        "p_value": test.p_value,
        "p_adjusted": test.adjusted,
        "only_encoder_right": test.pairs.first,
        f"only_{other}_right": test.pairs.second,
        "pairs": test.pairs.pairs,
        "mcnemar_p_value": test.pairs.p_value,
        "mcnemar_p_adjusted": test.mcnemar_adjusted,
    }


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    over_rows = estimate.low is not None and estimate.rows
    return {
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "seeds": estimate.count,
        "interval_over_test_rows": over_rows,
        "interval_over_seeds": estimate.low is not None and estimate.over_seeds,
    }


def _interval(found: tuple[float, float | None, float | None] | None) -> dict[str, Any]:
    return {} if found is None else dict(zip(("size", "low", "high"), found, strict=True))


def _curve(curve: Curve | str) -> dict[str, Any]:
    if isinstance(curve, str):
        return {"note": curve}
    values = curve.fit.values
    return {
        **{"form": curve.fit.form.name, **values, "unit": curve.fit.unit},
        **{f"{name}_interval": list(curve.interval(name)) for name in values},
        "losses": curve.losses,
        "note": curve.reason,
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return {key: value for key, value in asdict(cost).items() if key not in ("family", "made_from")} | {
        "busy": cost.busy
    }


def _bill(bill: Bill) -> dict[str, Any]:
    return asdict(bill) | {"total": bill.total}


def _exchange(exchange: Exchange) -> dict[str, Any]:
    return {
        "family": exchange.family,
        "encoder_size": exchange.size,
        "accuracy": exchange.accuracy,
        "needed": _interval(exchange.needed),
        **{
            name: None if bill is None else _bill(bill)
            for name, bill in (
                ("encoder", exchange.encoder),
                ("bill", exchange.bill),
                ("bill_low", exchange.low),
                ("bill_high", exchange.high),
            )
        },
        "even_at_price_label": exchange.even_at,
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity: it stands for sizes beyond the measured ones here."""
    if isinstance(value, Mapping):
        return {str(key): _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    if isinstance(value, float) and not math.isfinite(value):
        return BEYOND if value > 0 else None
    return value
