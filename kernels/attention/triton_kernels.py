"""FlashAttention 2 (Dao, "FlashAttention-2: Faster attention with better parallelism and work partitioning", 2023,
algorithms 1 and 2) over ragged batches, with dropout by the rule of `philox.py`.

Scores are never stored: backward computes them again from the logsumexp. It has no atomics: one kernel walks over the
queries for each block of keys (dk, dv), another over the keys for each block of queries (dq). Lengths are read on the
device; blocks behind the end of their sequence return at once. A block of rows never reads another sequence's rows.
"""

import triton
import triton.language as tl

from penstock.kernels.philox_triton import head_key, keep_weights

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _bounds(cu_seqlens, sequence, tokens):
    """First row and length of a sequence, within the tokens whatever cu_seqlens holds."""
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), tokens)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence + 1), start), tokens)
    return start, end - start


@triton.jit
def _load_rows(base, row_stride, rows, valid, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D), 0 where a row is not valid or a column is padding."""
    columns = tl.arange(0, BLOCK_D)
    mask = valid[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (columns < HEAD_DIM)[None, :]
    return tl.load(base + rows.to(tl.int64)[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _store_rows(base, row_stride, rows, valid, values, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    mask = valid[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (columns < HEAD_DIM)[None, :]
    pointers = base + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    tl.store(pointers, values.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _visible(places, keys, length_k, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """Which keys each query sees; `places` are the queries' places among the keys."""
    seen = (keys < length_k)[None, :]
    if HAS_LEFT:
        seen = seen & (keys[None, :] >= places[:, None] - left)
    if HAS_RIGHT:
        seen = seen & (keys[None, :] <= places[:, None] + right)
    return seen


@triton.jit
def _key_range(first_place, last_place, length_k, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """The keys [low, high) that the queries between two places see."""
    low, high = 0, length_k
    if HAS_LEFT:
        low = tl.maximum(first_place - left, 0)
    if HAS_RIGHT:
        high = tl.minimum(last_place + right + 1, length_k)
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
    """The online softmax over keys [low, high)."""
    for start in range(low, high, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k = _load_rows(k_base, stride_kt, keys, keys < length_k, HEAD_DIM, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        if MASKED:
            seen = _visible(queries + shift, keys, length_k, left, right, HAS_LEFT, HAS_RIGHT)
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
        v = _load_rows(v_base, stride_vt, keys, keys < length_k, HEAD_DIM, BLOCK_D)
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
        maximum = new_maximum
    return acc, maximum, total


@triton.jit(do_not_specialize=["tokens_q", "tokens_k", "blocks", "left", "right", "threshold"])
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
    blocks,  # blocks of queries per sequence
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
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sequence, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    head = tl.program_id(1)
    start_q, length_q = _bounds(cu_seqlens_q, sequence, tokens_q)
    start_k, length_k = _bounds(cu_seqlens_k, sequence, tokens_k)
    first = block * BLOCK_Q
    if first >= length_q:
        return
    queries = first + tl.arange(0, BLOCK_Q)
    valid = queries < length_q
    shift = length_k - length_q
    kv_head = (head // GROUP).to(tl.int64)
    k_base = k + start_k.to(tl.int64) * stride_kt + kv_head * stride_kh
    v_base = v + start_k.to(tl.int64) * stride_vt + kv_head * stride_vh
    q_base = q + start_q.to(tl.int64) * stride_qt + head.to(tl.int64) * stride_qh
    q_block = _load_rows(q_base, stride_qt, queries, valid, HEAD_DIM, BLOCK_D)
    of_query, of_key, key = tl.cast(0, tl.uint32), tl.cast(0, tl.uint32), tl.cast(0, tl.uint32)
    if DROPOUT:
        of_query, of_key, key = head_key(tl.load(seed), tl.load(ids + sequence), head)

    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    maximum = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    last = tl.minimum(first + BLOCK_Q, length_q) - 1
    low, high = _key_range(first + shift, last + shift, length_k, left, right, HAS_LEFT, HAS_RIGHT)
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
        HEAD_DIM, BLOCK_D, BLOCK_Q, BLOCK_K, True, HAS_LEFT, HAS_RIGHT, DROPOUT, PRECISION,
    )  # fmt: skip

    blind = total == 0.0
    acc = acc / tl.where(blind, 1.0, total)[:, None]
    if DROPOUT:
        acc = acc * dropout_scale
    row_stride = HEADS * HEAD_DIM
    out_base = out + start_q.to(tl.int64) * row_stride + head * HEAD_DIM
    _store_rows(out_base, row_stride, queries, valid, acc, HEAD_DIM, BLOCK_D)
    value = tl.where(blind, float("inf"), maximum * LN2 + tl.log(tl.where(blind, 1.0, total)))
    tl.store(lse + head.to(tl.int64) * tokens_q + start_q + queries, value, mask=valid)


@triton.jit(do_not_specialize=["tokens"])
def delta_kernel(
    out,  # (tokens, HEADS, HEAD_DIM), contiguous, as grad_out
    grad_out,
    delta,  # (HEADS, tokens), the sum of out * grad_out over HEAD_DIM
    tokens,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    row_stride = HEADS * HEAD_DIM
    o = _load_rows(out + head * HEAD_DIM, row_stride, rows, rows < tokens, HEAD_DIM, BLOCK_D).to(tl.float32)
    do = _load_rows(grad_out + head * HEAD_DIM, row_stride, rows, rows < tokens, HEAD_DIM, BLOCK_D).to(tl.float32)
    tl.store(delta + head.to(tl.int64) * tokens + rows, tl.sum(o * do, 1), mask=rows < tokens)


@triton.jit(do_not_specialize=["tokens_q", "tokens_k", "blocks", "left", "right", "threshold"])
def dq_kernel(
    q,
    k,
    v,
    grad_out,  # (tokens_q, HEADS, HEAD_DIM), contiguous, as dq
    lse,
    delta,
    dq,
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
    blocks,  # blocks of queries per sequence
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
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sequence, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    head = tl.program_id(1)
    start_q, length_q = _bounds(cu_seqlens_q, sequence, tokens_q)
    start_k, length_k = _bounds(cu_seqlens_k, sequence, tokens_k)
    first = block * BLOCK_Q
    if first >= length_q:
        return
    queries = first + tl.arange(0, BLOCK_Q)
    valid = queries < length_q
    shift = length_k - length_q
    kv_head = (head // GROUP).to(tl.int64)
    k_base = k + start_k.to(tl.int64) * stride_kt + kv_head * stride_kh
    v_base = v + start_k.to(tl.int64) * stride_vt + kv_head * stride_vh
    q_base = q + start_q.to(tl.int64) * stride_qt + head.to(tl.int64) * stride_qh
    row_stride = HEADS * HEAD_DIM
    offset = start_q.to(tl.int64) * row_stride + head * HEAD_DIM
    q_block = _load_rows(q_base, stride_qt, queries, valid, HEAD_DIM, BLOCK_D)
    do = _load_rows(grad_out + offset, row_stride, queries, valid, HEAD_DIM, BLOCK_D)
    statistics = head.to(tl.int64) * tokens_q + start_q + queries
    lse_log2 = tl.load(lse + statistics, mask=valid, other=float("inf")) * LOG2E
    delta_block = tl.load(delta + statistics, mask=valid, other=0.0)
    of_query, of_key, key = tl.cast(0, tl.uint32), tl.cast(0, tl.uint32), tl.cast(0, tl.uint32)
    if DROPOUT:
        of_query, of_key, key = head_key(tl.load(seed), tl.load(ids + sequence), head)

    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    last = tl.minimum(first + BLOCK_Q, length_q) - 1
    low, high = _key_range(first + shift, last + shift, length_k, left, right, HAS_LEFT, HAS_RIGHT)
    for start in range(low // BLOCK_K * BLOCK_K, high, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k_block = _load_rows(k_base, stride_kt, keys, keys < length_k, HEAD_DIM, BLOCK_D)
        v_block = _load_rows(v_base, stride_vt, keys, keys < length_k, HEAD_DIM, BLOCK_D)
        scores = tl.dot(q_block, tl.trans(k_block), input_precision=PRECISION) * (scale * LOG2E)
        weights = tl.exp2(scores - lse_log2[:, None])
        # also without a window: the weight of a key behind the last one may overflow
        weights = tl.where(_visible(queries + shift, keys, length_k, left, right, HAS_LEFT, HAS_RIGHT), weights, 0.0)
        d_weights = tl.dot(do, tl.trans(v_block), input_precision=PRECISION)
        if DROPOUT:
            keep = keep_weights(of_query, of_key, key, first, start, threshold, BLOCK_Q, BLOCK_K)
            d_weights = tl.where(keep, d_weights * dropout_scale, 0.0)
        d_scores = weights * (d_weights - delta_block[:, None])
        acc = tl.dot(d_scores.to(k_block.dtype), k_block, acc, input_precision=PRECISION)
    _store_rows(dq + offset, row_stride, queries, valid, acc * scale, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["tokens_q", "tokens_k", "blocks", "left", "right", "threshold"])
def dkdv_kernel(
    q,
    k,
    v,
    grad_out,  # (tokens_q, HEADS, HEAD_DIM), contiguous
    lse,
    delta,
    dk,  # (tokens_k, HEADS // GROUP, HEAD_DIM), contiguous, as dv
    dv,
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
    blocks,  # blocks of keys per sequence
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
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sequence, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    kv_head = tl.program_id(1)
    start_q, length_q = _bounds(cu_seqlens_q, sequence, tokens_q)
    start_k, length_k = _bounds(cu_seqlens_k, sequence, tokens_k)
    first = block * BLOCK_K
    if first >= length_k:
        return
    keys = first + tl.arange(0, BLOCK_K)
    valid = keys < length_k
    shift = length_k - length_q
    k_base = k + start_k.to(tl.int64) * stride_kt + kv_head.to(tl.int64) * stride_kh
    v_base = v + start_k.to(tl.int64) * stride_vt + kv_head.to(tl.int64) * stride_vh
    k_block = _load_rows(k_base, stride_kt, keys, valid, HEAD_DIM, BLOCK_D)
    v_block = _load_rows(v_base, stride_vt, keys, valid, HEAD_DIM, BLOCK_D)
    of_query, of_key, key = tl.cast(0, tl.uint32), tl.cast(0, tl.uint32), tl.cast(0, tl.uint32)

    # the queries that see one of these keys
    low, high = 0, length_q
    last = tl.minimum(first + BLOCK_K, length_k) - 1
    if HAS_RIGHT:
        low = tl.maximum(first - shift - right, 0) // BLOCK_Q * BLOCK_Q
    if HAS_LEFT:
        high = tl.minimum(last - shift + left + 1, length_q)
    dk_acc = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dv_acc = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    row_stride = HEADS * HEAD_DIM
    for member in range(GROUP):
        head = kv_head * GROUP + member
        q_base = q + start_q.to(tl.int64) * stride_qt + head.to(tl.int64) * stride_qh
        do_base = grad_out + start_q.to(tl.int64) * row_stride + head * HEAD_DIM
        statistics = head.to(tl.int64) * tokens_q + start_q
        if DROPOUT:
            of_query, of_key, key = head_key(tl.load(seed), tl.load(ids + sequence), head)
        for start in range(low, high, BLOCK_Q):
            queries = start + tl.arange(0, BLOCK_Q)
            present = queries < length_q
            q_block = _load_rows(q_base, stride_qt, queries, present, HEAD_DIM, BLOCK_D)
            do = _load_rows(do_base, row_stride, queries, present, HEAD_DIM, BLOCK_D)
            lse_log2 = tl.load(lse + statistics + queries, mask=present, other=float("inf")) * LOG2E
            delta_block = tl.load(delta + statistics + queries, mask=present, other=0.0)
            # transposed, (keys, queries): the operands that the loop does not change then take few registers
            scores = tl.dot(k_block, tl.trans(q_block), input_precision=PRECISION) * (scale * LOG2E)
            weights = tl.exp2(scores - lse_log2[None, :])
            if HAS_LEFT or HAS_RIGHT:  # without a window only rows that are not stored would be masked
                seen = _visible(queries + shift, keys, length_k, left, right, HAS_LEFT, HAS_RIGHT)
                weights = tl.where(tl.trans(seen), weights, 0.0)
            d_weights = tl.dot(v_block, tl.trans(do), input_precision=PRECISION)
            dropped = weights
            if DROPOUT:
                keep = tl.trans(keep_weights(of_query, of_key, key, start, first, threshold, BLOCK_Q, BLOCK_K))
                dropped = tl.where(keep, weights * dropout_scale, 0.0)
                d_weights = tl.where(keep, d_weights * dropout_scale, 0.0)
            dv_acc = tl.dot(dropped.to(do.dtype), do, dv_acc, input_precision=PRECISION)
            d_scores = weights * (d_weights - delta_block[None, :])
            dk_acc = tl.dot(d_scores.to(q_block.dtype), q_block, dk_acc, input_precision=PRECISION)
    kv_stride = HEADS // GROUP * HEAD_DIM
    offset = start_k.to(tl.int64) * kv_stride + kv_head * HEAD_DIM
    _store_rows(dk + offset, kv_stride, keys, valid, dk_acc * scale, HEAD_DIM, BLOCK_D)
    _store_rows(dv + offset, kv_stride, keys, valid, dv_acc, HEAD_DIM, BLOCK_D)
