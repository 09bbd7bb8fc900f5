"""The gradient of a linear layer's weight on a CPU, at MiniLM's and BERT's shapes: penstock against torch.

`forward` is torch's product of the same size for the layer's output, whose operands need no transposing.
"""

from collections.abc import Iterator
from functools import partial

import torch

from penstock.benchmarks.suite import OURS, Case, Contestant, Options, shapes_of
from penstock.kernels import dispatch

TOKENS = 4096
SHAPES: list[tuple[int, ...]] = [
    (TOKENS, *shape) for shape in [(1152, 384), (384, 384), (1536, 384), (384, 1536), (3072, 768)]
]


def cases(options: Options) -> Iterator[Case]:
    for shape in shapes_of("N,O,I", SHAPES, SHAPES, options):
        for dtype in options.dtypes or ("bfloat16",):
            work = 2.0 * shape["N"] * shape["O"] * shape["I"]
            yield Case("weight gradient", shape, dtype, partial(make, shape, dtype), work)


def make(shape: dict[str, int], dtype: str, peers: bool) -> dict[str, Contestant | str]:
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    sizes = (shape["N"], shape["O"]), (shape["N"], shape["I"]), (shape["O"], shape["I"])
    grad_out, x, weight = (torch.randn(size, generator=generator).to(kind) for size in sizes)
    backend = dispatch.choose("linear", device_type="cpu", dtype=kind)
    contestants: dict[str, Contestant | str] = {
        OURS: lambda: torch.ops.penstock.linear_backward(grad_out, x, False, backend)
    }
    if peers:
        contestants["torch"] = lambda: (grad_out.t() @ x).float()
        contestants["torch, forward"] = lambda: x @ weight.t()
    return contestants
