"""What stands between the large products, limited by memory: residual norm with dropout, bias and GELU, GEGLU, rotary
embedding, pooling.

The peers are torch's own modules, as they come and through torch.compile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.benchmarks.gpu import backends, floors
from penstock.benchmarks.gpu.attention import draw_lengths
from penstock.benchmarks.gpu.cells import COMPILING, checked, each, in_turn, survive
from penstock.benchmarks.gpu.context import PATIENCE, Context, WrongResultError, emit, key, reason
from penstock.benchmarks.gpu.timing import Call
from penstock.kernels import bias_gelu, geglu, residual_norm, rotary, segment_pool, use_backend

WIDTH, INNER, HEAD_DIM, POOLED, TOKENS, DROPOUT = 768, 3072, 64, 512, 65_536, 0.1
BOUND_OUTPUT, BOUND_GRADIENT = 1e-2, 2e-2  # of ||y - r|| / ||r|| in bf16, against float64


@dataclass
class Case:
    """One operation and what it is given.

    Attributes:
        ours: by penstock's operation, of the inputs. theirs: by torch's; None where it has nothing of the kind.
        inputs: in bf16 if they have a row for each token, else float32.
        tensors: (forward, training): tensors of the first input's size that are read or written at least.
    """

    operation: str
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor] | None
    inputs: list[Tensor]
    tensors: tuple[float, float]

    def calls(self, function: Callable[..., Tensor]) -> dict[str, Call]:
        def inference() -> Tensor:
            with torch.no_grad():
                return function(*self.inputs)

        with torch.no_grad():
            out = function(*self.inputs)
        grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        return {
            "inference": inference,
            "training": lambda: torch.autograd.grad(function(*self.inputs), self.inputs, grad_out),
        }

    def penstock(self, backend: str) -> Callable[..., Tensor]:
        def function(*inputs: Tensor) -> Tensor:
            with use_backend(backend):
                return self.ours(*inputs)

        return function


def cases(context: Context, tokens: int = TOKENS, device: torch.device | None = None) -> list[Case]:
    device = device or context.device
    width, inner, head_dim, pooled = (8, 12, 4, 8) if context.smoke else (WIDTH, INNER, HEAD_DIM, POOLED)
    lengths = draw_lengths(8, 60, 24) if context.smoke else draw_lengths(150, tokens)
    tokens = sum(lengths)
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    seed = torch.tensor(12345, device=device)
    torch.manual_seed(0)

    def rows(columns: int) -> Tensor:
        return torch.randn(tokens, columns, device=device).bfloat16().requires_grad_()

    def vector(columns: int) -> Tensor:
        return torch.randn(columns, device=device).requires_grad_()

    def norm(x: Tensor, residual: Tensor, x_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        drop: dict[str, Any] = {"dropout_p": DROPOUT, "cu_seqlens": bounds, "seed": seed}
        return residual_norm(x, residual, weight, bias, x_bias=x_bias, **drop)

    def plain_norm(x: Tensor, residual: Tensor, x_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x_bias, weight, bias = (each.bfloat16() for each in (x_bias, weight, bias))
        return F.layer_norm(residual + F.dropout(x + x_bias, DROPOUT), weight.shape, weight, bias)

    def plain_geglu(x: Tensor, bias: Tensor) -> Tensor:
        gate, value = (x + bias.bfloat16()).chunk(2, 1)
        return F.gelu(gate) * value

    angles = torch.randn(tokens, head_dim, device=device)
    cos, sin = angles.cos(), angles.sin()

    def turned(x: Tensor) -> Tensor:
        heads = x.unflatten(1, (-1, head_dim))
        return rotary(heads[:, :0], heads, cos, sin)[1]

    def plain_turned(x: Tensor) -> Tensor:
        heads = x.unflatten(1, (-1, head_dim))
        x1, x2 = heads.chunk(2, 2)
        return (heads * cos[:, None] + torch.cat((-x2, x1), 2) * sin[:, None]).bfloat16()

    norm_inputs = [rows(width), rows(width), vector(width), vector(width), vector(width)]
    gelu_inputs = [rows(inner), vector(inner)]
    return [
        Case("residual_norm", norm, plain_norm, norm_inputs, (3, 8)),
        Case("bias_gelu", bias_gelu, lambda x, bias: F.gelu(x + bias.bfloat16()), gelu_inputs, (2, 5)),
        Case("geglu", geglu, plain_geglu, gelu_inputs, (1.5, 4)),
        Case("rotary", turned, plain_turned, [rows(width)], (2, 4)),
        Case("segment_pool", lambda x: segment_pool(x, bounds, "max"), None, [rows(pooled)], (1, 2)),
    ]


def run(context: Context) -> None:
    problems = {case.operation: case for case in cases(context)}

    def measure(operation: str, seconds: float) -> None:
        _case(context, problems[operation], seconds)

    each(context, [{"kind": "rowwise", "operation": operation} for operation in problems], measure)


def _case(context: Context, case: Case, seconds: float) -> None:
    why: dict[str, Any] = {}
    functions: dict[str, Callable[..., Tensor]] = {}
    for backend, unfit in backends.contestants(case.operation, context).items():
        if unfit:
            why[f"penstock {backend}"] = {"why": unfit}
        else:
            functions[f"penstock {backend}"] = case.penstock(backend)
    functions, errors, wrong = checked(context, case.operation, functions, lambda name, _: check(name, case))
    if case.theirs is not None:
        functions["torch"] = case.theirs
        if not context.smoke:
            functions["torch.compile"] = torch.compile(case.theirs)
    _time(context, case, functions, why | wrong, errors, seconds)


def _time(
    context: Context,
    case: Case,
    functions: dict[str, Callable[..., Tensor]],
    why: dict[str, Any],
    errors: dict[str, dict[str, float]],
    seconds: float,
) -> None:
    calls = {}
    for name, function in functions.items():
        context.at(key(case.operation, name), COMPILING if "compile" in name else PATIENCE)
        try:
            calls[name] = case.calls(function)
        except Exception as failure:  # torch.compile needs a compiler and more
            why[name] = {"why": reason(failure)}
            survive(context)
    for phase, tensors in zip(("inference", "training"), case.tensors, strict=True):
        timed = in_turn(context, case.operation, {name: both[phase] for name, both in calls.items()}, seconds / 2)
        size = case.inputs[0].numel() * case.inputs[0].element_size()
        floor = floors.Work(0.0, float(tensors * size)).seconds(context.rate("bf16"), context.rate("bytes"))
        for name, figures in timed.items():
            if "ms" in figures:
                figures["of_floor"] = 1e3 * floor / figures["ms"]
            if name in errors:
                figures["error"] = errors[name]
        tokens = case.inputs[0].shape[0]
        row = {"operation": case.operation, "tokens": tokens, "phase": phase, "floor_ms": 1e3 * floor}
        emit(kind="rowwise", **row, contestants=timed | why)


def check(name: str, case: Case) -> dict[str, float]:
    """The errors of one of ours.

    Raises:
        WrongResultError: one of them is out of bounds, at the very shape that would be timed.
    """

    def results(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
        out = function(*inputs)
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out)
        return [out.detach(), *torch.autograd.grad(out, inputs, direction)]

    found = results(case.penstock(name.removeprefix("penstock ")), case.inputs)
    true = results(case.penstock("reference"), [x.detach().double().requires_grad_() for x in case.inputs])
    errors = {}
    for place, (y, r) in enumerate(zip(found, true, strict=True)):
        what = f"gradient {place}" if place else "out"
        errors[what] = float((y.double() - r).norm() / r.norm())
        if not errors[what] <= (BOUND_GRADIENT if place else BOUND_OUTPUT):
            raise WrongResultError(f"{name}, {case.operation}: {what} has an error of {errors[what]:.2e}")
    return errors
