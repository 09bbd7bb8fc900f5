"""FlashAttention 2 (Dao, "FlashAttention-2: Faster attention with better parallelism and work partitioning", 2023,
algorithm 1) over ragged batches, with dropout by the rule of `philox.py`; its backward is in triton_backward.py.

Lengths are read on the device: a program finds its sequence and its block of rows in cu_seqlens, or that it has none,
and returns. A block of rows never reads another sequence's rows.
"""

import triton
import triton.language as tl

from penstock.kernels.philox_triton import head_key, keep_weights

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def bounds(cu_seqlens, sequence, tokens):
    """First row and length of a sequence, within the tokens whatever cu_seqlens holds."""
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), tokens)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence + 1), start), tokens)
    return start, end - start


@triton.jit
def find_block(program, cu_seqlens, batch, blocks, BLOCK: tl.constexpr):
    """Which sequence, and which of its blocks of rows, a program computes; the block may lie behind its end.

    With `blocks`, each sequence has that many programs. With 0, those of sequence b begin at
    cu_seqlens[b] // BLOCK + b: as many as it has blocks or one more, tokens // BLOCK + batch in all, whatever the
    lengths.
    """
    if blocks > 0:
        sequence, block = program // blocks, program % blocks
    else:
        sequence = -1
        for first in range(0, batch, 512):
            each = first + tl.arange(0, 512)
            begins = tl.load(cu_seqlens + each, mask=each < batch, other=0) // BLOCK + each
            sequence += tl.sum(((begins <= program) & (each < batch)).to(tl.int32))
        sequence = tl.maximum(sequence, 0)  # cu_seqlens may hold anything
        block = program - tl.load(cu_seqlens + sequence) // BLOCK - sequence
    return sequence, block


@triton.jit
def load_rows(base, row_stride, rows, valid, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D), 0 where a row is not valid or a column is padding."""
    columns = tl.arange(0, BLOCK_D)
    mask = valid[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (columns < HEAD_DIM)[None, :]
    return tl.load(base + rows.to(tl.int64)[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(base, row_stride, rows, valid, values, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    mask = valid[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (columns < HEAD_DIM)[None, :]
    pointers = base + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    tl.store(pointers, values.to(base.dtype.element_ty), mask=mask)


@triton.jit
def visible(places, keys, length_k, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """Which keys each query sees; `places` are the queries' places among the keys."""
    seen = (keys < length_k)[None, :]
    if HAS_LEFT:
        seen = seen & (keys[None, :] >= places[:, None] - left)
    if HAS_RIGHT:
        seen = seen & (keys[None, :] <= places[:, None] + right)
    return seen


@triton.jit
def seen_range(first_place, last_place, length, before, behind, HAS_BEFORE: tl.constexpr, HAS_BEHIND: tl.constexpr):
    """The rows [low, high) of a sequence from `before` in front of one place to `behind` behind another: the keys that
    queries see with (left, right), the queries that see keys with (right, left)."""
    low, high = 0, length
    if HAS_BEFORE:
        low = tl.maximum(first_place - before, 0)
    if HAS_BEHIND:
        high = tl.minimum(last_place + behind + 1, length)
    return low, high


@triton.jit
def _attend(
    acc,
    maximum,
    total,
    q,
    k_base,
    v_base,
    stride_kt,
    stride_vt,
    low,
    high,
    queries,
    shift,
    length_k,
    left,
    right,
    scale_log2,
    first_query,
    of_query,
    of_key,
    key,
    threshold,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The online softmax over keys [low, high), the first of them at the start of a block."""
    for start in range(low, high, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k = load_rows(k_base, stride_kt, keys, keys < length_k, HEAD_DIM, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        if MASKED:
            seen = visible(queries + shift, keys, length_k, left, right, HAS_LEFT, HAS_RIGHT)
            scores = tl.where(seen, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        # a query that has not seen a key yet has the maximum -inf: subtract 0 instead, its weights are 0
        reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum) if MASKED else new_maximum
        weights = tl.exp2(scores - reference[:, None])
        correction = tl.exp2(maximum - reference)
        total = total * correction + tl.sum(weights, 1)
        acc = acc * correction[:, None]
        if DROPOUT:
            keep = keep_weights(of_query, of_key, key, first_query, start, threshold, BLOCK_Q, BLOCK_K)
            weights = tl.where(keep, weights, 0.0)
        v = load_rows(v_base, stride_vt, keys, keys < length_k, HEAD_DIM, BLOCK_D)
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
        maximum = new_maximum
    return acc, maximum, total


@triton.jit(do_not_specialize=["tokens_q", "tokens_k", "batch", "blocks", "left", "right", "threshold"])
def forward_kernel(
    q,  # (tokens_q, heads, HEAD_DIM)
    k,  # (tokens_k, kv_heads, HEAD_DIM)
    v,
    out,  # (tokens_q, heads, HEAD_DIM), contiguous
    lse,  # (heads, tokens_q)
    cu_seqlens_q,
    cu_seqlens_k,
    seed,
    ids,
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    tokens_q,
    tokens_k,
    batch,
    blocks,  # of queries; as in `find_block`
    left,
    right,
    scale,
    threshold,
    dropout_scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,  # keys at a time behind the last full block
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sequence, block = find_block(tl.program_id(0), cu_seqlens_q, batch, blocks, BLOCK_Q)
    head = tl.program_id(1)
    start_q, length_q = bounds(cu_seqlens_q, sequence, tokens_q)
    start_k, length_k = bounds(cu_seqlens_k, sequence, tokens_k)
    first = block * BLOCK_Q
    if (block < 0) | (first >= length_q):
        return
    queries = first + tl.arange(0, BLOCK_Q)
    valid = queries < length_q
    shift = length_k - length_q
    kv_head = (head // GROUP).to(tl.int64)
    k_base = k + start_k.to(tl.int64) * stride_kt + kv_head * stride_kh
    v_base = v + start_k.to(tl.int64) * stride_vt + kv_head * stride_vh
    q_base = q + start_q.to(tl.int64) * stride_qt + head.to(tl.int64) * stride_qh
    q_block = load_rows(q_base, stride_qt, queries, valid, HEAD_DIM, BLOCK_D)
    of_query, of_key, key = tl.cast(0, tl.uint32), tl.cast(0, tl.uint32), tl.cast(0, tl.uint32)
    if DROPOUT:
        of_query, of_key, key = head_key(tl.load(seed), tl.load(ids + sequence), head)

    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    maximum = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    last = tl.minimum(first + BLOCK_Q, length_q) - 1
    low, high = seen_range(first + shift, last + shift, length_k, left, right, HAS_LEFT, HAS_RIGHT)
    low = low // BLOCK_K * BLOCK_K
    scale_log2 = scale * LOG2E
    if not (HAS_LEFT or HAS_RIGHT):
        low = length_k // BLOCK_K * BLOCK_K
        acc, maximum, total = _attend(
            acc, maximum, total, q_block, k_base, v_base, stride_kt, stride_vt, 0, low, queries, shift,
            length_k, left, right, scale_log2, first, of_query, of_key, key, threshold,
            HEAD_DIM, BLOCK_D, BLOCK_Q, BLOCK_K, False, HAS_LEFT, HAS_RIGHT, DROPOUT, PRECISION,
        )  # fmt: skip
    acc, maximum, total = _attend(
        acc, maximum, total, q_block, k_base, v_base, stride_kt, stride_vt, low, high, queries, shift,
        length_k, left, right, scale_log2, first, of_query, of_key, key, threshold,
        HEAD_DIM, BLOCK_D, BLOCK_Q, BLOCK_TAIL, True, HAS_LEFT, HAS_RIGHT, DROPOUT, PRECISION,
    )  # fmt: skip

    blind = total == 0.0
    acc = acc / tl.where(blind, 1.0, total)[:, None]
    if DROPOUT:
        acc = acc * dropout_scale
    row_stride = HEADS * HEAD_DIM
    out_base = out + start_q.to(tl.int64) * row_stride + head * HEAD_DIM
    store_rows(out_base, row_stride, queries, valid, acc, HEAD_DIM, BLOCK_D)
    value = tl.where(blind, float("inf"), maximum * LN2 + tl.log(tl.where(blind, 1.0, total)))
    tl.store(lse + head.to(tl.int64) * tokens_q + start_q + queries, value, mask=valid)
