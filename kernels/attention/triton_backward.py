"""The backward of FlashAttention 2 (Dao 2023, algorithm 2) over ragged batches, in a fixed order of sums.

Scores are computed again from the logsumexp. Where there are sequences enough, a program walks over all queries of one
for each of its blocks of keys in turn and adds up dq in memory that nobody else touches: five products for each tile,
and each random bit drawn once (`backward_kernel`). Otherwise two kernels with seven products share the work in finer
pieces: `dkdv_kernel` walks over the queries for each block of keys, `dq_kernel` over the keys for each of queries.
"""

import triton
import triton.language as tl

from penstock.kernels.attention.triton_kernels import (
    LOG2E,
    bounds,
    find_block,
    load_rows,
    seen_range,
    store_rows,
    visible,
)
from penstock.kernels.philox_triton import head_key, keep_weights


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
    o = load_rows(out + head * HEAD_DIM, row_stride, rows, rows < tokens, HEAD_DIM, BLOCK_D).to(tl.float32)
    do = load_rows(grad_out + head * HEAD_DIM, row_stride, rows, rows < tokens, HEAD_DIM, BLOCK_D).to(tl.float32)
    tl.store(delta + head.to(tl.int64) * tokens + rows, tl.sum(o * do, 1), mask=rows < tokens)


@triton.jit(do_not_specialize=["tokens_q", "tokens_k", "batch", "blocks", "left", "right", "threshold"])
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
    row_stride = HEADS * HEAD_DIM
    offset = start_q.to(tl.int64) * row_stride + head * HEAD_DIM
    q_block = load_rows(q_base, stride_qt, queries, valid, HEAD_DIM, BLOCK_D)
    do = load_rows(grad_out + offset, row_stride, queries, valid, HEAD_DIM, BLOCK_D)
    statistics = head.to(tl.int64) * tokens_q + start_q + queries
    lse_log2 = tl.load(lse + statistics, mask=valid, other=float("inf")) * LOG2E
    delta_block = tl.load(delta + statistics, mask=valid, other=0.0)
    of_query, of_key, key = tl.cast(0, tl.uint32), tl.cast(0, tl.uint32), tl.cast(0, tl.uint32)
    if DROPOUT:
        of_query, of_key, key = head_key(tl.load(seed), tl.load(ids + sequence), head)

    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    last = tl.minimum(first + BLOCK_Q, length_q) - 1
    low, high = seen_range(first + shift, last + shift, length_k, left, right, HAS_LEFT, HAS_RIGHT)
    for start in range(low // BLOCK_K * BLOCK_K, high, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k_block = load_rows(k_base, stride_kt, keys, keys < length_k, HEAD_DIM, BLOCK_D)
        v_block = load_rows(v_base, stride_vt, keys, keys < length_k, HEAD_DIM, BLOCK_D)
        scores = tl.dot(q_block, tl.trans(k_block), input_precision=PRECISION) * (scale * LOG2E)
        weights = tl.exp2(scores - lse_log2[:, None])
        # also without a window: the weight of a key behind the last one may overflow
        weights = tl.where(visible(queries + shift, keys, length_k, left, right, HAS_LEFT, HAS_RIGHT), weights, 0.0)
        d_weights = tl.dot(do, tl.trans(v_block), input_precision=PRECISION)
        if DROPOUT:
            keep = keep_weights(of_query, of_key, key, first, start, threshold, BLOCK_Q, BLOCK_K)
            d_weights = tl.where(keep, d_weights * dropout_scale, 0.0)
        d_scores = weights * (d_weights - delta_block[:, None])
        acc = tl.dot(d_scores.to(k_block.dtype), k_block, acc, input_precision=PRECISION)
    store_rows(dq + offset, row_stride, queries, valid, acc * scale, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["tokens_q", "tokens_k", "batch", "blocks", "left", "right", "threshold"])
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
    batch,
    blocks,  # of keys; as in `find_block`
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
    sequence, block = find_block(tl.program_id(0), cu_seqlens_k, batch, blocks, BLOCK_K)
    kv_head = tl.program_id(1)
    start_q, length_q = bounds(cu_seqlens_q, sequence, tokens_q)
    start_k, length_k = bounds(cu_seqlens_k, sequence, tokens_k)
    first = block * BLOCK_K
    if (block < 0) | (first >= length_k):
        return
    keys = first + tl.arange(0, BLOCK_K)
    valid = keys < length_k
    shift = length_k - length_q
    k_base = k + start_k.to(tl.int64) * stride_kt + kv_head.to(tl.int64) * stride_kh
    v_base = v + start_k.to(tl.int64) * stride_vt + kv_head.to(tl.int64) * stride_vh
    k_block = load_rows(k_base, stride_kt, keys, valid, HEAD_DIM, BLOCK_D)
    v_block = load_rows(v_base, stride_vt, keys, valid, HEAD_DIM, BLOCK_D)
    of_query, of_key, key = tl.cast(0, tl.uint32), tl.cast(0, tl.uint32), tl.cast(0, tl.uint32)

    last = tl.minimum(first + BLOCK_K, length_k) - 1
    low, high = seen_range(first - shift, last - shift, length_q, right, left, HAS_RIGHT, HAS_LEFT)
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
        for start in range(low // BLOCK_Q * BLOCK_Q, high, BLOCK_Q):
            queries = start + tl.arange(0, BLOCK_Q)
            present = queries < length_q
            q_block = load_rows(q_base, stride_qt, queries, present, HEAD_DIM, BLOCK_D)
            do = load_rows(do_base, row_stride, queries, present, HEAD_DIM, BLOCK_D)
            lse_log2 = tl.load(lse + statistics + queries, mask=present, other=float("inf")) * LOG2E
            delta_block = tl.load(delta + statistics + queries, mask=present, other=0.0)
            # transposed, (keys, queries): the operands that the loop does not change then take few registers
            scores = tl.dot(k_block, tl.trans(q_block), input_precision=PRECISION) * (scale * LOG2E)
            weights = tl.exp2(scores - lse_log2[None, :])
            if HAS_LEFT or HAS_RIGHT:  # without a window only rows that are not stored would be masked
                seen = visible(queries + shift, keys, length_k, left, right, HAS_LEFT, HAS_RIGHT)
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
    store_rows(dk + offset, kv_stride, keys, valid, dk_acc * scale, HEAD_DIM, BLOCK_D)
    store_rows(dv + offset, kv_stride, keys, valid, dv_acc, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["tokens_q", "tokens_k", "parts", "part_keys", "left", "right", "threshold"])
def backward_kernel(
    q,
    k,
    v,
    out,  # (tokens_q, HEADS, HEAD_DIM), contiguous, as grad_out and dq
    grad_out,
    lse,
    delta,  # float32, (parts, HEADS, tokens_q), scratch
    sums,  # float32, (parts, tokens_q, HEADS, HEAD_DIM), scratch: dq / scale, of one part of the keys each
    dq,  # written where there is one part; else `sum_kernel` does
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
    parts,
    part_keys,  # keys in a part, a multiple of BLOCK_K
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
    ROWS: tl.constexpr = 32  # at a time before and behind the products
    sequence, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    kv_head = tl.program_id(1)
    start_q, length_q = bounds(cu_seqlens_q, sequence, tokens_q)
    start_k, length_k = bounds(cu_seqlens_k, sequence, tokens_k)
    first_key, last_key = part * part_keys, tl.minimum((part + 1) * part_keys, length_k)
    if (part > 0) & (first_key >= length_k):
        return
    shift = length_k - length_q
    k_base = k + start_k.to(tl.int64) * stride_kt + kv_head.to(tl.int64) * stride_kh
    v_base = v + start_k.to(tl.int64) * stride_vt + kv_head.to(tl.int64) * stride_vh
    of_query, of_key, key = tl.cast(0, tl.uint32), tl.cast(0, tl.uint32), tl.cast(0, tl.uint32)
    row_stride = HEADS * HEAD_DIM
    rows_q = start_q.to(tl.int64) * row_stride
    sums_base = sums + part.to(tl.int64) * tokens_q * row_stride + rows_q
    delta_base = delta + part.to(tl.int64) * tokens_q * HEADS + start_q

    for member in range(GROUP):
        head = kv_head * GROUP + member
        offset = rows_q + head * HEAD_DIM
        for start in range(0, length_q, ROWS):
            queries = start + tl.arange(0, ROWS)
            present = queries < length_q
            o = load_rows(out + offset, row_stride, queries, present, HEAD_DIM, BLOCK_D).to(tl.float32)
            do = load_rows(grad_out + offset, row_stride, queries, present, HEAD_DIM, BLOCK_D).to(tl.float32)
            tl.store(delta_base + head.to(tl.int64) * tokens_q + queries, tl.sum(o * do, 1), mask=present)
            nothing = tl.zeros((ROWS, BLOCK_D), tl.float32)
            store_rows(sums_base + head * HEAD_DIM, row_stride, queries, present, nothing, HEAD_DIM, BLOCK_D)
    tl.debug_barrier()  # what this block of threads has written it reads again

    for first in range(first_key, last_key, BLOCK_K):
        keys = first + tl.arange(0, BLOCK_K)
        valid = keys < length_k
        k_block = load_rows(k_base, stride_kt, keys, valid, HEAD_DIM, BLOCK_D)
        v_block = load_rows(v_base, stride_vt, keys, valid, HEAD_DIM, BLOCK_D)
        last = tl.minimum(first + BLOCK_K, length_k) - 1
        low, high = seen_range(first - shift, last - shift, length_q, right, left, HAS_RIGHT, HAS_LEFT)
        dk_acc = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
        dv_acc = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
        for member in range(GROUP):
            head = kv_head * GROUP + member
            q_base = q + start_q.to(tl.int64) * stride_qt + head.to(tl.int64) * stride_qh
            do_base = grad_out + rows_q + head * HEAD_DIM
            if DROPOUT:
                of_query, of_key, key = head_key(tl.load(seed), tl.load(ids + sequence), head)
            for start in range(low // BLOCK_Q * BLOCK_Q, high, BLOCK_Q):
                queries = start + tl.arange(0, BLOCK_Q)
                present = queries < length_q
                q_block = load_rows(q_base, stride_qt, queries, present, HEAD_DIM, BLOCK_D)
                do = load_rows(do_base, row_stride, queries, present, HEAD_DIM, BLOCK_D)
                statistics = head.to(tl.int64) * tokens_q + queries
                lse_log2 = tl.load(lse + start_q + statistics, mask=present, other=float("inf")) * LOG2E
                delta_block = tl.load(delta_base + statistics, mask=present, other=0.0)
                scores = tl.dot(k_block, tl.trans(q_block), input_precision=PRECISION) * (scale * LOG2E)
                weights = tl.exp2(scores - lse_log2[None, :])
                # also without a window: the weight of a key behind the last one may overflow
                seen = visible(queries + shift, keys, length_k, left, right, HAS_LEFT, HAS_RIGHT)
                weights = tl.where(tl.trans(seen), weights, 0.0)
                d_weights = tl.dot(v_block, tl.trans(do), input_precision=PRECISION)
                dropped = weights
                if DROPOUT:
                    keep = tl.trans(keep_weights(of_query, of_key, key, start, first, threshold, BLOCK_Q, BLOCK_K))
                    dropped = tl.where(keep, weights * dropout_scale, 0.0)
                    d_weights = tl.where(keep, d_weights * dropout_scale, 0.0)
                dv_acc = tl.dot(dropped.to(do.dtype), do, dv_acc, input_precision=PRECISION)
                d_scores = (weights * (d_weights - delta_block[None, :])).to(q_block.dtype)
                dk_acc = tl.dot(d_scores, q_block, dk_acc, input_precision=PRECISION)
                # adds without reading first; nobody else adds here, and one block of keys comes after the other
                found = tl.dot(tl.trans(d_scores), k_block, input_precision=PRECISION)
                add_rows(sums_base + head * HEAD_DIM, row_stride, queries, present, found, HEAD_DIM, BLOCK_D)
        kv_stride = HEADS // GROUP * HEAD_DIM
        offset = start_k.to(tl.int64) * kv_stride + kv_head * HEAD_DIM
        store_rows(dk + offset, kv_stride, keys, valid, dk_acc * scale, HEAD_DIM, BLOCK_D)
        store_rows(dv + offset, kv_stride, keys, valid, dv_acc, HEAD_DIM, BLOCK_D)
        tl.debug_barrier()

    if parts == 1:
        for member in range(GROUP):
            offset = (kv_head * GROUP + member) * HEAD_DIM
            for start in range(0, length_q, ROWS):
                queries = start + tl.arange(0, ROWS)
                present = queries < length_q
                found = load_rows(sums_base + offset, row_stride, queries, present, HEAD_DIM, BLOCK_D)
                store_rows(dq + rows_q + offset, row_stride, queries, present, found * scale, HEAD_DIM, BLOCK_D)


@triton.jit
def add_rows(base, row_stride, rows, valid, values, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    mask = valid[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (columns < HEAD_DIM)[None, :]
    pointers = base + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    tl.atomic_add(pointers, values, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["tokens_q", "tokens_k", "batch", "blocks", "part_keys"])
def sum_kernel(
    sums,  # as in `backward_kernel`
    dq,
    cu_seqlens_q,
    cu_seqlens_k,
    tokens_q,
    tokens_k,
    batch,
    blocks,  # of queries; as in `find_block`
    part_keys,
    scale,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence, block = find_block(tl.program_id(0), cu_seqlens_q, batch, blocks, BLOCK)
    head = tl.program_id(1)
    start_q, length_q = bounds(cu_seqlens_q, sequence, tokens_q)
    _, length_k = bounds(cu_seqlens_k, sequence, tokens_k)
    first = block * BLOCK
    if (block < 0) | (first >= length_q):
        return
    queries = first + tl.arange(0, BLOCK)
    present = queries < length_q
    row_stride = HEADS * HEAD_DIM
    offset = start_q.to(tl.int64) * row_stride + head * HEAD_DIM
    total = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    base = sums + offset
    for _ in range(0, tl.cdiv(length_k, part_keys)):
        total += load_rows(base, row_stride, queries, present, HEAD_DIM, BLOCK_D)
        base += tl.cast(tokens_q, tl.int64) * row_stride
    store_rows(dq + offset, row_stride, queries, present, total * scale, HEAD_DIM, BLOCK_D)
