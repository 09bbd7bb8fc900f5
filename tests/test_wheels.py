"""What is released: penstock-kernels, which needs torch only and no compiler, and penstock, pure Python, upon it."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from native_building import UNOPTIMIZED

from penstock.engine.cli import doctor

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "packaging" / "kernels"
WITH_OUR_TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
PENSTOCK, ALONE = (tomllib.loads((place / "pyproject.toml").read_text())["project"] for place in (ROOT, KERNELS))


def test_both_are_of_one_version_and_ask_for_the_same() -> None:
    assert ALONE["version"] == PENSTOCK["version"]
    assert ALONE["requires-python"] == PENSTOCK["requires-python"]
    assert ALONE["dependencies"] == [need for need in PENSTOCK["dependencies"] if need.startswith("torch")]
    assert ALONE["optional-dependencies"]["triton"] == PENSTOCK["optional-dependencies"]["triton"]


CHECKOUT, RELEASE = "penstock/_native.cpython-311-x86_64-linux-gnu.so", "penstock/engine/__init__.py"
INSTALLED = {
    "a checkout": (CHECKOUT, None, []),
    "a release": (RELEASE, "2.0", [(True, "2.0")]),
    "a checkout and the kernels": (CHECKOUT, "2.0", [(False, "uninstall both")]),
    "a checkout and other kernels": (CHECKOUT, "1.0", [(False, "uninstall both")]),
    "a release and other kernels": (RELEASE, "1.0", [(False, "needs 2.0")]),
}


@pytest.mark.parametrize(("file", "kernels", "said"), INSTALLED.values(), ids=INSTALLED)
def test_the_doctor_says_what_lies_over_what(
    file: str, kernels: str | None, said: list[tuple[bool, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in {"penstock": "2.0", "penstock_kernels": kernels}.items():
        if version is not None:
            information = tmp_path / f"{name}-{version}.dist-info"
            information.mkdir()
            (information / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
            (information / "RECORD").write_text(f"{file},,\n")
    monkeypatch.syspath_prepend(tmp_path)
    checks = list(doctor.kernels_alone())
    assert [what for what, _, _ in checks] == ["penstock-kernels"] * len(said)
    for (_, fine, detail), (expected, words) in zip(checks, said, strict=True):
        assert fine is expected
        assert words in detail


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    told = os.environ | environment
    done = subprocess.run(command, cwd=cwd, env=told, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def backend(call: str, project: Path) -> None:
    """Has scikit-build-core make something of a project, with the tools of this environment. The compiler optimizes
    nothing, as in tests/test_package.py."""
    code = f"import scikit_build_core.build as backend; backend.{call}"
    told = {"PENSTOCK_CUDA": "OFF", **UNOPTIMIZED}
    run(sys.executable, "-c", code, cwd=project, PATH=WITH_OUR_TOOLS, **told)


def unpacked_sdist(project: Path, place: Path) -> Path:
    backend(f"build_sdist({str(place)!r})", project)
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(place, filter="data")
    return place / archive.name.removesuffix(".tar.gz")


def requirements(sdist: Path) -> list[str]:
    lines = (sdist / "PKG-INFO").read_text().split("\n\n")[0].splitlines()
    return [line.split(": ")[1] for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line]


@pytest.mark.slow
def test_source_distributions_say_what_they_need(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core.build", reason="scikit-build-core is not here")
    for place in (penstock := tmp_path / "penstock", alone := tmp_path / "alone"):
        place.mkdir()
    released = unpacked_sdist(ROOT, penstock)
    assert requirements(released) == [*PENSTOCK["dependencies"], f"penstock-kernels=={PENSTOCK['version']}"]
    kernels = unpacked_sdist(KERNELS, alone)
    assert requirements(kernels) == ALONE["dependencies"]
    for folder in ("cmake", "csrc", "kernels"):
        ours = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts}
        assert ours == {path.relative_to(kernels) for path in (kernels / folder).rglob("*")}
    assert not [path for path in kernels.rglob("*") if path.is_symlink()], "the links led out of the distribution"


def distributions(name: str) -> Iterator[importlib.metadata.Distribution]:
    """An installed distribution and all that it needs."""
    from packaging.requirements import Requirement

    waiting, seen = [name], set()
    while waiting:
        distribution = importlib.metadata.distribution(waiting.pop())
        if distribution.name not in seen:
            seen.add(distribution.name)
            yield distribution
            needs = map(Requirement, distribution.requires or ())
            waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


class Environment:
    """A fresh one without a compiler, in which this environment's torch, or all of its packages, can be imported."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.folder, self.python = folder, folder / "bin" / "python"
        (self.site,) = (folder / "lib").glob("python*/site-packages")
        assert not any(shutil.which(name, path=str(folder / "bin")) for name in ("cc", "c++", "gcc", "clang", "cmake"))

    def __call__(self, *command: str | Path) -> str:
        clean = {name: "" for name in os.environ if name.startswith(("PYTHON", "VIRTUAL_ENV", "CC", "CXX"))}
        return run(*command, cwd=self.folder, **clean, PATH=str(self.folder / "bin"), COLUMNS="200")

    def install(self, wheel: Path) -> None:
        self(self.python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel)

    def link(self, name: str) -> None:
        for distribution in distributions(name):
            for entry in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                if not (self.site / entry).exists():
                    (self.site / entry).symlink_to(Path(str(distribution.locate_file(entry))).resolve())

    def check_types(self, program: str) -> None:
        """mypy finds in a user's program the errors that its comments announce, and no other."""
        (self.folder / "user.py").write_text(program)
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", self.python]
        done = subprocess.run([*command, "user.py"], cwd=self.folder, capture_output=True, text=True, timeout=1200)
        announced = [
            f"user.py:{number}: error: {line.split('# ')[1]}"
            for number, line in enumerate(program.splitlines(), 1)
            if "# " in line
        ]
        said = [line for line in done.stdout.splitlines() if ": error:" in line]
        assert len(said) == len(announced), done.stdout + done.stderr
        for line, expected in zip(said, announced, strict=True):
            assert line.startswith(expected)


USES_KERNELS = """from penstock.kernels import LSTM, Ragged
from penstock.kernels import Lstm  # Module "penstock.kernels" has no attribute "Lstm"
size: int = LSTM(3, 4).hidden_size
text: str = LSTM(3, 4).hidden_size  # Incompatible types in assignment (expression has type "int"
def lengths(batch: Ragged) -> list[int]: return [int(length) for length in batch.lengths]
"""
USES_ENGINE = """from penstock.engine.training.trained import TrainedRun
right = TrainedRun.open("run")
wrong: int = TrainedRun.open("run")  # Incompatible types in assignment (expression has type "TrainedRun"
"""


@pytest.mark.slow
def test_wheels_install_without_a_compiler_and_share_no_file(tmp_path: Path) -> None:
    for tool in ("scikit_build_core", "auditwheel", "mypy"):
        pytest.importorskip(tool, reason=f"{tool} is not here")
    for place in (released := tmp_path / "penstock", alone := tmp_path / "alone", wheels := tmp_path / "wheels"):
        place.mkdir()
    backend(f"build_wheel({str(wheels)!r})", unpacked_sdist(ROOT, released))
    (penstock,) = wheels.glob("*.whl")
    assert penstock.name.endswith("-py3-none-any.whl")

    backend(f"build_wheel({str(alone)!r})", unpacked_sdist(KERNELS, alone))
    (built,) = alone.glob("*.whl")
    repair = (sys.executable, "-m", "auditwheel", "repair", "-w", wheels, built)
    run(*repair, cwd=tmp_path, PATH=WITH_OUR_TOOLS)  # it looks for patchelf
    (kernels,) = wheels.glob("penstock_kernels*.whl")
    assert "manylinux" in kernels.name, "any Linux that is not older than this one may install it"

    held = {
        wheel: {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        for wheel in (penstock, kernels)
    }
    assert not held[penstock] & held[kernels]
    ours = {
        f"penstock/{path.relative_to(ROOT).as_posix()}"
        for folder in ("engine", "kernels", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".typed")
    }
    assert ours <= held[penstock] | held[kernels]
    assert {"penstock/py.typed", "penstock/_native.pyi", "penstock/kernels/py.typed"} <= held[kernels]
    assert "penstock/engine/py.typed" in held[penstock]
    assert not [name for name in held[penstock] if name.startswith("penstock/kernels") or name.endswith(".so")]

    environment = Environment(tmp_path / "environment")
    environment.install(kernels)
    environment.link("torch")
    assert "No broken requirements" in environment(environment.python, "-m", "pip", "check")
    assert f"penstock-kernels {ALONE['version']}" in environment(environment.python, KERNELS / "smoke.py")

    environment.check_types(USES_KERNELS)

    environment.install(penstock)
    for need in PENSTOCK["dependencies"]:
        environment.link(need.split(">=")[0])
    assert "No broken requirements" in environment(environment.python, "-m", "pip", "check")
    assert "prepare" in environment(environment.folder / "bin" / "penstock", "--help")
    printed = environment(environment.folder / "bin" / "penstock", "doctor")
    assert "penstock-kernels" in printed
    assert "compiled core" in printed
    environment.check_types(USES_ENGINE)
