"""The compiled kernels under the address and undefined-behaviour sanitizers: random calls, malformed ones too."""

import subprocess
from pathlib import Path

import pytest
from native_building import COMPILER, CSRC, HERE, THREADS, compiled, flags_of_instruction_sets, linked

from penstock import _native

FLAGS = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-uninitialized"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not CSRC.is_dir(), reason="not a checkout"),
]


def kernels(folder: str, *without: str) -> list[Path]:
    """Those of one operation, but for the binding to Python."""
    return [path for path in sorted((CSRC / folder / "cpu").glob("*.cpp")) if path.name not in without]


SOURCES = {
    "fuzz_lstm": [*kernels("lstm", "bindings.cpp"), HERE / "workspace.cpp", *THREADS],
    "fuzz_attention": [*kernels("attention", "attention.cpp"), HERE / "scratch.cpp", HERE / "workspace.cpp"],
    "fuzz_rows": [
        *kernels("rowwise", "rowwise.cpp"),
        *kernels("linear", "linear.cpp", "packed.cpp"),
        HERE / "scratch.cpp",
        HERE / "workspace.cpp",
    ],
}


@pytest.fixture(scope="module", params=SOURCES)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    sources = [*SOURCES[request.param], HERE / f"{request.param}.cpp", CSRC / "amx.cpp"]
    idle = flags_of_instruction_sets().keys() - set(_native.available_isas())
    return linked(compiled(sources, FLAGS, folder, idle), FLAGS, folder / request.param)


@pytest.mark.parametrize("seed", [0, 1_000_000])
def test_random_calls(program: Path, seed: int) -> None:
    arguments = [program, str(seed), "400", str(len(_native.available_isas()))]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-4000:]
    assert done.stdout == "400 rounds\n"
