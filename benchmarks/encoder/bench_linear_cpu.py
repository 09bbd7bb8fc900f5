"""The gradient of a linear layer's weight on a CPU, in bfloat16, at MiniLM's and BERT's shapes: penstock against torch.

Each round times every contestant once, in turn, so that a host which changes its speed changes it for all. The test's
own statistics are penstock's; `extra_info` holds the contestants' medians and quartiles in GFLOP/s. `forward` is what
torch's product of the same size for the layer's output reaches, whose operands need no transposing.

    penstock bench kernels --peers --out linear.json
    pytest --benchmark-only -o python_files='bench_*.py' benchmarks/encoder
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from penstock.kernels import dispatch

TOKENS, ROUNDS = 4096, 25
SHAPES = [(1152, 384), (384, 384), (1536, 384), (384, 1536), (3072, 768)]


def rate(times: list[float], work: float) -> dict[str, float]:
    high, middle, low = (work / t / 1e9 for t in statistics.quantiles(times, n=4))
    return {"median_gflops": middle, "lower_quartile": low, "upper_quartile": high}


@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
@pytest.mark.parametrize("peers", [False, True], ids=["alone", "peers"])
def test_weight_gradient(benchmark, out_features, in_features, peers):
    generator = torch.Generator().manual_seed(0)
    shapes = (TOKENS, out_features), (TOKENS, in_features), (out_features, in_features)
    grad_out, x, weight = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    backend = dispatch.choose("linear", device_type="cpu", dtype=torch.bfloat16)
    contestants: dict[str, Callable[[], object]] = {
        "penstock": lambda: torch.ops.penstock.linear_weight_gradient(grad_out, x, backend),
    }
    if peers:
        contestants["torch"] = lambda: (grad_out.t() @ x).float()
        contestants["forward"] = lambda: x @ weight.t()
    times: dict[str, list[float]] = {name: [] for name in contestants}

    def run(names: list[str]) -> None:
        for name in names:
            start = time.perf_counter()
            contestants[name]()
            times[name].append(time.perf_counter() - start)

    others = [name for name in contestants if name != "penstock"]
    benchmark.pedantic(run, (["penstock"],), setup=lambda: run(others), rounds=ROUNDS, warmup_rounds=1)
    work = 2.0 * TOKENS * out_features * in_features
    benchmark.extra_info |= {
        "threads": torch.get_num_threads(),
        "backend": backend,
        "contestants": {name: rate(values[1:], work) for name, values in times.items()},
    }
