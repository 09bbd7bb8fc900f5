"""Attention over ragged batches on a CPU, forward and backward: penstock against what torch offers.

The suite's own lengths are those of two kinds of text at MiniLM's shape; `--shape B,T,H,D` is B sequences of T tokens,
H heads of D.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.benchmarks.suite import DTYPES, OURS, Case, Options, shapes_of
from penstock.kernels import varlen_attention

HEADS, HEAD_DIM, TOKENS = 12, 32, 4096

# Log-normal lengths with the mean and the spread, in tokens, of two kinds of text; longer ones are cut at 512.
TEXTS = {"reviews": (280, 0.6), "turns": (54, 1.0)}

Attention = Callable[[Tensor, Tensor, Tensor, list[int], float], Tensor]


def draw_lengths(mean: float, sigma: float) -> list[int]:
    generator = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < TOKENS:
        lengths.append(int(np.clip(generator.lognormal(np.log(mean) - sigma**2 / 2, sigma), 3, 512)))
    return lengths


def penstock(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], dropout_p: float) -> Tensor:
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    longest = max(lengths)
    return varlen_attention(q, k, v, bounds, bounds, longest, longest, dropout_p=dropout_p)


def padded(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], dropout_p: float) -> Tensor:
    """SDPA over batches of 32 sequences of like length, as training with length grouping runs it; padding included."""
    order = np.argsort(lengths, kind="stable")
    parts = [x.split(lengths) for x in (q, k, v)]
    results: list[Tensor | None] = [None] * len(lengths)
    for start in range(0, len(order), 32):
        chosen = order[start : start + 32]
        batch = [torch.nn.utils.rnn.pad_sequence([p[i] for i in chosen], True).transpose(1, 2) for p in parts]
        own = torch.tensor([lengths[i] for i in chosen])
        mask = (torch.arange(int(own.max())) < own[:, None])[:, None, None, :]
        out = F.scaled_dot_product_attention(*batch, attn_mask=mask, dropout_p=dropout_p).transpose(1, 2)
        for i, row in zip(chosen, out, strict=True):
            results[i] = row[: lengths[i]]
    return torch.cat([row for row in results if row is not None])


def nested(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], dropout_p: float) -> Tensor:
    """SDPA over jagged nested tensors."""
    offsets = torch.tensor([0, *accumulate(lengths)])
    batch = [torch.nested.nested_tensor_from_jagged(x, offsets).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*batch, dropout_p=dropout_p).transpose(1, 2).values()


def per_sequence(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], dropout_p: float) -> Tensor:
    """SDPA, one sequence after the other."""
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    outs = (F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in p), dropout_p=dropout_p) for p in parts)
    return torch.cat([out[0].transpose(0, 1) for out in outs])


PEERS: dict[str, Attention] = {"padded SDPA": padded, "nested SDPA": nested, "SDPA one by one": per_sequence}


def cases(options: Options) -> Iterator[Case]:
    dropouts = (0.0,) if options.quick or options.shapes else (0.0, 0.1)
    for what, lengths, heads, head_dim in problems(options):
        for dtype in options.dtypes or DTYPES:
            for dropout_p in dropouts:
                named = what if not dropout_p else f"{what}, dropout {dropout_p}".lstrip(", ")
                shape = {"B": len(lengths), "T": max(lengths), "H": heads, "D": head_dim}
                # q k^T and p v forward, five products backward
                work = 7 * 2.0 * sum(length**2 for length in lengths) * heads * head_dim
                yield Case(named, shape, dtype, partial(make, lengths, heads, head_dim, dtype, dropout_p), work)


def problems(options: Options) -> Iterator[tuple[str, list[int], int, int]]:
    if not options.shapes:
        for text, drawn in TEXTS.items():
            yield text, draw_lengths(*drawn), HEADS, HEAD_DIM
    for shape in shapes_of("B,T,H,D", [], [], options):
        yield "equal lengths", [shape["T"]] * shape["B"], shape["H"], shape["D"]


def make(lengths: list[int], heads: int, head_dim: int, dtype: str, dropout_p: float, peers: bool):
    generator = torch.Generator().manual_seed(0)
    size = (sum(lengths), heads, head_dim)
    *inputs, grad_out = (torch.randn(size, generator=generator).to(getattr(torch, dtype)) for _ in range(4))
    inputs = [x.requires_grad_() for x in inputs]

    def run(attention: Attention) -> None:
        torch.autograd.grad(attention(*inputs, lengths, dropout_p), inputs, grad_out)

    chosen = {OURS: penstock, **(PEERS if peers else {})}
    return {name: partial(run, attention) for name, attention in chosen.items()}
