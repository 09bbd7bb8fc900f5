"""The dropout rule of `philox.py` inside Triton kernels."""

import triton
import triton.language as tl


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
    w0, w1, w2, w3 = tl.philox(key, unit_block, position, stream, example_low)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # (..., 2, 2) indexes words 2 i + j
    halves = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(halves, (position.shape[0], unit_block.shape[1] * 8))
