"""The compiled LSTM under the address and undefined-behaviour sanitizers: random layers, malformed ones among them."""

import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penstock import _native

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FUZZ = CSRC / "lstm" / "cpu" / "fuzz"
COMPILER = shutil.which("g++") or shutil.which("clang++")
FLAGS = "-std=c++20 -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-uninitialized"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not FUZZ.is_dir(), reason="not a checkout"),
]


def flags_of_instruction_sets() -> dict[str, list[str]]:
    """As CMakeLists.txt gives them to the files named for an instruction set."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {}
    found: dict[str, list[str]] = {}
    for name, flags in re.findall(r"set\(PENSTOCK_FLAGS_(\w+) (.*)\)", (ROOT / "CMakeLists.txt").read_text()):
        words = (found[word[17:-1]] if word.startswith("${") else [word] for word in flags.split())
        found[name] = [flag for group in words for flag in group]
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    flags = flags_of_instruction_sets()
    replaced = {path.name for path in FUZZ.glob("*.cpp")} | {"bindings.cpp"}
    sources = [path for path in (CSRC / "lstm" / "cpu").glob("*.cpp") if path.name not in replaced]
    sources += [*FUZZ.glob("*.cpp"), CSRC / "amx.cpp", CSRC / "threads.cpp"]

    def compiled(source: Path) -> Path:
        out = folder / f"{source.stem}.o"
        command = [COMPILER, *FLAGS.split(), *flags.get(source.stem, []), f"-I{CSRC}", "-c", source, "-o", out]
        subprocess.run(command, check=True)
        return out

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    out = folder / "fuzz_layer"
    subprocess.run([COMPILER, *FLAGS.split(), *objects, "-o", out, "-ldl", "-pthread"], check=True)
    return out


@pytest.mark.parametrize("seed", [0, 1_000_000])
def test_random_layers(program: Path, seed: int) -> None:
    done = subprocess.run(
        [program, str(seed), "400", str(len(_native.available_isas()))], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-4000:]
    assert done.stdout == "400 layers\n"
