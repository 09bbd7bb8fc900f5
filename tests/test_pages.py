"""The pages that `make docs` builds: without a warning, all of what is public, and the versions to choose from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import kernels

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_pages_build_without_a_warning(tmp_path: Path) -> None:
    for tool in ("sphinx", "myst_parser", "pydata_sphinx_theme"):
        pytest.importorskip(tool, reason=f"{tool} is not here")
    site = tmp_path / "site"
    for earlier in ("0.10.0", "0.9.0"):
        (site / earlier).mkdir(parents=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", tmp_path / "cache"]
    done = subprocess.run([*command, ".", site / "0.1.0"], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    page = (site / "0.1.0" / "docs" / "api" / "kernels.html").read_text()
    assert [name for name in kernels.__all__ if f'id="penstock.kernels.{name}"' not in page] == []
    for name in ("README", "CHANGELOG", "CONTRIBUTING", "docs/architecture", "docs/log", "benchmarks/README"):
        assert (site / "0.1.0" / f"{name}.html").is_file()
    versions = json.loads((site / "switcher.json").read_text())
    assert [entry["version"] for entry in versions] == ["0.10.0", "0.9.0", "0.1.0"]
    assert "0.10.0/" in (site / "index.html").read_text()
