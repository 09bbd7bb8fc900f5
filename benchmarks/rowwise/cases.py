"""Row-wise operations on a CPU, forward and backward, beside the composition of torch's own that people write.

N tokens of C numbers; rotary embeddings turn C / 64 heads of 64 (one head of C where 64 does not divide it), pooling
takes sequences of up to 64 tokens. The work is the bytes that must be read and written once.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock import kernels
from penstock.benchmarks.suite import DTYPES, OURS, Case, Contestant, Options, shapes_of

SHAPES: list[tuple[int, ...]] = [(4096, 384), (4096, 768), (16384, 768)]
SEQUENCE = 64

Pair = tuple[Callable[..., object], Callable[..., object], list[Tensor]]  # ours, torch's, what both get


def residual_norm(tokens: int, width: int, dtype: torch.dtype) -> Pair:
    x, residual = torch.randn(2, tokens, width).to(dtype).unbind()
    weight, bias = torch.ones(width, dtype=dtype), torch.zeros(width, dtype=dtype)

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x + residual, (width,), weight, bias)

    return kernels.residual_norm, plain, [x, residual, weight, bias]


def bias_gelu(tokens: int, width: int, dtype: torch.dtype) -> Pair:
    return (
        kernels.bias_gelu,
        lambda x, bias: F.gelu(x + bias),
        [
            torch.randn(tokens, width).to(dtype),
            torch.zeros(width, dtype=dtype),
        ],
    )


def geglu(tokens: int, width: int, dtype: torch.dtype) -> Pair:
    def plain(x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return F.gelu(left) * right

    return kernels.geglu, plain, [torch.randn(tokens, 2 * width).to(dtype)]


def rotary(tokens: int, width: int, dtype: torch.dtype) -> Pair:
    size = 64 if width % 64 == 0 else width
    q, k = torch.randn(2, tokens, width // size, size).to(dtype).unbind()
    angles = torch.randn(tokens, size // 2).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    wide_cos, wide_sin = (x[:, None].to(dtype) for x in (cos, sin))

    def turned(x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * wide_cos + torch.cat([-right, left], -1) * wide_sin

    return lambda q, k: kernels.rotary(q, k, cos, sin), lambda q, k: (turned(q), turned(k)), [q, k]


def mean_pool(tokens: int, width: int, dtype: torch.dtype) -> Pair:
    lengths = torch.tensor([SEQUENCE] * (tokens // SEQUENCE) + [tokens % SEQUENCE] * bool(tokens % SEQUENCE))
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()

    def plain(x: Tensor) -> Tensor:
        return torch.segment_reduce(x, "mean", lengths=lengths)

    return lambda x: kernels.segment_pool(x, bounds, "mean"), plain, [torch.randn(tokens, width).to(dtype)]


OPERATIONS = {
    "residual norm": residual_norm,
    "bias GELU": bias_gelu,
    "GEGLU": geglu,
    "rotary": rotary,
    "mean pooling": mean_pool,
}
# Arrays of N x C that forward reads and writes, and backward: what must pass the memory once.
_ARRAYS = {"residual norm": 6, "bias GELU": 5, "GEGLU": 8, "rotary": 8, "mean pooling": 2}


def cases(options: Options) -> Iterator[Case]:
    for what, operation in OPERATIONS.items():
        for shape in shapes_of("N,C", SHAPES, SHAPES[:1], options):
            for dtype in options.dtypes or DTYPES:
                size = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
                work = float(_ARRAYS[what] * shape["N"] * shape["C"] * size)
                yield Case(what, shape, dtype, partial(make, operation, shape, dtype), work, "bytes")


def make(
    operation: Callable[[int, int, torch.dtype], Pair], shape: dict[str, int], dtype: str, peers: bool
) -> dict[str, Contestant | str]:
    torch.manual_seed(0)
    ours, plain, inputs = operation(shape["N"], shape["C"], getattr(torch, dtype))
    inputs = [x.requires_grad_() for x in inputs]
    with torch.no_grad():
        result = plain(*inputs)
    grads = [torch.randn_like(out) for out in (result if isinstance(result, tuple) else (result,))]

    def run(function: Callable[..., object]) -> None:
        out = function(*inputs)
        torch.autograd.grad(out if isinstance(out, tuple) else (out,), inputs, grads)

    chosen = {OURS: ours, **({"torch": plain} if peers else {})}
    return {name: partial(run, function) for name, function in chosen.items()}
