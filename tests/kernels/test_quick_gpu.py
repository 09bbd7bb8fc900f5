"""One shape for each operation, backend and type on a GPU, against float64 there: the first that runs there, before
anything is timed. It needs neither the compiled extension nor another file, so that their absence costs nothing here.

Where PENSTOCK_REHEARSAL is set, the CPU stands in for the GPU (penstock.benchmarks.gpu.rehearsal).
"""

import os
from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from penstock.kernels import (
    LSTM,
    Ragged,
    bias_gelu,
    geglu,
    lstm_cell,
    residual_norm,
    rotary,
    segment_pool,
    use_backend,
    varlen_attention,
)

pytestmark = pytest.mark.gpu  # skipped, with the reason, where there is none

REHEARSED = "PENSTOCK_REHEARSAL" in os.environ
DEVICE = "cpu" if REHEARSED else "cuda"
HIDDEN = (16, 24) if REHEARSED else (256, 512)
BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of ||y - r|| / ||r||, gradients twice that
LENGTHS = [5, 0, 1, 17, 21, 9, 2] if REHEARSED else [5, 0, 1, 37, 64, 131, 2, 300]
TOKENS = sum(LENGTHS)

Draw = Callable[..., Tensor]
Case = tuple[tuple[Tensor, ...], list[Tensor]]  # results, and what they are differentiated by


def bounds(device: str) -> Tensor:
    return torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32, device=device)


def lstm(draw: Draw, hidden: int) -> Case:
    x = draw(TOKENS, 64)
    module = LSTM(64, hidden, bidirectional=True, device=x.device, dtype=x.dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * draw(*parameter.shape))
    y, (h_n, c_n) = module(Ragged(x, bounds(x.device), max(LENGTHS)))
    return (y.values, h_n, c_n), [x, *module.parameters()]


def cell(draw: Draw) -> Case:
    gates, c = draw(TOKENS, 4 * 256), draw(TOKENS, 256, at_least=torch.float32)
    return lstm_cell(gates, c), [gates, c]


def attention(draw: Draw, dropout: float) -> Case:
    inputs = [draw(TOKENS, 4, 64) for _ in range(3)]
    where = bounds(inputs[0].device)
    seed = torch.tensor(2**61 + 99, device=where.device)
    longest = max(LENGTHS)
    return (varlen_attention(*inputs, where, where, longest, longest, dropout_p=dropout, seed=seed),), inputs


def norm(draw: Draw, dropout: float) -> Case:
    x, residual, x_bias, weight, bias = inputs = [draw(TOKENS, 768), draw(TOKENS, 768), *(draw(768) for _ in range(3))]
    drop = {"dropout_p": dropout, "cu_seqlens": bounds(x.device), "seed": torch.tensor(2**61 + 99, device=x.device)}
    out = residual_norm(x, residual, weight, bias, x_bias=x_bias, **(drop if dropout else {}))
    return (out if isinstance(out, tuple) else (out,)), inputs


def gelu(draw: Draw) -> Case:
    inputs = [draw(TOKENS, 3072), draw(3072)]
    return (bias_gelu(*inputs),), inputs


def gated(draw: Draw) -> Case:
    inputs = [draw(TOKENS, 2304), draw(2304)]
    return (geglu(*inputs),), inputs


def turned(draw: Draw) -> Case:
    product = draw(TOKENS, 24, 64)
    angles = torch.arange(TOKENS, device=product.device)[:, None] * 0.01 ** (
        torch.arange(64, device=product.device) / 64
    )
    cos, sin = angles.cos().to(product.dtype), angles.sin().to(product.dtype)
    return rotary(product[:, :12], product[:, 12:], cos, sin), [product]


def pool(draw: Draw, mode: str) -> Case:
    values, scores = draw(TOKENS, 512), draw(TOKENS)
    given = [values, scores] if mode == "attention" else [values]
    out = segment_pool(values, bounds(values.device), mode, *given[1:], bidirectional=mode == "last")
    return (out,), given


CASES: dict[str, list[tuple[Callable[..., Case], tuple]]] = {
    "lstm": [(lstm, (hidden,)) for hidden in HIDDEN],
    "lstm_cell": [(cell, ())],
    "varlen_attention": [(attention, (0.1,)), (attention, (0.0,))],
    "residual_norm": [(norm, (0.1,)), (norm, (0.0,))],
    "bias_gelu": [(gelu, ())],
    "geglu": [(gated, ())],
    "rotary": [(turned, ())],
    "segment_pool": [(pool, ("max",)), (pool, ("mean",)), (pool, ("attention",))],
}


def check(backend: str, dtype: torch.dtype, case: Callable[..., Case], arguments: tuple) -> None:
    def run(name: str, device: str, to: torch.dtype) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int, at_least: torch.dtype = dtype) -> Tensor:
            stored = torch.randn(shape, generator=generator).to(torch.promote_types(dtype, at_least))
            return stored.to(device, torch.promote_types(to, at_least)).requires_grad_()

        with use_backend(name):
            outs, leaves = case(draw, *arguments)
        directions = [torch.randn(out.shape, generator=generator).to(dtype).to(device, out.dtype) for out in outs]
        return [*(out.detach() for out in outs), *torch.autograd.grad(outs, leaves, directions)]

    try:
        found = run(backend, DEVICE, dtype)
    except RuntimeError as error:
        if "cannot serve" not in str(error):
            raise
        pytest.skip(str(error))
    expected = run("reference", DEVICE, torch.float64)
    for place, (y, r) in enumerate(zip(found, expected, strict=True)):
        error = float((y.cpu().double() - r).norm() / r.norm())
        assert error <= 2 * BOUND[dtype], f"result {place} has an error of {error:.2e}"


# the operation is the mark's, so that the benchmark can switch one off, and the test's name's, so that its line says it
def _test(operation: str) -> Callable[..., None]:
    @pytest.mark.kernel(operation)
    @pytest.mark.parametrize(
        ("case", "arguments"), CASES[operation], ids=lambda value: str(getattr(value, "__name__", value))
    )
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=lambda dtype: str(dtype)[6:])
    @pytest.mark.parametrize("backend", ["cuda", "triton"] if operation == "lstm" else ["triton"])
    def test(backend: str, dtype: torch.dtype, case: Callable[..., Case], arguments: tuple) -> None:
        check(backend, dtype, case, arguments)

    return test


for _operation in CASES:
    globals()[f"test_{_operation}"] = _test(_operation)
