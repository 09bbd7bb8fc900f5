"""What stands in the way of the CUDA kernels never stands in the way of an installation (cmake/cuda.cmake)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from subtested import as_subtests

ROOT = Path(__file__).resolve().parents[1]
CMAKE = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
CXX = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(not (CMAKE and CXX and shutil.which("ninja")), reason="there is no cmake, ninja or c++")

VERSION = 'case "$*" in --version) echo "Cuda compilation tools, release {0}, V{0}.88"; exit 0;; esac; '
# what nvcc does: the shell script that stands for it, and what must be said
BROKEN_NVCC = {
    "missing": (None, "there was no"),
    "does not start": ("exit 1", "does not work: --version ended with 1"),
    "is killed": ("kill -9 $$", "does not work"),
    "is another program": ("echo hello", "does not work"),
    "too old": (VERSION.format("11.8"), "is of CUDA 11.8.88, it needs 12.3 or newer"),
    "a little too old": (VERSION.format("12.2"), "is of CUDA 12.2.88, it needs 12.3 or newer"),
    "fails silently": (VERSION.format("13.0") + "exit 1", "nvcc 13.0.88 could not build it: "),
    "does not know the architecture": (
        VERSION.format("13.0") + "echo \"nvcc fatal   : Unsupported gpu architecture 'compute_90a'\" >&2; exit 1",
        "nvcc fatal   : Unsupported gpu architecture 'compute_90a'",
    ),
    "refuses the host compiler": (
        VERSION.format("13.0")
        + 'echo "host_config.h:132:2: error: #error -- unsupported GNU version!; [-x]" >&2; exit 1',
        "host_config.h:132:2: error: #error -- unsupported GNU version!",
    ),
    "compiles nothing": (VERSION.format("13.0") + "exit 0", "nvcc 13.0.88 could not build it: "),
}
NVIDIA_SMI = {
    "missing": (None, "there was no nvidia-smi"),
    "no driver": ("echo NVIDIA-SMI has failed; exit 9", "nvidia-smi names none"),
    "no devices": ("echo No devices were found", "nvidia-smi names none"),
    "too old a GPU": ("echo 7.5", "compute capability 7.5, it needs 8.0"),
    "two GPUs too old": ("echo 6.1; echo 7.5", "compute capability 6.1, 7.5, it needs 8.0"),
}
GPUS = {
    "H100": ("echo 9.0", "90a"),
    "eight H100": ("for i in 1 2 3 4 5 6 7 8; do echo 9.0; done", "90a"),
    "A100": ("echo 8.0", "80"),
    "RTX 4090": ("echo 8.9", "80"),
    "RTX 5090": ("echo 12.0", "80"),
    "two kinds": ("echo 8.6; echo 9.0", "80, 90a"),
    "one of them too old": ("echo 7.5; echo 8.6", "80"),
    "nvidia-smi too old to say": (
        'case "$1" in -L) echo "GPU 0: A100";; *) echo not a valid field; exit 2;; esac',
        "80, 90a",
    ),
}


class Machine:
    """A folder of programs for cmake/cuda.cmake to find, and the script run among them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        (folder / "csrc").symlink_to(ROOT / "csrc")
        for name in ("sh", "cat", "env", "ninja", "ld", "ar", "ranlib", "as"):
            if found := shutil.which(name):
                (self.programs / name).symlink_to(found)
        self.environment = {"PATH": str(self.programs), "CUDACXX": str(self.programs / "nvcc")}

    def add(self, name: str, script: str | None) -> None:
        if script is not None:
            (self.programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (self.programs / name).chmod(0o755)

    def decide(self, **environment: str) -> tuple[int, list[str], str]:
        """The exit status, the lines about penstock, all that was printed."""
        definitions = ["-DCMAKE_GENERATOR=Ninja", f"-DCMAKE_CXX_COMPILER={CXX}", "-DCMAKE_MAKE_PROGRAM=ninja"]
        done = subprocess.run(
            [str(CMAKE), *definitions, "-P", ROOT / "cmake" / "cuda.cmake"],
            cwd=self.folder, env=self.environment | environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        said = done.stdout + done.stderr
        return done.returncode, [line for line in said.splitlines() if "penstock:" in line], said


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def without(lines: list[str]) -> str:
    (line,) = [line for line in lines if "without the cuda backend" in line]
    return line


@pytest.mark.slow
@as_subtests("script, reason", BROKEN_NVCC.values())
def test_a_broken_nvcc_costs_one_line_or_on_request_an_error(machine: Machine, script: str | None, reason: str) -> None:
    machine.add("nvidia-smi", "echo 9.0")
    machine.add("nvcc", script)
    # the same for all, so each way to ask for it is tried with one
    automatic = {"missing": {"PENSTOCK_CUDA": "auto"}, "fails silently": {"PENSTOCK_CUDA_ARCHITECTURES": "80"}}
    for asked in ({}, *(way for name, way in automatic.items() if BROKEN_NVCC[name][0] == script)):
        status, lines, said = machine.decide(**asked)
        assert status == 0, said
        assert reason in without(lines)
        assert "CMake Error" not in said
    status, lines, said = machine.decide(PENSTOCK_CUDA="ON")
    assert status != 0
    assert "PENSTOCK_CUDA=ON, but" in said
    assert " ".join(reason.split()) in " ".join(said.split())
    assert not list(machine.folder.glob("cuda-*")), "what failed is not found by the next try"


@as_subtests("script, reason", NVIDIA_SMI.values())
def test_without_a_gpu_it_is_left_out_before_nvcc_is_asked(machine: Machine, script: str | None, reason: str) -> None:
    machine.add("nvidia-smi", script)
    machine.add("nvcc", f"touch {machine.folder / 'asked'}; exit 1")
    status, lines, said = machine.decide()
    assert status == 0, said
    assert reason in without(lines)
    assert "PENSTOCK_CUDA=ON" in without(lines)
    assert len(lines) == 1
    assert not (machine.folder / "asked").exists()
    machine.add("nvcc", VERSION.format("13.0") + "exit 1")
    assert "for 80, 90a" in machine.decide(PENSTOCK_CUDA="ON")[1][0]


@as_subtests("script, architectures", GPUS.values())
def test_it_is_built_for_the_gpus_that_are_there(machine: Machine, script: str, architectures: str) -> None:
    machine.add("nvidia-smi", script)
    machine.add("nvcc", VERSION.format("13.0") + "exit 1")
    for asked in ({}, {"PENSTOCK_CUDA": "ON"})[: 2 if script == GPUS["two kinds"][0] else 1]:
        assert f"building the CUDA kernels for {architectures} with" in machine.decide(**asked)[1][0]


GIVEN = {
    "80": "80",
    "90": "90a",
    "9.0": "90a",
    "80;90a": "80, 90a",
    "8.6, 8.9": "86, 89",
    "sm_90 90a-real": "90a",
    "80 100 120": "80, 100, 120",
    "100a": "100a",
}


@as_subtests("given, architectures", GIVEN.items())
def test_it_is_built_for_given_architectures(machine: Machine, given: str, architectures: str) -> None:
    machine.add("nvidia-smi", "echo 8.0")
    machine.add("nvcc", VERSION.format("13.0") + "exit 1")
    for asked in ("AUTO", "ON")[: 2 if given == "80;90a" else 1]:
        said = machine.decide(PENSTOCK_CUDA=asked, PENSTOCK_CUDA_ARCHITECTURES=given)[1][0]
        assert f"building the CUDA kernels for {architectures} with" in said


@as_subtests("given", ["off", "OFF", "0", "no", "False"])
def test_off_asks_nobody(machine: Machine, given: str) -> None:
    machine.add("nvidia-smi", f"touch {machine.folder / 'asked'}; echo 9.0")
    status, lines, _ = machine.decide(PENSTOCK_CUDA=given)
    assert status == 0
    assert "it was built with PENSTOCK_CUDA=OFF" in without(lines)
    assert not (machine.folder / "asked").exists()


@as_subtests(
    "given, message",
    [
        ({"PENSTOCK_CUDA": "maybe"}, "PENSTOCK_CUDA is MAYBE: it can be ON, OFF or AUTO"),
        ({"PENSTOCK_CUDA_ARCHITECTURES": "hopper"}, "hopper is not an architecture"),
        ({"PENSTOCK_CUDA_ARCHITECTURES": "75"}, "75 is too old, the kernels need 80"),
        ({"PENSTOCK_CUDA_ARCHITECTURES": "80,5.2"}, "5.2 is too old, the kernels need 80"),
    ],
)
def test_a_wrong_setting_is_an_error(machine: Machine, given: dict[str, str], message: str) -> None:
    status, _, said = machine.decide(**given)
    assert status != 0
    assert message in " ".join(said.split())


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("k.cu(3): error: no such thing", "k.cu(3): error: no such thing"),
        ("", "could not build it: "),
    ],
)
def test_kernels_that_do_not_compile_are_left_out(machine: Machine, output: str, reason: str) -> None:
    """A compiler that passes every test of CMake's and then fails on the sources themselves."""
    machine.environment["PATH"] = os.environ["PATH"]
    machine.add("nvcc", f'case "$*" in *csrc/lstm/cuda*) echo "{output}" >&2; exit 2;; esac; exec {NVCC} "$@"')
    status, lines, said = machine.decide(PENSTOCK_CUDA_ARCHITECTURES="80")
    assert status == 0, said
    assert reason in without(lines)
