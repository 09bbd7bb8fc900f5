"""Attention over ragged batches with torch's own operations.

On a GPU and without dropout FlashAttention as torch carries it takes the batch as it is. Otherwise sequences of like
lengths are padded into tiles, small enough for a cache: the CPU's flash kernel computes those without dropout, plain
products in float32 all others. Grouping reads the lengths on the host.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from penstock.kernels import philox
from penstock.kernels.attention import Backward, Gradients, Problem, Results
from penstock.kernels.precision import accumulate_dtype

_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}  # attention weights in one tile
_WASTE = 1.25, 1 << 16  # padding may raise the weights in a tile to this many times the real ones, plus this many


class _Tile(NamedTuple):
    """Sequences of like lengths, or a block of queries of one long sequence."""

    sequences: Tensor  # int64, (n,)
    rows_q: Tensor  # int64, (n, q): rows of the queries; padding repeats valid rows
    rows_k: Tensor  # int64, (n, k)
    valid_q: Tensor | None  # bool, (n, q); None if all are
    valid_k: Tensor | None
    hidden: Tensor | None  # bool, (n, 1, q, k), or (n, 1, 1, k) if only padding is hidden; None if nothing is
    positions: range  # places of the queries in their sequences


def _plan(lengths: list[tuple[int, int]], heads: int, limit: int) -> list[tuple[list[int], int, int, int]]:
    """Groups sequences of (queries, keys) into tiles: their indices, the queries' range, the padded number of keys."""
    plan: list[tuple[list[int], int, int, int]] = []
    members: list[int] = []
    most_q = most_k = weights = 0
    order = sorted((b for b, (q, k) in enumerate(lengths) if q and k), key=lambda b: lengths[b][::-1], reverse=True)
    for b in order:
        length_q, length_k = lengths[b]
        if heads * length_q * length_k > limit:
            block = max(limit // (heads * length_k), 1)
            plan += [([b], start, min(start + block, length_q), length_k) for start in range(0, length_q, block)]
            continue
        grown_q, grown_k = max(most_q, length_q), max(most_k, length_k)
        padded = heads * (len(members) + 1) * grown_q * grown_k
        real = weights + heads * length_q * length_k
        if members and padded > min(limit, _WASTE[0] * real + _WASTE[1]):
            plan.append((members, 0, most_q, most_k))
            members, grown_q, grown_k, real = [], length_q, length_k, heads * length_q * length_k
        members.append(b)
        most_q, most_k, weights = grown_q, grown_k, real
    if members:
        plan.append((members, 0, most_q, most_k))
    return plan


def _tiles(problem: Problem | Backward, heads: int) -> Iterator[_Tile]:
    device = problem.cu_seqlens_q.device
    whole: dict[str, Any] = {"dtype": torch.int64, "device": device}
    starts_q, starts_k = problem.cu_seqlens_q.long(), problem.cu_seqlens_k.long()
    all_q, all_k = starts_q.diff(), starts_k.diff()
    lengths = list(zip(all_q.tolist(), all_k.tolist(), strict=True))
    windowed = problem.window_left >= 0 or problem.window_right >= 0
    for members, start, stop, most_k in _plan(lengths, heads, _TILE.get(device.type, _TILE["cuda"])):
        sequences = torch.tensor(members, **whole)
        positions, keys = torch.arange(start, stop, **whole), torch.arange(most_k, **whole)
        length_q, length_k = all_q[sequences, None], all_k[sequences, None]
        rows_q = starts_q[sequences, None] + torch.minimum(positions, length_q - 1)
        rows_k = starts_k[sequences, None] + torch.minimum(keys, length_k - 1)
        valid_q = None if all(lengths[b][0] >= stop for b in members) else positions < length_q
        valid_k = None if all(lengths[b][1] == most_k for b in members) else keys < length_k
        hidden = None if valid_k is None else ~valid_k[:, None, None, :]
        if windowed:
            shifted = (positions + length_k - length_q)[:, None, :, None]
            if problem.window_left >= 0:
                outside = keys < shifted - problem.window_left
                hidden = outside if hidden is None else hidden | outside
            if problem.window_right >= 0:
                outside = keys > shifted + problem.window_right
                hidden = outside if hidden is None else hidden | outside
        yield _Tile(sequences, rows_q, rows_k, valid_q, valid_k, hidden, range(start, stop))


def _gather(x: Tensor, rows: Tensor, valid: Tensor | None, heads: int) -> Tensor:
    """(tokens, h, head_dim) -> (n, heads, length, head_dim), zero in padding, each kv head repeated for its group.

    16-bit input becomes float32: also faster in the CPU's flash kernel.
    """
    padded = x.index_select(0, rows.flatten()).view(*rows.shape, *x.shape[1:]).to(accumulate_dtype(x.dtype))
    if valid is not None:
        padded.masked_fill_(~valid[..., None, None], 0.0)
    padded = padded.transpose(1, 2)
    return padded if heads == x.shape[1] else padded.repeat_interleave(heads // x.shape[1], 1)


def _gather_lse(lse: Tensor, tile: _Tile) -> Tensor:
    """(heads, total_q) -> (n, heads, q), +inf in padding, which makes the weights there 0."""
    padded = lse[:, tile.rows_q].transpose(0, 1)
    return padded if tile.valid_q is None else padded.masked_fill(~tile.valid_q[:, None], float("inf"))


def _put(out: Tensor, rows: Tensor, valid: Tensor | None, tile_out: Tensor) -> None:
    """Writes (n, heads, length, ...) to the rows of out, (tokens, heads, ...)."""
    tile_out = tile_out.transpose(1, 2)
    if valid is None:
        out[rows] = tile_out.to(out.dtype)
    else:
        out[rows[valid]] = tile_out[valid].to(out.dtype)


def _add(total: Tensor, rows: Tensor, valid: Tensor | None, part: Tensor) -> None:
    """Adds (n, heads, length, head_dim) to rows of total, (tokens, kv_heads, head_dim); no row occurs twice."""
    part = part.transpose(1, 2).to(total.dtype)
    part = part.unflatten(2, (total.shape[1], -1)).sum(3) if part.shape[2] != total.shape[1] else part
    if valid is not None:
        rows, part = rows[valid], part[valid]
    total[rows] += part


def _keep(tile: _Tile, heads: int, problem: Problem | Backward) -> Tensor:
    """Which attention weights survive dropout; bool, (n, heads, q, k)."""
    assert problem.seed is not None
    assert problem.ids is not None
    n, device = tile.sequences.shape[0], tile.sequences.device
    example_id = problem.ids[tile.sequences].repeat_interleave(heads)
    of_heads = torch.arange(heads, dtype=torch.int64, device=device).repeat(n)
    drawn = problem.seed, example_id, of_heads, tile.positions, tile.rows_k.shape[1], problem.dropout_p
    return philox.keep_weights(*drawn).unflatten(0, (n, heads))


def _blind(tile: _Tile) -> Tensor | None:
    """Queries that see no key, which only windows cause; bool, (n, 1, q)."""
    return None if tile.hidden is None or tile.hidden.shape[2] == 1 else tile.hidden.all(-1)


def _flash_mask(tile: _Tile, dtype: torch.dtype) -> Tensor | None:
    """What the CPU's flash kernel adds to the scores; a query that sees no key is let see all, and put right after."""
    if tile.hidden is None:
        return None
    blind = _blind(tile)
    hidden = tile.hidden if blind is None else tile.hidden & ~blind[..., None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
    return mask.expand(-1, -1, len(tile.positions), -1)


def _scores(q: Tensor, k: Tensor, tile: _Tile, scale: float) -> Tensor:
    scores = torch.matmul(q, k.transpose(2, 3)).mul_(scale)
    return scores if tile.hidden is None else scores.masked_fill_(tile.hidden, float("-inf"))


def varlen_attention(problem: Problem) -> Results:
    if _flash_serves(problem):
        return _flash_forward(problem)
    q, k, v = problem.q, problem.k, problem.v
    heads, dtype = q.shape[1], accumulate_dtype(q.dtype)
    on_cpu_flash = q.device.type == "cpu" and problem.dropout_p == 0
    out = q.new_zeros(q.shape)
    lse = q.new_full((q.shape[0], heads), float("inf"), dtype=dtype)
    for tile in _tiles(problem, heads):
        tile_q = _gather(q, tile.rows_q, None, heads)
        tile_k, tile_v = (_gather(x, tile.rows_k, tile.valid_k, heads) for x in (k, v))
        if on_cpu_flash:
            tile_out, tile_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                tile_q, tile_k, tile_v, attn_mask=_flash_mask(tile, dtype), scale=problem.scale
            )
        else:
            scores = _scores(tile_q, tile_k, tile, problem.scale)
            tile_lse = scores.logsumexp(-1)
            weights = scores.sub_(tile_lse[..., None]).exp_()
            if problem.dropout_p > 0:
                weights *= _keep(tile, heads, problem)
                weights *= philox.scale(problem.dropout_p)
            tile_out = torch.matmul(weights, tile_v)
        blind = _blind(tile)
        if blind is not None:
            tile_out = tile_out.masked_fill(blind[..., None], 0.0)
            tile_lse = tile_lse.masked_fill(blind, float("inf"))
        _put(out, tile.rows_q, tile.valid_q, tile_out)
        _put(lse, tile.rows_q, tile.valid_q, tile_lse)
    return Results(out, lse.t().contiguous())


def varlen_attention_backward(problem: Backward) -> Gradients:
    if _flash_serves(problem):
        return _flash_backward(problem)
    grad_out, q, k, v, out, lse = problem[:6]
    heads, dtype = q.shape[1], accumulate_dtype(q.dtype)
    on_cpu_flash = q.device.type == "cpu" and problem.dropout_p == 0
    dq, dk, dv = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (q, k, v))
    for tile in _tiles(problem, heads):
        tile_q, tile_do, tile_out = (_gather(x, tile.rows_q, tile.valid_q, heads) for x in (q, grad_out, out))
        tile_k, tile_v = (_gather(x, tile.rows_k, tile.valid_k, heads) for x in (k, v))
        tile_lse = _gather_lse(lse, tile)
        if on_cpu_flash:
            tile_dq, tile_dk, tile_dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                tile_do,
                tile_q,
                tile_k,
                tile_v,
                tile_out,
                tile_lse,
                0.0,
                False,
                attn_mask=_flash_mask(tile, dtype),
                scale=problem.scale,
            )
        else:
            weights = _scores(tile_q, tile_k, tile, problem.scale).sub_(tile_lse[..., None]).exp_()
            d_weights = torch.matmul(tile_do, tile_v.transpose(2, 3))
            dropped = weights
            if problem.dropout_p > 0:
                factor = _keep(tile, heads, problem).to(dtype).mul_(philox.scale(problem.dropout_p))
                dropped = weights * factor
                d_weights *= factor
            delta = (tile_do * tile_out).sum(-1, keepdim=True)
            d_scores = d_weights.sub_(delta).mul_(weights).mul_(problem.scale)
            tile_dq = torch.matmul(d_scores, tile_k)
            tile_dk = torch.matmul(d_scores.transpose(2, 3), tile_q)
            tile_dv = torch.matmul(dropped.transpose(2, 3), tile_do)
        _put(dq, tile.rows_q, tile.valid_q, tile_dq)
        _add(dk, tile.rows_k, tile.valid_k, tile_dk)
        _add(dv, tile.rows_k, tile.valid_k, tile_dv)
    return Gradients(dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype))


def _flash_serves(problem: Problem | Backward) -> bool:
    """Whether torch's FlashAttention 2 takes this batch: it has dropout, but not ours."""
    q, k = problem.q, problem.k
    return (
        q.device.type == "cuda"
        and torch.version.hip is None
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[2] % 8 == 0
        and q.shape[2] <= 256
        and problem.dropout_p == 0
        and q.shape[0] > 0
        and k.shape[0] > 0
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def _flash_arguments(problem: Problem | Backward) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The bounds, no dropout and whether it is causal; by name, scale and window."""
    causal = problem.window_left < 0 and problem.window_right == 0
    # FlashAttention counts in int32, and a bound may be larger than what it bounds
    most_q, most_k = min(problem.max_seqlen_q, problem.q.shape[0]), min(problem.max_seqlen_k, problem.k.shape[0])
    bounds = problem.cu_seqlens_q, problem.cu_seqlens_k, most_q, most_k
    window = {"window_size_left": problem.window_left, "window_size_right": problem.window_right}
    return (*bounds, 0.0, causal), {"scale": problem.scale, **window}


def _flash_forward(problem: Problem) -> Results:
    arguments, named = _flash_arguments(problem)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(*problem[:3], *arguments, False, **named)
    return Results(out.contiguous(), lse)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """FlashAttention's backward adds dq with atomics unless torch must be deterministic; a warning is not enough."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _flash_backward(problem: Backward) -> Gradients:
    arguments, named = _flash_arguments(problem)
    device = problem.q.device
    random = (torch.zeros(size, dtype=torch.uint64, device=device) for size in (2, 0))  # unused: there is no dropout
    with deterministic():
        gradients = torch.ops.aten._flash_attention_backward(*problem[:6], *arguments, *random, **named)
    return Gradients(*(gradient.contiguous() for gradient in gradients))
