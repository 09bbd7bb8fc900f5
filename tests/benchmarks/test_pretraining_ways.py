"""The benchmark `benchmarks/recipes/pretraining.py` on tiny models: a row for each, once."""

import csv
import importlib
import sys
from pathlib import Path

import pytest
from few_texts import write_texts

from penstock.engine.data.prepare import prepare


def test_each_way_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "recipes")
    pretraining = importlib.import_module("pretraining")
    texts = write_texts(tmp_path / "texts.csv", 150, 0)
    store = prepare(str(texts), tmp_path / "store", tokenizer="train:wordpiece:150", progress=False)
    out = tmp_path / "ways.csv"
    stated = ["--store", store.path, "--out", out, "--tokens", "1e3", "--sizes", "30,60", "--development", "40"]
    ways = ["scratch", "masked pretraining.candidates=30", "replaced"]
    stated += ["--model", "model.hidden_size=8", "model.embedding_size=8", "--tunings", "training.epochs=1"]
    monkeypatch.setattr(sys, "argv", ["pretraining", *map(str, stated), "--ways", *ways])
    for _ in range(2):
        pretraining.main()
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["way"], row["size"]) for row in rows] == [(way, size) for way in ways for size in ("30", "60")]
    assert all(0 <= float(row["development_accuracy"]) <= 1 and row["development_rows"] == "40" for row in rows)
    assert [bool(row["pretraining_loss"]) for row in rows] == [False, False, True, True, True, True]
