"""Attention over ragged batches on a CPU, forward and backward, at MiniLM's shape: penstock against what torch offers.

Each round times every contestant once, in turn, so that a host which changes its speed changes it for all. The test's
own statistics are penstock's; `extra_info` holds the contestants' medians and quartiles in microseconds per token.

    penstock bench kernels --peers --out attention.json
    pytest --benchmark-only -o python_files='bench_*.py' benchmarks/attention
"""

import statistics
import time
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels import varlen_attention

HEADS, HEAD_DIM, TOKENS, ROUNDS = 12, 32, 4096, 9

# Log-normal lengths with the mean and the spread, in tokens, of two kinds of text; longer ones are cut at 512.
TEXTS = {"reviews": (280, 0.6), "turns": (54, 1.0)}

Contestant = Callable[[Tensor, Tensor, Tensor, list[int], float], Tensor]


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


PEERS: tuple[Contestant, ...] = (padded, nested, per_sequence)


def seconds(contestant: Contestant, inputs: list[Tensor], grad_out: Tensor, lengths: list[int], p: float) -> float:
    start = time.perf_counter()
    torch.autograd.grad(contestant(*inputs, lengths, p), inputs, grad_out)
    return time.perf_counter() - start


def summary(times: list[float], tokens: int) -> dict[str, float]:
    low, middle, high = (1e6 * t / tokens for t in statistics.quantiles(times, n=4))
    return {"median_us_per_token": middle, "lower_quartile": low, "upper_quartile": high}


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("peers", [(), PEERS], ids=["alone", "peers"])
def test_attention(benchmark, text, dtype, dropout_p, peers):
    lengths = draw_lengths(*TEXTS[text])
    tokens = sum(lengths)
    generator = torch.Generator().manual_seed(0)
    *inputs, grad_out = (torch.randn(tokens, HEADS, HEAD_DIM, generator=generator).to(dtype) for _ in range(4))
    inputs = [x.requires_grad_() for x in inputs]
    times: dict[str, list[float]] = {contestant.__name__: [] for contestant in (penstock, *peers)}

    def run_peers() -> None:
        for peer in peers:
            times[peer.__name__].append(seconds(peer, inputs, grad_out, lengths, dropout_p))

    def run() -> None:
        times["penstock"].append(seconds(penstock, inputs, grad_out, lengths, dropout_p))

    benchmark.pedantic(run, setup=run_peers, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info |= {
        "threads": torch.get_num_threads(),
        "tokens": tokens,
        "contestants": {name: summary(values[1:], tokens) for name, values in times.items()},
    }
