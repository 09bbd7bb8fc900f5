"""What the README shows works as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.engine.cli import app

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_examples_run(code: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "penstock.engine" not in code, "the kernels stand on their own"


def commands() -> list[list[str]]:
    lines = re.sub(r"\\\n\s*", "", README).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("penstock ")]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command[0])
def test_options_exist(command: list[str]) -> None:
    help_text = CliRunner().invoke(app, [command[0], "--help"], env={"COLUMNS": "200"}).output
    for option in (word for word in command if word.startswith("--")):
        assert option in help_text
