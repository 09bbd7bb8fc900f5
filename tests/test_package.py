"""The distribution: that a plain `pip install .` works, what it installs, and what a source distribution holds."""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
from pathlib import Path

import pytest
from native_building import UNOPTIMIZED

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def environment_of_a_user() -> dict[str, str]:
    """Without the tools of this environment: CMake and ninja are the machine's own, or what pip brings. The compiler
    optimizes nothing; what `make install` builds is optimized."""
    here = {str(Path(sys.executable).parent), str(Path(sys.executable).resolve().parent), str(ROOT / ".venv" / "bin")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    path = [place for place in os.environ["PATH"].split(os.pathsep) if place not in here]
    return kept | UNOPTIMIZED | {"PATH": os.pathsep.join(path), "COLUMNS": "200"}


@pytest.mark.slow
def test_a_plain_pip_install_works_outside_the_checkout(tmp_path: Path) -> None:
    """With pip's build isolation, as a user's: only the dependencies, gigabytes of them, are this environment's."""
    place = tmp_path / "environment"
    venv.create(place, with_pip=True)
    environment = environment_of_a_user()

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{command}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    before = sorted(path.name for path in ROOT.iterdir())
    run(place / "bin" / "pip", "--disable-pip-version-check", "install", "--no-deps", ROOT)
    assert sorted(path.name for path in ROOT.iterdir()) == before, "the checkout is left as it was"

    (site,) = (place / "lib").glob("python*/site-packages")
    (installed,) = importlib.metadata.distributions(name="penstock", path=[str(site)])
    names = [str(file) for file in installed.files or ()]
    tops = {name.split("/")[0] for name in names if not name.startswith("../../../bin/")}
    assert {"penstock"} == {top for top in tops if not top.endswith(".dist-info")}, "only `penstock` may be installed"
    assert any(name.startswith("penstock/_native.") and name.endswith((".so", ".pyd")) for name in names)
    assert {"penstock/py.typed", "penstock/kernels/py.typed", "penstock/_native.pyi"} <= set(names)
    assert not [name for name in names if "/results/" in name or name.endswith((".safetensors", ".parquet"))]

    dependencies = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    python, penstock = place / "bin" / "python", place / "bin" / "penstock"
    script = (
        "import penstock.kernels as k, penstock.engine.cli, penstock._native as native, torch; "
        "print(k.__file__); print(penstock.engine.__file__); print(native.__file__); "
        "y, _ = k.LSTM(3, 4)(k.Ragged.from_lengths(torch.randn(5, 3), [2, 3])); print(y.values.shape)"
    )
    *files, shape = run(python, "-c", script).splitlines()[-4:]
    assert all(Path(file).is_relative_to(site) for file in files), files
    assert "[5, 4]" in shape
    for command in ([penstock], [python, "-m", "penstock.engine.cli"]):
        assert "prepare" in run(*command, "--help")
    doctor = run(penstock, "doctor")
    assert VERSION in doctor
    assert "compiled core" in doctor


def test_a_source_distribution_holds_what_it_takes(tmp_path: Path) -> None:
    build = pytest.importorskip("scikit_build_core.build", reason="scikit-build-core is not here")
    script = (
        f"import os; os.chdir({str(ROOT)!r}); import {build.__name__} as b; print(b.build_sdist({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=300)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    needed = ["CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "PKG-INFO"]
    folders = [path for name in ("cmake", "csrc", "engine", "kernels", "tests") for path in (ROOT / name).rglob("*")]
    made = {"__pycache__", ".pytest_cache", ".hypothesis"}
    needed += [path.relative_to(ROOT).as_posix() for path in folders if path.is_file() and not made & set(path.parts)]
    assert not [name for name in needed if name not in held]
    assert not [name for name in held if name.startswith((".venv", "build/")) or name.endswith((".so", ".parquet"))]
