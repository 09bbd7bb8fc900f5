"""Builds the C++ programs of tests/native: the kernels' own sources, each with its instruction set's flags."""

import platform
import re
import shutil
import subprocess
from collections.abc import Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent / "native"
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
COMPILER = shutil.which("g++") or shutil.which("clang++")
# for scikit-build-core, where it does not matter how fast the code is: a quarter of the compiler's time
UNOPTIMIZED = {"SKBUILD_CMAKE_DEFINE": "CMAKE_CXX_FLAGS_RELEASE=-O0 -DNDEBUG"}
THREADS = [CSRC / name for name in ("threads.cpp", "openmp.cpp", "load.cpp")]


def flags_of_instruction_sets() -> dict[str, list[str]]:
    """As CMakeLists.txt gives them to the files named for an instruction set."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {}
    found: dict[str, list[str]] = {}
    for name, flags in re.findall(r"set\(PENSTOCK_FLAGS_(\w+) (.*)\)", (ROOT / "CMakeLists.txt").read_text()):
        words = (found[word[17:-1]] if word.startswith("${") else [word] for word in flags.split())
        found[name] = [flag for group in words for flag in group]
    return found


def compiled(sources: Iterable[Path], flags: list[str], folder: Path, idle: Container[str] = ()) -> list[Path]:
    """The sources' objects, in their order. idle: instruction sets whose code no test calls; it costs as little as can
    be."""
    of_instruction_set = flags_of_instruction_sets()

    def compile_one(source: Path) -> Path:
        out = folder / f"{source.parent.parent.name}-{source.stem}.o"
        includes = [f"-I{CSRC}", f"-I{HERE}"]
        own = ["-O0", "-w"] if source.stem in idle else flags
        command = [COMPILER, "-std=c++20", *own, *of_instruction_set.get(source.stem, []), *includes]
        subprocess.run([*command, "-c", source, "-o", out], check=True)
        return out

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def as_installed(sources: Iterable[Path]) -> dict[Path, Path]:
    """Those objects that `make install` has left, younger than all sources."""
    newest = max(path.stat().st_mtime for path in [ROOT / "CMakeLists.txt", *CSRC.rglob("*")])
    found = {}
    for source in sources:
        place = Path("CMakeFiles", "_native.dir", f"{source.relative_to(ROOT)}.o")
        built = [path for path in ROOT.glob(f"build/native/*/{place}") if path.stat().st_mtime > newest]
        if built:
            found[source] = max(built, key=lambda path: path.stat().st_mtime)
    return found


def linked(objects: list[Path], flags: list[str], program: Path) -> Path:
    subprocess.run([COMPILER, *flags, *objects, "-o", program, "-ldl", "-pthread"], check=True)
    return program
