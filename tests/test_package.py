"""The distribution: what a wheel holds, and that it works outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_wheel_installs_and_runs_from_a_clean_place(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wheel_folder, target = tmp_path / "wheels", tmp_path / "site"
    flags = ["--no-deps", "--no-build-isolation", f"--config-settings=build-dir={tmp_path / 'build'}"]
    subprocess.run([*pip, "wheel", *flags, "-w", wheel_folder, ROOT], check=True, timeout=600)
    wheel = next(wheel_folder.glob("penstock-*.whl"))

    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"penstock"} == {top for top in tops if not top.endswith(".dist-info")}, "only `penstock` may be installed"
    assert any(name.endswith(("_native.so", ".so", ".pyd")) for name in names)
    assert "penstock/kernels/py.typed" in names
    assert not [name for name in names if "/results/" in name or name.endswith((".safetensors", ".parquet"))]

    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True, timeout=600)
    # -P and a path of our own: the checkout and its editable install stay out of sight
    script = (
        f"import sys; sys.meta_path = [f for f in sys.meta_path if 'skbc' not in type(f).__module__]; "
        f"sys.path.insert(0, {str(target)!r}); "
        "import penstock.kernels as k, penstock.engine.cli, torch; "
        f"assert k.__file__.startswith({str(target)!r}), k.__file__; "
        "y, _ = k.LSTM(3, 4)(k.Ragged.from_lengths(torch.randn(5, 3), [2, 3])); print(y.values.shape)"
    )
    result = subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "[5, 4]" in result.stdout
