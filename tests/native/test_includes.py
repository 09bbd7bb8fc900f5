"""What is shipped stands by itself: no source of csrc includes a test, or anything else from beyond csrc."""

import re
from pathlib import Path

import pytest
from kernel_cases import CSRC

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="not a checkout")

GENERATED = {"without_cuda.h"}  # by CMakeLists.txt


def sources() -> list[Path]:
    return [path for path in sorted(CSRC.rglob("*")) if path.suffix in (".h", ".cpp", ".cu")]


def test_sources_include_each_other_only() -> None:
    found = 0
    for path in sources():
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            places = [folder / name for folder in (path.parent, CSRC)]
            included = [place.resolve() for place in places if place.is_file()]
            assert included or name in GENERATED, f"{path} includes {name}, which is not in csrc"
            assert all(place.is_relative_to(CSRC) for place in included), f"{path} includes {name}"
            found += 1
    assert found > 100
    assert all(f'"{name}"' in "".join(path.read_text() for path in sources()) for name in GENERATED)


def test_no_test_lies_among_them() -> None:
    words = {"test", "tests", "fuzz", "emulated", "emulator"}
    assert not [path for path in sources() if words & set(re.split(r"[/_.]", str(path.relative_to(CSRC))))]
