"""`import penstock.kernels` needs torch only, and the bare name `kernels` belongs to somebody else."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, cwd: Path = ROOT, **environment: str) -> str:

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_needs_torch_only() -> None:
    # without anything installed but the standard library, torch with what torch itself imports, and penstock.kernels
    code = """
import sys
from importlib.machinery import PathFinder
blocked = ("numpy transformers tokenizers safetensors pyarrow scipy pandas datasets yaml typer rich matplotlib triton "
           "zstandard huggingface_hub penstock.engine").split()
class NotInstalled:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] in blocked else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = NotInstalled
import torch
from penstock.kernels import LSTM, Ragged, segment_pool
texts = [torch.randn(n, 4) for n in (2, 0, 3)]
batch = Ragged.from_lengths(torch.cat(texts), [2, 0, 3])
model = LSTM(4, 6, bidirectional=True, num_layers=2, dropout=0.5)
output, (h_n, c_n) = model(batch)
output.values.sum().backward()
print(tuple(output.values.shape), any(b in sys.modules for b in blocked))
"""
    assert python(code) == "(5, 12) False"


@pytest.mark.slow
def test_works_without_the_compiled_module() -> None:
    code = """
import sys
sys.modules["penstock._native"] = None
import torch
from penstock.kernels import LSTM, Ragged, dispatch
LSTM(4, 6, num_layers=2, dropout=0.5)(Ragged.from_lengths(torch.randn(5, 4), [2, 3]))
reasons = {(operation, name): reason for operation, name, reason in dispatch.status()}
assert all(reason is None for (_, name), reason in reasons.items() if name in ("torch", "reference")), reasons
print("ok")
"""
    assert python(code) == "ok"


def test_bare_name_is_empty_when_nobody_else_has_it(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path = [{str(ROOT)!r}] + [p for p in sys.path if "site-packages" not in p]
import kernels
assert not hasattr(kernels, "LSTM") and "torch" not in sys.modules
try:
    import kernels.lstm
except ModuleNotFoundError:
    print("empty")
"""
    assert python(code, tmp_path) == "empty"


@pytest.mark.slow
def test_bare_name_steps_aside(tmp_path: Path) -> None:
    package = tmp_path / "elsewhere" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from kernels.loader import get_kernel\n")
    (package / "loader.py").write_text("def get_kernel(): return 'the loader'\n")
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.path.append({str(tmp_path / "elsewhere")!r})
import penstock.kernels
import kernels
from kernels import get_kernel
import torch
print(get_kernel(), kernels.__file__ == {str(package / "__init__.py")!r}, kernels is not penstock.kernels)
"""
    assert python(code) == "the loader True True"


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not here")
@pytest.mark.slow
@pytest.mark.parametrize("first", ["transformers", "penstock"])
def test_transformers_beside_the_repository(first: str) -> None:
    ours = "from penstock.kernels import LSTM"
    theirs = "import transformers\nfrom transformers import BertModel, BertConfig"
    imports = [theirs, ours] if first == "transformers" else [ours, theirs]
    code = "import sys\nsys.path.insert(0, '')\n" + "\n".join(imports)
    code += "\nBertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))"
    code += "\nimport kernels; print(hasattr(kernels, 'LSTM'))"
    assert python(code) == "False"
