"""What an installed penstock-kernels must do where there is nothing but torch: run by cibuildwheel and by the tests."""

import importlib.metadata
import importlib.util

import torch

from penstock import _native
from penstock.kernels import LSTM, Ragged, segment_pool, use_backend

assert importlib.util.find_spec("transformers") is None, "this is to be tried where nothing but torch is installed"
assert importlib.util.find_spec("penstock.engine") is None
assert importlib.metadata.requires("penstock-kernels")[0].startswith("torch")

torch.manual_seed(0)
lengths = [5, 1, 0, 12]
batch = Ragged.from_lengths(torch.randn(sum(lengths), 16), lengths)
lstm = LSTM(16, 32, num_layers=2, bidirectional=True)
gradients = {}
for backend in ("cpu", "reference"):
    lstm.zero_grad()
    with use_backend(backend):
        hidden, _ = lstm(batch)
    segment_pool(hidden.values, hidden.cu_seqlens, "max").sum().backward()
    gradients[backend] = [parameter.grad.clone() for parameter in lstm.parameters()]
for ours, truth in zip(gradients["cpu"], gradients["reference"], strict=True):
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)
compiled = torch.compile(lambda values: lstm(batch.with_values(values))[0].values, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(batch.values), hidden.values, rtol=1e-4, atol=1e-5)
version = importlib.metadata.version("penstock-kernels")
print(f"penstock-kernels {version}, torch {torch.__version__}: {_native.__file__}")
