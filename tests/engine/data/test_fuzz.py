"""The C++ reader under the address and undefined-behaviour sanitizers, on inputs that a fuzzer makes up."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"
TARGET = ROOT / "tests" / "native" / "fuzz_shards.cpp"
FLAGS = ["-std=c++20", "-g", "-O1", "-fno-sanitize-recover=all", f"-I{CSRC}"]


def builds(compiler: str, sanitizers: str, folder: Path) -> bool:
    (folder / "empty.cpp").write_text('extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return 0; }')
    command = [compiler, f"-fsanitize={sanitizers}", str(folder / "empty.cpp"), "-o", str(folder / "empty")]
    return subprocess.run([*command, *([] if "fuzzer" in sanitizers else ["-c"])], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def run_fuzzer(tmp_path_factory):
    """Builds the target with a shards.cpp and runs it for some seconds; libFuzzer where clang has it."""
    folder = tmp_path_factory.mktemp("fuzz")
    clang = next((name for name in ("clang++", "clang++-14", "clang++-19") if shutil.which(name)), None)
    if clang and builds(clang, "fuzzer,address,undefined", folder):
        compile_, driver = [clang, "-fsanitize=fuzzer,address,undefined"], []
        # what the sanitizer itself holds resident may pass libFuzzer's limit: single allocations are limited instead
        arguments = ["-max_total_time=10", "-seed=1", "-rss_limit_mb=0", "-malloc_limit_mb=1024"]
    elif shutil.which("g++") and builds("g++", "address,undefined", folder):
        compile_, driver = ["g++", "-fsanitize=address,undefined"], [TARGET.with_name("random_inputs.cpp")]
        arguments = ["20000"]
    else:
        pytest.skip("needs clang with libFuzzer, or gcc with the address sanitizer")

    def compile_object(source: Path, to: Path) -> Path:
        subprocess.run([*compile_, *FLAGS, "-c", str(source), "-o", str(to)], check=True, capture_output=True)
        return to

    parts = [compile_object(path, folder / f"{path.stem}.o") for path in (TARGET, *driver)]

    def run(shards: Path) -> subprocess.CompletedProcess:
        program = folder / shards.parent.name
        objects = [*parts, compile_object(shards, program.with_suffix(".o"))]
        subprocess.run([*compile_, *map(str, objects), "-o", str(program)], check=True, capture_output=True)
        return subprocess.run([str(program), *arguments], cwd=folder, capture_output=True, text=True, timeout=300)

    return run


def test_reader_survives(run_fuzzer):
    done = run_fuzzer(CSRC / "data" / "shards.cpp")
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    ("sound", "broken"),
    [
        ("bounds[1] > shard.tokens)", "bounds[1] > shard.tokens + 1)"),
        ("bounds[1] < bounds[0] ||", ""),
        ("greatest >= static_cast<uint64_t>(vocab_size_)", "greatest > static_cast<uint64_t>(vocab_size_)"),
    ],
)
def test_fuzzer_finds_planted_faults(run_fuzzer, tmp_path, sound, broken):
    source = (CSRC / "data" / "shards.cpp").read_text()
    assert source.count(sound) == 1
    (tmp_path / "shards.cpp").write_text(source.replace(sound, broken))
    assert run_fuzzer(tmp_path / "shards.cpp").returncode != 0
