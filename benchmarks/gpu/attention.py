"""Attention within ragged sequences, head_dim 64, against FlashAttention 2 as torch carries it, and padded SDPA."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from penstock.benchmarks.gpu import backends, floors
from penstock.benchmarks.gpu.cells import checked, each, in_turn
from penstock.benchmarks.gpu.context import Context, WrongResultError, emit, reason
from penstock.benchmarks.gpu.timing import Call
from penstock.kernels import use_backend, varlen_attention
from penstock.kernels.attention.tiles import deterministic as without_atomics

HEADS, HEAD_DIM, LONGEST, TOKENS = 12, 64, 512, 65_536
MEANS, DROPOUTS = (150, 400), (0.0, 0.1)
BOUND_OUTPUT, BOUND_GRADIENT = 1e-2, 2e-2  # of ||y - r|| / ||r|| in bf16, against float64
_CHECKED = 6  # sequences that are compared with the reference
_GROUPS = 8  # batches of like length into which the padded contestants' sequences are sorted


def draw_lengths(mean: float, tokens: int, longest: int = LONGEST, seed: int = 0) -> list[int]:
    """Log-normal as texts are, cut at 512, their mean as close to `mean` as that allows; about `tokens` in all."""
    generator = torch.Generator().manual_seed(seed)
    count = max(_CHECKED, round(tokens / mean))
    normal = torch.randn(count, generator=generator) * 0.6
    low, high = 1.0, 100.0 * longest
    for _ in range(60):  # the median that gives this mean after cutting
        middle = math.sqrt(low * high)
        lengths = (normal.exp() * middle).round().clamp(1, longest)
        low, high = (middle, high) if float(lengths.mean()) < mean else (low, middle)
    return [int(length) for length in lengths]


@dataclass
class Problem:
    """Queries, keys and values (tokens, heads, head_dim) in bf16, their gradients' cotangent, and the sequences."""

    lengths: list[int]
    inputs: list[Tensor]
    grad_out: Tensor
    bounds: Tensor
    dropout: float

    @classmethod
    def draw(cls, lengths: list[int], dropout: float, heads: int, device: torch.device) -> "Problem":
        torch.manual_seed(0)
        tokens = sum(lengths)
        *inputs, grad_out = (torch.randn(tokens, heads, HEAD_DIM, device=device).bfloat16() for _ in range(4))
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(lengths, [x.requires_grad_() for x in inputs], grad_out, bounds, dropout)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def calls(self, forward: Callable[[], Tensor]) -> dict[str, Call]:
        """A call for inference and one for training, gradients taken by autograd."""

        def inference() -> Tensor:
            with torch.no_grad():
                return forward()

        return {
            "inference": inference,
            "training": lambda: torch.autograd.grad(forward(), self.inputs, self.grad_out),
        }

    def penstock(self, backend: str) -> dict[str, Call]:
        seed = torch.tensor(12345, device=self.grad_out.device)

        def forward() -> Tensor:
            with use_backend(backend):
                return self.attend(*self.inputs, self.bounds, self.longest, seed)

        return self.calls(forward)

    def two_kernels(self) -> dict[str, Call]:
        """Our Triton's training with seven products in two kernels, where it would take one with five."""
        from penstock.kernels.attention import triton

        training = self.penstock("triton")["training"]

        def call() -> Any:
            before, triton._PROGRAMS = triton._PROGRAMS, 1 << 62
            try:
                return training()
            finally:
                triton._PROGRAMS = before

        return {"training": call}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, seed: Tensor) -> Tensor:
        return varlen_attention(q, k, v, bounds, bounds, longest, longest, dropout_p=self.dropout, seed=seed)

    def flash(self, deterministic: bool = False) -> dict[str, Call]:
        """FlashAttention 2 by torch's private operators, which alone have dropout with cu_seqlens.

        Args:
            deterministic: without atomics in its backward, as ours is; inference is the same and not measured again.
        """
        q, k, v = (x.detach() for x in self.inputs)
        where = (self.bounds, self.bounds, self.longest, self.longest, self.dropout, False)

        def forward() -> tuple[Tensor, ...]:
            return torch.ops.aten._flash_attention_forward(q, k, v, *where, False)

        def training() -> tuple[Tensor, ...]:
            out, lse, state, unused, _ = forward()
            with without_atomics() if deterministic else contextlib.nullcontext():
                return torch.ops.aten._flash_attention_backward(self.grad_out, q, k, v, out, lse, *where, state, unused)

        return {"training": training} if deterministic else {"inference": forward, "training": training}

    def cudnn(self) -> dict[str, Call]:
        """cuDNN on the ragged batch by torch's private operators, its dropout included.

        Its backward is left out where torch itself does not use it, as neither 2.11 nor 2.13 does: it took head_dim for
        the longest sequence and wrote behind its memory (pytorch issue 186142), which ends the process.
        """
        from torch.nn.attention import varlen

        q, k, v = (x.detach() for x in self.inputs)
        where = (self.bounds, self.bounds, self.longest, self.longest)

        def forward() -> tuple[Any, ...]:
            attend = torch.ops.aten._cudnn_attention_forward
            return attend(q, k, v, None, *where, True, self.dropout, False, False)

        def training() -> tuple[Tensor, ...]:
            out, lse, _, _, _, _, seed, offset, _ = forward()
            given = (self.grad_out, q, k, v, out, lse, seed, offset, None, *where, self.dropout, False)
            return torch.ops.aten._cudnn_attention_backward(*given)

        uses = getattr(varlen, "_should_use_cudnn", lambda index: False)
        safe = self.bounds.is_cuda and uses(self.bounds.device.index or 0)
        return {"inference": forward, "training": training} if safe else {"inference": forward}

    def varlen(self) -> dict[str, Call]:
        """torch.nn.attention.varlen: no dropout."""
        from torch.nn.attention.varlen import varlen_attn

        if self.dropout:
            raise ValueError("it has no dropout")
        longest = self.longest
        return self.calls(lambda: varlen_attn(*self.inputs, self.bounds, self.bounds, longest, longest))

    def padded(self, backend: SDPBackend) -> dict[str, Call]:
        """SDPA over batches of like length, each padded to its longest beforehand, with a mask."""
        groups = [_Group(self, rows) for rows in self._groups()]

        def inference() -> None:
            with torch.no_grad(), sdpa_kernel(backend):
                for group in groups:
                    group.forward(self.dropout)

        def training() -> None:
            with sdpa_kernel(backend):
                for group in groups:
                    torch.autograd.grad(group.forward(self.dropout), group.inputs, group.grad_out)

        return {"inference": inference, "training": training}

    def _groups(self) -> list[list[int]]:
        """Sequences of like length together, about as many tokens in each group."""
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        ends = list(accumulate(self.lengths[row] for row in order))
        groups: list[list[int]] = [[] for _ in range(_GROUPS)]
        for row, end in zip(order, ends, strict=True):
            groups[min(_GROUPS - 1, end * _GROUPS // (ends[-1] + 1))].append(row)
        return [group for group in groups if group]


class _Group:
    """Some of a problem's sequences, (batch, heads, length, head_dim), a multiple of 16 long, and their mask."""

    def __init__(self, problem: Problem, rows: list[int]) -> None:
        longest = -(-max(problem.lengths[row] for row in rows) // 16) * 16
        self.inputs = [self._pad(x.detach(), problem, rows, longest).requires_grad_() for x in problem.inputs]
        self.grad_out = self._pad(problem.grad_out, problem, rows, longest)
        device = problem.grad_out.device
        lengths = torch.tensor([problem.lengths[row] for row in rows], device=device)
        valid = torch.arange(longest, device=device) < lengths[:, None]
        self.mask = valid[:, None, None, :]  # broadcast: a mask written out would cost more than attention

    @staticmethod
    def _pad(x: Tensor, problem: Problem, rows: list[int], longest: int) -> Tensor:
        parts = x.split(problem.lengths)
        out = x.new_zeros(len(rows), longest, *x.shape[1:])
        for place, row in enumerate(rows):
            out[place, : problem.lengths[row]] = parts[row]
        return out.transpose(1, 2)

    def forward(self, dropout: float) -> Tensor:
        return F.scaled_dot_product_attention(*self.inputs, attn_mask=self.mask, dropout_p=dropout)


def run(context: Context) -> None:
    # with dropout first: that is how encoders train
    grid = [(mean, dropout) for mean in MEANS for dropout in reversed(DROPOUTS)]
    cells = [{"kind": "attention", "mean": mean, "dropout": dropout} for mean, dropout in grid]
    each(context, cells, partial(_cell, context))


def _cell(context: Context, mean: int, dropout: float, seconds: float) -> None:
    lengths = draw_lengths(4, 24, 16) if context.smoke else draw_lengths(mean, TOKENS)
    problem = Problem.draw(lengths, dropout, 2 if context.smoke else HEADS, context.device)
    fit, unfit = [], {}
    for backend, reason_ in backends.contestants("varlen_attention", context).items():
        if reason_:
            unfit[f"penstock {backend}"] = {"why": reason_}
        else:
            fit.append(f"penstock {backend}")
    right, errors, wrong = checked(
        context, "varlen_attention", dict.fromkeys(fit), lambda name, _: check(name, problem)
    )
    ours = {name: problem.penstock(name.removeprefix("penstock ")) for name in right}
    if "penstock triton" in ours and not context.smoke:
        ours["penstock triton, two backward kernels"] = problem.two_kernels()
    measure(context, problem, mean, ours, unfit | wrong, errors, seconds)


def peers(problem: Problem) -> tuple[dict[str, dict[str, Call]], dict[str, Any]]:
    """{name: its calls} of what torch offers, and {name: {"why": ...}} of what cannot serve such a problem."""
    makers = {
        "flash 2": problem.flash,
        "flash 2 deterministic": lambda: problem.flash(deterministic=True),
        "cudnn varlen": problem.cudnn,
        "varlen_attn": problem.varlen,
        "cudnn padded": lambda: problem.padded(SDPBackend.CUDNN_ATTENTION),
        "efficient padded": lambda: problem.padded(SDPBackend.EFFICIENT_ATTENTION),
    }
    calls, why = {}, {}
    for name, make in makers.items():
        try:
            calls[name] = make()
        except (ValueError, ImportError) as failure:
            why[name] = {"why": reason(failure)}
    return calls, why


def measure(
    context: Context,
    problem: Problem,
    mean: int,
    ours: dict[str, dict[str, Call]],
    why: dict[str, Any],
    errors: dict[str, dict[str, float]],
    seconds: float,
    kind: str = "attention",
) -> None:
    """One row for inference, one for training."""
    theirs, unfit = peers(problem)
    heads = problem.grad_out.shape[1]
    for phase in ("inference", "training"):
        calls = {name: each[phase] for name, each in (ours | theirs).items() if phase in each}
        timed = in_turn(context, "varlen_attention", calls, seconds / 2)
        work = floors.attention(phase, problem.lengths, heads, HEAD_DIM, 2)
        floor = work.seconds(context.rate("bf16"), context.rate("bytes"))
        for name, figures in timed.items():
            if "ms" in figures:
                figures["tflops"] = work.flops / figures["ms"] / 1e9
                figures["of_floor"] = 1e3 * floor / figures["ms"]
            if name in errors:
                figures["error"] = errors[name]
        emit(
            kind=kind,
            mean=mean,
            dropout=problem.dropout,
            tokens=sum(problem.lengths),
            sequences=len(problem.lengths),
            phase=phase,
            floor_ms=1e3 * floor,
            contestants=timed | why | unfit,
        )


def check(name: str, problem: Problem) -> dict[str, float]:
    """The errors of one of ours on the first sequences, which no other sequence may touch.

    Raises:
        WrongResultError: one of them is out of bounds, at the very shape that would be timed.
    """
    device, backend = problem.grad_out.device, name.removeprefix("penstock ")
    count = sum(problem.lengths[:_CHECKED])
    seed = torch.tensor(12345, device=device)
    with use_backend(backend):
        out = problem.attend(*problem.inputs, problem.bounds, problem.longest, seed)
    found = [out.detach(), *torch.autograd.grad(out, problem.inputs, problem.grad_out)]
    few = [x.detach()[:count].double().requires_grad_() for x in problem.inputs]
    with use_backend("reference"):
        bounds = problem.bounds[: _CHECKED + 1]
        true_out = problem.attend(few[0], few[1], few[2], bounds, max(problem.lengths[:_CHECKED]), seed)
    true = [true_out.detach(), *torch.autograd.grad(true_out, few, problem.grad_out[:count].double())]
    errors = {}
    for what, y, r in zip(("out", "dq", "dk", "dv"), found, true, strict=True):
        errors[what] = float((y[:count].double() - r).norm() / r.norm())
        if not errors[what] <= (BOUND_OUTPUT if what == "out" else BOUND_GRADIENT):
            raise WrongResultError(
                f"{name}, mean length {sum(problem.lengths) / len(problem.lengths):.0f}, dropout {problem.dropout}: "
                f"{what} has an error of {errors[what]:.2e}"
            )
    return errors
