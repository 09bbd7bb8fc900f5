"""Attention over ragged batches in Triton: which tiles, and how the kernels of `triton_kernels.py` are launched."""

from typing import Any, NamedTuple

import torch

from penstock.kernels import philox
from penstock.kernels.attention import Backward, Gradients, Problem, Results
from penstock.kernels.attention.triton_kernels import delta_kernel, dkdv_kernel, dq_kernel, forward_kernel
from penstock.kernels.triton_support import on_device


class Tile(NamedTuple):
    """What one kernel computes at a time, and how."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    registers: int | None = None  # of a thread, at most


class Tiles(NamedTuple):
    forward: Tile
    dq: Tile
    dkdv: Tile


# By bytes per element, then by head_dim up to. Two blocks of 8 warps with 128 registers share a multiprocessor. With
# dropout, the 16-bit kernels spill 32 bytes a thread at most on sm_90 (104 with a window), and all fit the 99 KiB of
# shared memory of sm_86 when built for sm_80. Not yet timed.
_TILES = {
    2: {
        32: Tiles(Tile(128, 64, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 3)),
        64: Tiles(Tile(128, 64, 8, 3, 128), Tile(128, 64, 8, 2, 128), Tile(32, 128, 8, 2, 128)),
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
_SHORT = 64  # up to this max_seqlen no block is longer than this: half of a longer one would be empty


def choose_tiles(dtype: torch.dtype, head_dim: int, max_seqlen: int) -> Tiles:
    """The tiles for a call; they depend on nothing else, so that results do not either."""
    table = _TILES[dtype.itemsize]
    tiles = table[next(limit for limit in table if head_dim <= limit)]
    if max_seqlen > _SHORT:
        return tiles
    return Tiles(*(Tile(min(t.block_q, _SHORT), min(t.block_k, _SHORT), *t[2:]) for t in tiles))


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


def _arguments(problem: Problem | Backward, blocks: int) -> tuple[Any, ...]:
    """What the kernels take behind their own tensors."""
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
        blocks,
        problem.window_left,
        problem.window_right,
        problem.scale,
        philox.threshold(problem.dropout_p),
        philox.scale(problem.dropout_p),
    )


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


def varlen_attention(problem: Problem) -> Results:
    (tokens, heads, head_dim), batch = problem.q.shape, problem.cu_seqlens_q.shape[0] - 1
    made = problem.empty()
    tile = choose_tiles(problem.q.dtype, head_dim, max(problem.max_seqlen_q, problem.max_seqlen_k)).forward
    blocks = _blocks(problem.max_seqlen_q, tile.block_q)
    if tokens and blocks:
        with on_device(problem.q):
            forward_kernel[batch * blocks, heads](
                *(*problem[:3], *made, *_arguments(problem, blocks)), **_constants(problem, tile)
            )
    return made


def varlen_attention_backward(problem: Backward) -> Gradients:
    grad_out, q, k, v, out, lse = problem[:6]
    (tokens_q, heads, head_dim), kv_heads = q.shape, k.shape[1]
    batch, made, delta = problem.cu_seqlens_q.shape[0] - 1, problem.empty(), torch.empty_like(lse)
    tiles = choose_tiles(q.dtype, head_dim, max(problem.max_seqlen_q, problem.max_seqlen_k))
    with on_device(q):
        if tokens_q and problem.max_seqlen_q:
            rows = 64
            delta_kernel[_blocks(tokens_q, rows), heads](
                out, grad_out, delta, tokens_q, HEADS=heads, HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim), BLOCK=rows
            )
            blocks = _blocks(problem.max_seqlen_q, tiles.dq.block_q)
            dq_kernel[batch * blocks, heads](
                *(q, k, v, grad_out, lse, delta, made.q),
                *_arguments(problem, blocks),
                **_constants(problem, tiles.dq),
            )
        if k.shape[0] and problem.max_seqlen_k:
            blocks = _blocks(problem.max_seqlen_k, tiles.dkdv.block_k)
            dkdv_kernel[batch * blocks, kv_heads](
                *(q, k, v, grad_out, lse, delta, made.k, made.v),
                *_arguments(problem, blocks),
                **_constants(problem, tiles.dkdv),
            )
    return made
