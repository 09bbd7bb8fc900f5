"""What CONTRIBUTING.md says of adding an operation works as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CONTRIBUTING = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text()
TRIAL = """
x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
assert torch.autograd.gradcheck(swish, (x, 1.5))
torch.library.opcheck(torch.ops.penstock.swish.default, (x, 1.5, "reference"))
torch.testing.assert_close(torch.compile(swish, backend="aot_eager", fullgraph=True)(x, 2.0), x * torch.sigmoid(2 * x))
torch.func.jvp(swish, (x,), (x,))
print("tried")
"""


@pytest.mark.slow
def test_the_operation_that_it_adds_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("penstock.kernels.operation")
    (code,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
    command = [sys.executable, "-c", code + TRIAL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "tried" in done.stdout
