"""The benchmark `benchmarks/training/growth.py` on few rows: every cost is there, and what is there is kept."""

import csv
import importlib
from pathlib import Path

import pytest


@pytest.mark.slow
def test_costs_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "training")
    growth = importlib.import_module("growth")
    asked = ["--out", str(tmp_path), "--do", "prepare,plan,bag", "--most", "bag=300"]
    growth.main([*asked, "--rows", "300"])
    before = (tmp_path / "growth.csv").read_text()
    growth.main([*asked, "--rows", "300,600"])
    assert (tmp_path / "growth.csv").read_text().startswith(before)
    rows = list(csv.DictReader((tmp_path / "growth.csv").open()))
    assert [(row["what"], row["rows"]) for row in rows] == [
        *(("prepare", "300"), ("plan", "300"), ("bag", "300")),
        *(("prepare", "600"), ("plan", "600")),
    ]
    assert all(float(row["cpu_seconds"]) > 0.5 and int(row["memory_bytes"]) > 2**26 for row in rows)
    assert [int(row["disk_bytes"]) > 10_000 for row in rows] == [True, False, True, True, False]
    assert "| prepare | 600 |" in capsys.readouterr().out
    assert not list(tmp_path.glob("run-*"))
