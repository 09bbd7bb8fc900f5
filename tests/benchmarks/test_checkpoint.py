"""The benchmark `benchmarks/training/checkpoint.py` on one layer: it finds the checkpoints of a training."""

import importlib
import re
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_minute_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "training")
    checkpoint = importlib.import_module("checkpoint")
    monkeypatch.setattr(checkpoint.loop.Loop, "_checkpoint", checkpoint.loop.Loop._checkpoint)  # put back afterwards
    monkeypatch.setattr(checkpoint.Writer, "start", checkpoint.Writer.start)
    checkpoint.main(["--layers", "1", "--steps", "4", "--every", "1", "--tokens", "64", "--folder", str(tmp_path)])
    said = capsys.readouterr().out
    assert re.search(r"32 M parameters, 0\.38 GB a checkpoint, 4 of them", said)
    assert 0 < float(re.search(r"of a minute of 2 cores: ([\d.]+)%", said).group(1)) < 20
