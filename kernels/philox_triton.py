"""The dropout rules of `philox.py` inside Triton kernels."""

import triton
import triton.language as tl

from penstock.kernels import philox

ROUNDS = tl.constexpr(philox.ROUNDS)
M2 = tl.constexpr(philox.M2)
W = tl.constexpr(philox.W0)


@triton.jit
def dropout_bits(seed, example_id, position, stream, unit_block):
    """The 16 random bits of eight units per block, for each of M positions.

    Args:
        seed, example_id: int64 scalars. position: int32, (M,). stream: int32 scalar.
        unit_block: int32, (N // 8,), unit // 8.
    Returns:
        uint32, (M, N), values 0 to 65535.
    """
    key = seed ^ ((example_id >> 32) << 32)
    # full blocks of counters: constants are folded, and the words have one shape from the start
    unit_block, position = tl.broadcast(unit_block[None, :], position[:, None])
    stream = tl.full(position.shape, 0, tl.int32) + stream
    example_low = tl.full(position.shape, 0, tl.int32) + example_id.to(tl.int32)
    w0, w1, w2, w3 = tl.philox(key, unit_block, position, stream, example_low, ROUNDS)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # (..., 2, 2) indexes words 2 i + j
    halves = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(halves, (position.shape[0], unit_block.shape[1] * 8))


@triton.jit
def head_key(seed, example_id, head):
    """What tells apart the weights of all heads of all examples: three words, uint32 scalars.

    Args:
        seed, example_id: int64 scalars. head: int32 scalar.
    """
    nowhere = tl.full((), 0xFFFFFFFF, tl.uint32)
    key = seed ^ ((example_id >> 32) << 32)
    of_query, of_key, key, _ = tl.philox(key, nowhere, nowhere, head, example_id.to(tl.int32), ROUNDS)
    return of_query.to(tl.uint32), of_key.to(tl.uint32), key.to(tl.uint32)


@triton.jit
def keep_weights(
    of_query, of_key, key, first_query, first_key, threshold, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Which weights of a tile of queries and keys are kept; bool, (BLOCK_Q, BLOCK_K).

    No value changes its thread on the way into the layout of a matrix product, nor into that of its transpose.

    Args:
        of_query, of_key, key: what `head_key` returns.
        first_query, first_key: int32 scalars, multiples of 16, as BLOCK_Q and BLOCK_K are.
        threshold: int32 scalar, 1 to 65536.
    """
    pairs_q = (first_query // 2 + tl.arange(0, BLOCK_Q // 2)).to(tl.uint32) ^ of_query
    pairs_k = (first_key // 2 + tl.arange(0, BLOCK_K // 2)).to(tl.uint32) ^ of_key
    word0, word1 = tl.broadcast(pairs_q[:, None], pairs_k[None, :])
    for _ in tl.static_range(ROUNDS):
        product = word0.to(tl.uint64) * M2
        word0 = (product >> 32).to(tl.uint32) ^ key ^ word1
        word1 = product.to(tl.uint32)
        key += W
    # by key, then by query; a half-word is compared as the upper half of a word, whose lower half cannot matter
    bits = tl.join(tl.join(word0 << 16, word0), tl.join(word1 << 16, word1))
    bits = tl.permute(tl.reshape(bits, (BLOCK_Q // 16, 8, BLOCK_K // 16, 8, 2, 2)), (0, 5, 1, 2, 4, 3))
    return tl.reshape(bits, (BLOCK_Q, BLOCK_K)) > (threshold.to(tl.uint32) << 16) - 1
