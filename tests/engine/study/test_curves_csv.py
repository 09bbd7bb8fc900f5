"""curves.csv says all of a learning curve: its row alone gives the curve again, whatever its form."""

import csv
import io

import numpy as np
import pytest
from scipy.optimize import brentq

from penstock.engine.statistics.learning_curves import FORMS, PARAMETERS, Fit, fit
from penstock.engine.study.csv_files import csv_files
from penstock.engine.study.curves import Curve
from penstock.engine.study.findings import Findings

SIZES = np.array([100.0, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000])
ERRORS = {
    "falls": 0.6 * (SIZES / 100) ** -0.3 + 0.1,
    "bends": 0.5 * (SIZES / 100) ** -0.1 * (1 + (SIZES / 5000) ** 2) ** -0.2,
    "levels": 0.1 + 0.7 / (1 + (SIZES / 2000) ** 0.8),
    "flat": np.full(len(SIZES), 0.4),
}


def error_by_row(row: dict[str, str], size: float) -> float:
    """The formulas of statistics/learning_curves.py, from the names in the file."""
    own = {name: float(row[name]) for name in PARAMETERS if row[name]}
    n = size / float(row["unit"])
    if row["form"] == "power law":
        return own["scale"] * n ** -own["exponent"] + own["floor"]
    if row["form"] == "broken power law":
        bend = (1 + (size / own["break"]) ** 2) ** (-(own["then"] - own["exponent"]) / 2)
        return own["scale"] * n ** -own["exponent"] * bend
    floor, start, right = own["floor"], own["start"], own["scale"] * n ** -own["exponent"]
    width = start - floor
    return brentq(lambda e: (e - floor) - right * (start - e) ** own["power"], floor, floor + width * (1 - 1e-12))


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_row_gives_its_curve(kind, form):
    fitted = fit(form, SIZES, ERRORS[kind], np.full(len(SIZES), 1e-4))
    others = [Fit(form, fitted.theta * factor, fitted.unit, 0.0) for factor in (0.9, 1.0, 1.1)]
    findings = Findings.__new__(Findings)
    curves = {"lstm": Curve(fitted, others, None), "encoder": "no curve is fitted"}
    text = curves_csv(findings, curves)
    row, none = csv.DictReader(io.StringIO(text))
    for size in (100.0, 450.0, 30_000.0):
        assert error_by_row(row, size) == pytest.approx(float(fitted.error(size)), abs=2e-6)
    for name in PARAMETERS:
        known = name in fitted.values
        assert bool(row[name]) == bool(row[f"{name}_low"]) == bool(row[f"{name}_high"]) == known
        if known:
            assert float(row[f"{name}_low"]) <= float(row[f"{name}_high"])
            assert float(row[name]) == fitted.values[name]
    assert {key: value for key, value in none.items() if value} == {"family": "encoder", "note": "no curve is fitted"}


def test_every_parameter_of_every_form_has_a_column():
    named = {name for form in FORMS for name in form.named(np.full(form.parameters, 0.1), 1.0)}
    assert named == set(PARAMETERS)


def curves_csv(findings: Findings, curves: dict) -> str:
    """curves.csv of a study with these curves and no trials."""
    from penstock.engine.study.table import Table

    fields = {"curves": curves, "table": Table([]), "break_evens": {}, "equivalents": {}, "costs": {}}
    for name, value in (fields | {"externals": [], "prices": None, "bills": [], "needs": []}).items():
        object.__setattr__(findings, name, value)
    return csv_files(findings)["curves.csv"]
