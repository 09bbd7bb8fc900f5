"""Code of one instruction set must not run for another: what the linker may pick from any object is in none of them.

An inline function that is not inlined is in every object that uses it, and the linker keeps one copy for all. Where
that copy comes from a file compiled with AVX-512, a machine without it dies.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native_building import COMPILER, CSRC, as_installed, compiled, flags_of_instruction_sets

FLAGS = ["-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None or shutil.which("nm") is None, reason="no C++ compiler or no nm"),
    pytest.mark.skipif(not CSRC.is_dir(), reason="not a checkout"),
    pytest.mark.skipif(not flags_of_instruction_sets(), reason="one instruction set only"),
]


def shared_symbols(found: Path, isa: str) -> list[str]:
    """Definitions that other objects may pick up, but for those whose name says the instruction set."""
    listing = subprocess.run(["nm", "--defined-only", found], capture_output=True, text=True, check=True).stdout
    weak = re.findall(r"^\w+ ([WVuvw]) (\S+)$", listing, re.MULTILINE)
    # the pointer to the exceptions' personality is data that is the same everywhere
    return [name for _, name in weak if f"{len(isa)}{isa}" not in name and not name.startswith("DW.ref.")]


def sources() -> list[Path]:
    isas = flags_of_instruction_sets()
    return [path for path in sorted(CSRC.rglob("*.cpp")) if path.stem in isas]


def test_there_are_such_files() -> None:
    assert {path.parent.parent.name for path in sources()} >= {"attention", "linear", "lstm", "rowwise"}


def test_no_object_of_an_instruction_set_holds_what_others_may_pick_up(tmp_path: Path) -> None:
    objects = as_installed(sources())
    left = [source for source in sources() if source not in objects]
    objects |= dict(zip(left, compiled(left, FLAGS, tmp_path), strict=True))
    found = {
        str(source.relative_to(CSRC)): shared
        for source, built in objects.items()
        if (shared := shared_symbols(built, source.stem))
    }
    assert not found


def test_a_shared_function_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "a" / "cpu" / "avx2.cpp"
    source.parent.mkdir(parents=True)
    source.write_text("__attribute__((noinline)) inline int shared(int x) { return x * x; }\nint (*f)(int) = shared;\n")
    (built,) = compiled([source], FLAGS, tmp_path)
    assert shared_symbols(built, "avx2") == ["_Z6sharedi"]
