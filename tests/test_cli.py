import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PENSTOCK = Path(sys.executable).with_name("penstock")


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PENSTOCK, *arguments],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_doctor_works_from_any_directory(where: str, tmp_path: Path) -> None:
    result = run("doctor", cwd=ROOT if where == "root" else tmp_path)
    assert result.returncode == 0, result.stderr
    assert "compiled core" in result.stdout
    for operation in ("lstm", "varlen_attention", "segment_pool"):
        assert operation in result.stdout


def test_doctor_names_an_unknown_instruction_set() -> None:
    result = run("doctor", cwd=ROOT, PENSTOCK_ISA="mmx")
    assert result.returncode == 1
    assert "no instruction set 'mmx' here" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_doctor_works_beside_the_hubs_kernels(tmp_path: Path) -> None:
    """PyPI's `kernels` owns the bare name; importing it and ours in one process must do no harm."""
    hub = tmp_path / "kernels"
    hub.mkdir()
    (hub / "__init__.py").write_text("__version__ = '0.1.0'\nHUB = True\n")
    result = run("doctor", cwd=ROOT, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    both = "import kernels, penstock.kernels as ours; assert kernels.HUB and not hasattr(ours, 'HUB')"
    subprocess.run(
        [sys.executable, "-c", both], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=True
    )


def test_help_is_instant_and_shows_an_example(tmp_path: Path) -> None:
    start = time.perf_counter()
    result = run("--help", cwd=tmp_path)
    assert time.perf_counter() - start < 5, "penstock --help must not import torch"
    for command in ("prepare", "verify", "train", "evaluate", "predict", "study", "report", "bench", "doctor"):
        assert command in result.stdout


@pytest.mark.parametrize(
    "command", ["prepare", "verify", "train", "evaluate", "predict", "study", "report", "bench", "doctor"]
)
def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    result = run(command, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert f"penstock {command}" in result.stdout.replace("Usage: penstock", ""), "no example"


def test_a_mistake_ends_in_one_line_and_its_own_exit_code(tmp_path: Path) -> None:
    result = run("verify", "no-such-store", cwd=tmp_path)
    assert result.returncode == 5
    assert result.stderr.count("\n") == 1
    assert "no-such-store" in result.stderr


def test_bench_names_the_suites_it_has(tmp_path: Path) -> None:
    result = run("bench", "nonsense", cwd=tmp_path)
    assert result.returncode == 6
    assert "kernels" in result.stderr
