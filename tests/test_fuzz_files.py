"""A few seconds of `fuzz_files.py`, and that it finds what is planted."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_files.py")


def fuzz(*arguments: str, before: str = "") -> subprocess.CompletedProcess:
    """Runs the script in a process of its own, from which it forks others."""
    program = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import fuzz_files\n{before}\nfuzz_files.main()"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=500)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all"])
def test_nothing_is_found_in_a_few_seconds(name):
    done = fuzz(name, "--minutes", "0.05")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.count("tried") == 15


@pytest.mark.slow
@pytest.mark.parametrize(
    "planted",
    [
        # a manifest whose checksum is not compared
        "import penstock.engine.data.manifest as m, penstock.engine.records as r; m.read_checked = lambda p: "
        "{k: v for k, v in r.read_json(p).items() if k != 'crc32'}",
        # an error of another kind
        "import penstock.engine.data.manifest as m\ndef f(*a): raise KeyError('x')\nm.check_manifest = f",
    ],
)
def test_what_is_planted_is_found(planted):
    done = fuzz("manifest", "--minutes", "0.5", before=planted)
    assert done.returncode == 1, done.stdout
