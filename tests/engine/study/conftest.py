"""Costs are measured in this process, with as few runs as there can be; `test_study.py` has the real thing."""

import pytest

from penstock.engine.study import measure_cost, study


@pytest.fixture(autouse=True)
def quick_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_cost, "_MIN_RUNS", {1: 1, 32: 1})

    def quick(family, settings, train, test):
        return measure_cost.measure(family, measure_cost.subject_of(settings, train), test, seconds=0.0)

    monkeypatch.setattr(study, "measure_cost", quick)
