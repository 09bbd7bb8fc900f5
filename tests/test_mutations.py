"""The faults that `make mutate` plants still have their text: it would stop at the first that has not."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("table", sorted(path.stem for path in Path(__file__).parent.glob("mutations_*.py")))
def test_every_text_stands_once(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which mutate sets for its children: put back afterwards
    mutate = importlib.import_module("mutate")
    faults = importlib.import_module(table).FAULTS
    assert len(faults) > 20
    for fault in faults:
        assert mutate.file_with(ROOT, fault).is_file()
