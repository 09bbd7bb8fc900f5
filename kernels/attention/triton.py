"""Attention over ragged batches in Triton: which tiles, and how the kernels of `triton_kernels.py` and
`triton_backward.py` are launched."""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from penstock.kernels import philox
from penstock.kernels.attention import Backward, Gradients, Problem, Results
from penstock.kernels.attention.triton_backward import (
    backward_kernel,
    delta_kernel,
    dkdv_kernel,
    dq_kernel,
    sum_kernel,
)
from penstock.kernels.attention.triton_kernels import forward_kernel
from penstock.kernels.triton_support import on_device


class Tile(NamedTuple):
    """What one kernel computes at a time, and how."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    registers: int | None = None  # of a thread, at most


class Tiles(NamedTuple):
    """`backward` is the kernel of five products, None where its sums would not stay in registers."""

    forward: Tile
    dq: Tile
    dkdv: Tile
    backward: Tile | None = None


# By bytes per element, then by head_dim up to. Not yet timed. With dropout, the 16-bit kernels spill 32 bytes a thread
# at most on sm_90 (104 with a window), and all fit the 99 KiB of shared memory of sm_86 when built for sm_80.
_TILES = {
    2: {
        32: Tiles(Tile(128, 64, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 2)),
        64: Tiles(Tile(128, 64, 8, 3, 128), Tile(128, 64, 8, 2, 128), Tile(32, 128, 8, 2, 128), Tile(64, 64, 4, 2)),
        128: Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
        256: Tiles(Tile(64, 32, 8, 2), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    },
    4: {
        32: Tiles(Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
        64: Tiles(Tile(64, 32, 8, 2), Tile(64, 32, 8, 1), Tile(32, 32, 8, 1)),
        128: Tiles(Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
        256: Tiles(Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 8, 1)),
    },
}
_Asked = TypeVar("_Asked", Problem, Backward)
_WIDEST = 1 << 30  # window: no sequence that fits into memory is as long, and added to a place it stays within int32
_SHORT = 64  # up to this max_seqlen no block is longer than this: half of a longer one would be empty
_MEAN = 256  # below this mean length forward's tiles are half as tall, and as many share a multiprocessor as before
_PROGRAMS = 256  # fewer of `backward_kernel` would leave a large GPU half empty
_PART_KEYS, _MOST_PARTS = 256, 4  # a program of it takes that many keys of a long sequence, or a quarter of them


def choose_tiles(dtype: torch.dtype, head_dim: int, max_seqlen: int, mean: int) -> Tiles:
    """The tiles for a call; they depend on nothing else, so that results do not either.

    Args:
        max_seqlen: the larger one. mean: length of a sequence of queries, rounded down.
    """
    table = _TILES[dtype.itemsize]
    tiles = table[next(limit for limit in table if head_dim <= limit)]
    if mean < _MEAN and tiles.forward.block_q == 128:
        tiles = tiles._replace(forward=tiles.forward._replace(block_q=64, num_warps=4))
    if max_seqlen <= _SHORT:
        backward = None if tiles.backward is None else _short(tiles.backward)
        return Tiles(_short(tiles.forward), _short(tiles.dq), _short(tiles.dkdv), backward)
    return tiles


def _short(tile: Tile) -> Tile:
    return tile._replace(block_q=min(tile.block_q, _SHORT), block_k=min(tile.block_k, _SHORT))


def tail_of(tile: Tile, windowed: bool) -> int:
    """How many keys forward takes at a time behind the last full block of them; in a window every block is such."""
    return tile.block_k if windowed else min(tile.block_k, 32)


def block_d(head_dim: int) -> int:
    """The width of a tile's rows: the next power of two, and no less than a matrix instruction takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def _constants(problem: Problem | Backward, tile: Tile) -> dict[str, Any]:
    q, k = problem.q, problem.k
    # three products of tf32 parts are as exact as float32, and run on the tensor cores
    tf32 = torch.backends.cuda.matmul.allow_tf32
    return {
        "HEADS": q.shape[1],
        "GROUP": q.shape[1] // k.shape[1],
        "HEAD_DIM": q.shape[2],
        "BLOCK_D": block_d(q.shape[2]),
        "BLOCK_Q": tile.block_q,
        "BLOCK_K": tile.block_k,
        "HAS_LEFT": problem.window_left >= 0,
        "HAS_RIGHT": problem.window_right >= 0,
        "DROPOUT": problem.dropout_p > 0,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 and not tf32 else "tf32",
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        **({} if tile.registers is None else {"maxnreg": tile.registers}),
    }


def _arguments(problem: Problem | Backward, *division: int) -> tuple[Any, ...]:
    """What the kernels take behind their own tensors; `division` says how programs divide the sequences."""
    q, k, v = problem.q, problem.k, problem.v
    return (
        problem.cu_seqlens_q,
        problem.cu_seqlens_k,
        problem.seed,
        problem.ids,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        q.shape[0],
        k.shape[0],
        *division,
        problem.window_left,
        problem.window_right,
        problem.scale,
        philox.threshold(problem.dropout_p),
        philox.scale(problem.dropout_p),
    )


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


def division(tokens: int, batch: int, max_seqlen: int, block: int) -> tuple[int, int]:
    """How many programs compute all blocks of all sequences, and `blocks` as `find_block` takes it.

    Whichever are fewer: the longest sequence's blocks for each, or those that are enough for any lengths.
    """
    each, any_lengths = _blocks(max_seqlen, block), tokens // block + batch
    return (batch * each, each) if batch * each <= any_lengths else (any_lengths, 0)


def _choose(problem: Problem | Backward) -> Tiles:
    tokens, batch = problem.q.shape[0], problem.cu_seqlens_q.shape[0] - 1
    longest = max(problem.max_seqlen_q, problem.max_seqlen_k)
    return choose_tiles(problem.q.dtype, problem.q.shape[2], longest, tokens // max(batch, 1))


def _within_int32(problem: _Asked) -> _Asked:
    """The same problem with bounds that kernels may add to places: a caller's may be larger than they need be."""
    most_q, most_k = min(problem.max_seqlen_q, problem.q.shape[0]), min(problem.max_seqlen_k, problem.k.shape[0])
    left, right = min(problem.window_left, _WIDEST), min(problem.window_right, _WIDEST)
    return problem._replace(max_seqlen_q=most_q, max_seqlen_k=most_k, window_left=left, window_right=right)


def varlen_attention(problem: Problem) -> Results:
    problem = _within_int32(problem)
    (tokens, heads, _), batch = problem.q.shape, problem.cu_seqlens_q.shape[0] - 1
    made, tile = problem.empty(), _choose(problem).forward
    programs, blocks = division(tokens, batch, problem.max_seqlen_q, tile.block_q)
    if tokens and programs:
        windowed = problem.window_left >= 0 or problem.window_right >= 0
        with on_device(problem.q):
            forward_kernel[programs, heads](
                *(*problem[:3], *made, *_arguments(problem, batch, blocks)),
                **_constants(problem, tile),
                BLOCK_TAIL=tail_of(tile, windowed),
            )
    return made


def varlen_attention_backward(problem: Backward) -> Gradients:
    problem = _within_int32(problem)
    tile, batch = _choose(problem).backward, problem.cu_seqlens_q.shape[0] - 1
    parts = max(1, min(_MOST_PARTS, _blocks(problem.max_seqlen_k, _PART_KEYS)))
    with on_device(problem.q):
        if tile is None or batch * parts * problem.k.shape[1] < _PROGRAMS:
            return _two_kernels(problem)
        return _one_kernel(problem, tile, parts)


def _one_kernel(problem: Backward, tile: Tile, parts: int) -> Gradients:
    grad_out, q, k, v, out, lse = problem[:6]
    (tokens, heads, head_dim), batch = q.shape, problem.cu_seqlens_q.shape[0] - 1
    made = problem.empty()
    part_keys = _blocks(_blocks(problem.max_seqlen_k, parts), tile.block_k) * tile.block_k
    delta, sums = (torch.empty((parts, *shape), dtype=torch.float32, device=q.device) for shape in (lse.shape, q.shape))
    backward_kernel[batch * parts, k.shape[1]](
        *(q, k, v, out, grad_out, lse, delta, sums, *made),
        *_arguments(problem, parts, part_keys),
        **_constants(problem, tile),
    )
    if parts > 1:
        programs, blocks = division(tokens, batch, problem.max_seqlen_q, rows := 64)
        bounds: tuple[Tensor, Tensor] = (problem.cu_seqlens_q, problem.cu_seqlens_k)
        sum_kernel[programs, heads](
            *(sums, made.q, *bounds, tokens, k.shape[0], batch, blocks, part_keys, problem.scale),
            HEADS=heads,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d(head_dim),
            BLOCK=rows,
        )
    return made


def _two_kernels(problem: Backward) -> Gradients:
    grad_out, q, k, v, out, lse = problem[:6]
    (tokens_q, heads, head_dim), (tokens_k, kv_heads, _) = q.shape, k.shape
    batch, made, delta = problem.cu_seqlens_q.shape[0] - 1, problem.empty(), torch.empty_like(lse)
    tiles, given = _choose(problem), (q, k, v, grad_out, lse, delta)
    if tokens_q and problem.max_seqlen_q:
        rows = 64
        delta_kernel[_blocks(tokens_q, rows), heads](
            out, grad_out, delta, tokens_q, HEADS=heads, HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim), BLOCK=rows
        )
        programs, blocks = division(tokens_q, batch, problem.max_seqlen_q, tiles.dq.block_q)
        dq_kernel[programs, heads](*given, made.q, *_arguments(problem, batch, blocks), **_constants(problem, tiles.dq))
    if tokens_k and problem.max_seqlen_k:
        programs, blocks = division(tokens_k, batch, problem.max_seqlen_k, tiles.dkdv.block_k)
        dkdv_kernel[programs, kv_heads](
            *given, made.k, made.v, *_arguments(problem, batch, blocks), **_constants(problem, tiles.dkdv)
        )
    return made
