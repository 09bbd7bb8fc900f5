"""A few rounds of `kill_campaign.py`, and that it finds a run that went on from something else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("kill_campaign.py")


def campaign(folder: Path, rounds: str, before: str = "") -> subprocess.CompletedProcess:
    program = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\nimport kill_campaign\n{before}\n"
    program += "kill_campaign.main()"
    command = [sys.executable, "-c", program, "--out", str(folder), "--rounds", rounds]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ})


@pytest.mark.parametrize("rounds", ["lstm=3", "encoder=2", "ranks=2", "distil=3", "pretrain=3", "study=1"])
def test_killed_at_random_moments_all_ends_as_if_nothing_had_been(tmp_path, rounds):
    done = campaign(tmp_path / "campaign", rounds)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    what, count = rounds.split("=")
    assert done.stdout.splitlines()[-1].startswith(f"| {what} | {count} | ")


def test_a_run_that_does_not_go_on_is_found(tmp_path):
    planted = "import penstock.engine.training.loop as l; f = l.Loop.plan_with\n"
    planted += (
        "def forgets(self, tokens):\n f(self, tokens)\n self.counters.interval_loss += 1e-3 * self.counters.step\n"
    )
    planted += "l.Loop.plan_with = forgets"
    done = campaign(tmp_path / "campaign", "lstm=2", planted)
    assert done.returncode == 1, done.stdout
    assert "metrics.jsonl" in done.stdout
