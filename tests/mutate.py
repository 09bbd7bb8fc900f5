"""Plants faults in the sources, one at a time, and says which test finds each: `python tests/mutate.py`.

A fault (tests/mutations_*.py) is a text of the sources and what takes its place, in a copy of the tree; the tests named
beside it, which run until one fails, must find it. C++ is built for each fault in it, in build/mutate and without CUDA;
the first build takes minutes.
"""

import argparse
import contextlib
import hashlib
import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch  # noqa: F401  (for the children)

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "mutate"


def copied(ref: str | None, into: Path) -> Path:
    """The tree of a commit, or the working tree, in an empty folder; penstock is imported from its folder `site`."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    if ref is None:
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, text=True,
                                capture_output=True).stdout.split()  # fmt: skip
        for name in listed:
            if (ROOT / name).is_file():
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, into / name)
    else:
        archive = subprocess.run(["git", "archive", ref], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x"], cwd=into, input=archive, check=True)
    package = into / "site" / "penstock"
    package.mkdir(parents=True)
    for name in ("kernels", "engine", "benchmarks"):
        (package / name).symlink_to(into / name)
    # an editable install would send the import elsewhere
    (into / "site" / "sitecustomize.py").write_text(
        "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__]\n"
    )
    return into


def file_with(tree: Path, fault: Any) -> Path:
    places = [tree / fault.where] if (tree / fault.where).is_file() else sorted((tree / fault.where).rglob("*.*"))
    found = [path for path in places if path.suffix in (".py", ".h", ".cpp") and fault.text in path.read_text()]
    if len(found) != 1 or found[0].read_text().count(fault.text) != 1:
        raise SystemExit(f"{fault.what}: its text stands in {[str(path) for path in found]}, not once in one file")
    return found[0]


def synchronise(tree: Path, copy: Path) -> None:
    """What C++ is built from. A file that has not changed keeps its time: only what includes a fault is compiled."""
    wanted = {path.relative_to(tree) for path in [*(tree / "csrc").rglob("*"), *(tree / "cmake").rglob("*")]}
    for old in [path for path in copy.rglob("*") if path.is_file() and path.relative_to(copy) not in wanted]:
        old.unlink()
    for name in [Path("CMakeLists.txt"), *wanted]:
        source, target = tree / name, copy / name
        if source.is_file() and not (target.is_file() and target.read_bytes() == source.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def native(tree: Path) -> Path:
    """The compiled module of the tree's C++, built where its content is new."""
    sources = [path for path in sorted((tree / "csrc").rglob("*.*")) if path.suffix in (".h", ".cpp")]
    sources = [path for path in sources if not {"cuda", "fuzz", "tests"} & set(path.parts[-3:])]
    content = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    module = BUILD / "modules" / f"{content}.so"
    if not module.exists():
        copy, build = BUILD / "tree", BUILD / "cmake"
        synchronise(tree, copy)
        pybind = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], check=True, text=True,
                                capture_output=True).stdout.strip()  # fmt: skip
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DPENSTOCK_CUDA=OFF", f"-Dpybind11_DIR={pybind}"]
        options += [f"-DPython_EXECUTABLE={sys.executable}"]
        subprocess.run(["cmake", "-S", copy, "-B", build, *options], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cmake", "--build", build], check=True, stdout=subprocess.DEVNULL)
        module.parent.mkdir(exist_ok=True)
        shutil.copy(next(build.glob("_native*.so")), module)
    return module


class Failures:
    """A plugin of pytest that remembers which tests failed."""

    def __init__(self) -> None:
        self.tests: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tests.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tests.append(f"{report.nodeid} (not collected)")


def run_tests(tree: Path, files: list[str], answer: Connection) -> None:
    site = str(tree / "site")
    os.chdir(tree)
    os.environ["PYTHONPATH"] = site
    sys.path.insert(0, site)
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        failures = Failures()
        options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(tree)]
        status = pytest.main([*options, *files], plugins=[failures])
    answer.send((int(status), failures.tests))


def failed_test(tree: Path, fault: Any) -> str | None:
    """The test that finds what was planted, or None. It runs in a child, which has torch from here: imported once."""
    found = {path for pattern in fault.tests.split() for path in (tree / "tests").glob(f"**/{pattern}")}
    context = multiprocessing.get_context("fork")
    reading, writing = context.Pipe(duplex=False)
    child = context.Process(target=run_tests, args=(tree, sorted(map(str, found)), writing))
    child.start()
    writing.close()
    try:
        status, tests = reading.recv()
    except EOFError:
        return f"(the process ended: {child.exitcode})"
    finally:
        child.join()
    if status not in (0, 1, 2):
        raise SystemExit(f"{fault.what}: pytest ended with {status}")
    return tests[0].removeprefix("tests/kernels/") if tests else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ref", help="plant them in the tree of this commit, not in the working tree")
    parser.add_argument("--only", default="", help="those whose description, place or tests hold this word")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    tree = copied(options.ref, BUILD / f"planted-{options.ref or 'here'}")
    tables = [
        importlib.import_module(path.stem).FAULTS for path in sorted(Path(__file__).parent.glob("mutations_*.py"))
    ]
    faults = [
        fault for table in tables for fault in table if options.only in f"{fault.what} {fault.where} {fault.tests}"
    ]
    module = tree / "site" / "penstock" / "_native.so"
    missed = 0
    for fault in faults:
        start, path = time.perf_counter(), file_with(tree, fault)
        sound = path.read_text()
        path.write_text(sound.replace(fault.text, fault.planted))
        try:
            shutil.copy(native(tree), module)
            found = failed_test(tree, fault)
        finally:
            path.write_text(sound)
        missed += found is None
        print(f"{found or 'MISSED'}\n    {fault.what} ({time.perf_counter() - start:.0f} s)", flush=True)
    print(f"{len(faults) - missed} of {len(faults)} found")
    raise SystemExit(missed > 0)


if __name__ == "__main__":
    main()
