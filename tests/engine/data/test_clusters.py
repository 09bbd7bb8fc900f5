"""The same store from Ray and from datatrove: their own libraries run the examples."""

import subprocess
import sys
from pathlib import Path

import pytest

from penstock.engine.data.prepare import prepare

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("all_probes")]

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Three files of 3,000 rows in all, with shards of other sizes than theirs."""
    paths = []
    for k, rows in enumerate((500, 1500, 1000)):
        path = tmp_path / f"{k}.csv"
        path.write_text("text,label\n" + "".join(f"film {i} of {k} was {i * i},{i % 3}\n" for i in range(rows)))
        paths.append(str(path))
    return paths


@pytest.mark.parametrize("engine", ["ray", "datatrove"])
def test_example_makes_the_same_store(tmp_path, files, tokenizer_path, engine):
    pytest.importorskip(engine, reason=f"{engine} is not installed: pip install 'penstock[{engine}]'")
    whole = prepare(files, tmp_path / "whole", tokenizer=tokenizer_path, rows_per_shard=400, progress=False)
    assert len(whole.manifest.shards) == 8
    command = [sys.executable, str(EXAMPLES / f"prepare_on_{engine}.py"), *files, "--out", str(tmp_path / "out")]
    command += ["--tokenizer", tokenizer_path, "--rows-per-shard", "400", "--tasks", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "3000 examples" in done.stdout
    assert contents(tmp_path / "out") == contents(whole.path)
