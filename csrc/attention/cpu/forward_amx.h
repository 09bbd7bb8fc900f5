// Forward on the matrix unit: the scores of a strip of queries against a block of keys stay in the cache between the
// two products, as in forward.h, but transposed. The results are too, until the end.
#pragma once

#include "attention/cpu/common_amx.h"

namespace penstock::PENSTOCK_ISA {

// The scores of a strip and as many keys fill two thirds of a first-level cache.
constexpr int64_t kForwardKeys = 256;

// Relative error below 2e-7 for finite x > 0.
static inline Floats log2(Floats x) {
  const Floats mantissa = (Floats)_mm512_getmant_ps((__m512)x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  const Floats exponent = (Floats)_mm512_getexp_ps((__m512)(x / mantissa));
  // log2(m) = 2 / ln 2 * artanh(t), and t is at most 1/5
  const Floats t = (mantissa - 1.0f) / (mantissa + 1.0f), square = t * t;
  Floats series = square * (1.0f / 9) + 1.0f / 7;
  series = series * square + 1.0f / 5;
  series = series * square + 1.0f / 3;
  return exponent + (series * square + 1.0f) * t * (2 / kLn2);
}

// The softmax of a strip of queries as its blocks of keys go by, in units of log2.
struct StripSoftmax {
  float max[kColumns], total[kColumns];
};

// Turns the scores of queries [first, first + rows) and keys [offset, offset + count) into weights relative to the
// largest score yet, 0 where a query does not see a key, and adds to the totals. Dropout zeroes weights but not their
// share of the totals. Fills `rescale` with what rescales the results of earlier blocks, by query.
template <bool kDropout>
static void softmax_strip(const Problem& p, const Spans& s, int64_t first, int64_t rows, int64_t offset, int64_t count,
                          const float* scores, const Kept* kept, StripSoftmax& state, Pair* weights, float* rescale) {
  const float scale = p.scale * kLog2E;
  const int64_t halves = rows > kLanes ? 2 : 1;
  const auto for_pairs = [&](auto body) __attribute__((always_inline)) {
    for_pairs_of_keys(
        p, s, first, first + rows - 1, offset, count, [&](int64_t key, auto whole) __attribute__((always_inline)) {
          for (int r = 0; r < 2; ++r) {
            const Range range = whole ? Range{} : visible_queries(p, s, offset + key + r);
            const auto seen = [&](int64_t j, Floats x, Floats otherwise) __attribute__((always_inline)) {
              return whole ? x : choose(lanes_between(first + j * kLanes, range.begin, range.end), x, otherwise);
            };
            body(key, r, seen);
          }
        });
  };

  Floats largest[2]{splat(-__builtin_inff()), splat(-__builtin_inff())};
  for_pairs([&](int64_t key, int r, auto seen) __attribute__((always_inline)) {
    for (int64_t j = 0; j < halves; ++j)
      largest[j] = max(largest[j], seen(j, load(scores + (key + r) * kColumns + j * kLanes) * scale, largest[j]));
  });
  Floats total[2]{};
  for (int j = 0; j < 2; ++j) {
    const Floats before = load(state.max + j * kLanes);
    largest[j] = max(before, largest[j]);  // in this order NaN passes
    const Floats factor = before == -__builtin_inff() ? splat(1.0f) : exp2(before - largest[j]);
    store(rescale + j * kLanes, factor);
    store(state.max + j * kLanes, largest[j]);
    largest[j] = largest[j] == -__builtin_inff() ? Floats{} : largest[j];  // scores of -inf alone have weights of 0
  }
  __m512i pair[2];
  for_pairs([&](int64_t key, int r, auto seen) __attribute__((always_inline)) {
    Floats weight[2]{};
    for (int64_t j = 0; j < halves; ++j) {
      const Floats score = rounded(load(scores + (key + r) * kColumns + j * kLanes) * scale);  // as the largest was
      weight[j] = seen(j, exp2(score - largest[j]), Floats{});
      total[j] += weight[j];
      if (kDropout) weight[j] = keep(kept[(key + r) / kGroup].lanes[(key + r) % kGroup][j], weight[j]);
    }
    pair[r] = to_bf16(weight);
    if (r == 1) store_pairs(pair, weights + key / 2 * kColumns);
  });
  for (int j = 0; j < 2; ++j)
    store(state.total + j * kLanes, load(state.total + j * kLanes) * load(rescale + j * kLanes) + total[j]);
}

static void forward_item(const Problem& p, const Item& item, Scratch& scratch) {
  const Spans s(p, item.sequence);
  const Shape<Pair> shape(p.head_dim);
  const int64_t rows = item.last - item.first, kv_head = item.head / p.group();
  const int64_t strips = (rows + kColumns - 1) / kColumns;
  const bool dropout = p.dropout_threshold > 0;
  const KeepWeights rule = keep_rule(p, item.sequence, item.head);

  const Range all = visible_keys(p, s, item.first, item.last - 1);
  const int64_t start = all.begin / kGroup * kGroup;
  const int64_t most = round_up(all.end - start < kForwardKeys ? all.end - start : kForwardKeys, kSummed);
  Pair* copied = scratch.take<Pair>((most > kColumns ? most : kColumns) * shape.row);
  Pair* queries = scratch.take<Pair>(strips * kColumns * shape.row);
  float* results = scratch.take<float>(strips * shape.width * kColumns);
  fill_zero(results, strips * shape.width * kColumns);
  StripSoftmax* states = scratch.take<StripSoftmax>(strips);
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int64_t first = strip * kColumns, count = rows - first < kColumns ? rows - first : kColumns;
    copy_rows(rows_of<bf16>(p.q, s.first_q + item.first + first, item.head), p.q.token_stride, count, p.head_dim,
              copied, shape.row, kColumns);
    transpose(copied, shape.row, kColumns, shape.row, queries + first * shape.row, kColumns);
    for (int64_t i = 0; i < kColumns; ++i) states[strip].max[i] = -__builtin_inff(), states[strip].total[i] = 0;
  }
  Pair* keys = scratch.take<Pair>(most * shape.row);
  Pair* paired = scratch.take<Pair>(most / 2 * shape.width);
  Pair* values = scratch.take<Pair>(shape.width * most / 2);  // pairs of keys, by unit of a head
  float* scores = scratch.take<float>(most * kColumns);
  Pair* weights = scratch.take<Pair>(most / 2 * kColumns);
  Kept kept[kForwardKeys / kGroup];
  float rescale[kColumns];

  for (int64_t block = start; block < all.end; block += kForwardKeys) {
    const int64_t count = all.end - block < kForwardKeys ? all.end - block : kForwardKeys;
    const int64_t padded = round_up(count, kSummed);
    copy_rows(rows_of<bf16>(p.k, s.first_k + block, kv_head), p.k.token_stride, count, p.head_dim, keys, shape.row,
              padded);
    copy_rows(rows_of<bf16>(p.v, s.first_k + block, kv_head), p.v.token_stride, count, p.head_dim, copied, shape.row,
              padded);
    pair_rows(copied, shape.row, padded, shape.width, paired, shape.width);
    transpose(paired, shape.width, padded / 2, shape.width, values, most / 2);

    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t left = rows - strip * kColumns, strip_rows = left < kColumns ? left : kColumns;
      const int64_t first = item.first + strip * kColumns;
      const Range seen = visible_keys(p, s, first, first + strip_rows - 1).within(block, block + count);
      if (seen.empty()) continue;
      const int64_t from = (seen.begin - block) / kGroup * kGroup, length = seen.end - block - from;
      const int64_t summed = round_up(length, kSummed);
      multiply<false>(Left<Pair>{keys + from * shape.row, shape.row, 1},
                      Right<Pair>{queries + strip * kColumns * shape.row, kColumns}, Product{scores, kColumns}, summed,
                      strip_rows > kLanes ? 2 : 1, shape.row);
      if (dropout)
        for (int64_t key = 0; key < length; key += kGroup)
          kept[key / kGroup].fill(rule, first, strip_rows, block + from + key);
      const auto softmax = dropout ? softmax_strip<true> : softmax_strip<false>;
      softmax(p, s, first, strip_rows, block + from, length, scores, kept, states[strip], weights, rescale);
      for (int64_t key = round_up(length, 2); key < summed; key += 2)
        std::memset(weights + key / 2 * kColumns, 0, kColumns * sizeof(Pair));
      float* result = results + strip * shape.width * kColumns;
      if (block > start) {
        float factors[kColumns];
        for (int64_t i = 0; i < kColumns; ++i) factors[i] = rescale[query_at(i)];
        for (int64_t i = 0; i < shape.width * kColumns; i += kLanes)
          store(result + i, load(result + i) * load(factors + i % kColumns));
      }
      multiply<true>(Left<Pair>{values + from / 2, most / 2, 1}, Right<Pair>{weights, kColumns},
                     Product{result, kColumns}, shape.width, 2, summed / 2);
    }
  }

  float* by_query = scratch.take<float>(kColumns * shape.width);
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int64_t first = strip * kColumns, count = rows - first < kColumns ? rows - first : kColumns;
    const int64_t token = s.first_q + item.first + first;
    const StripSoftmax& state = states[strip];
    float factor[kColumns], lse[kColumns];
    for (int64_t j = 0; j < kColumns; j += kLanes) {
      const Floats max = load(state.max + j), total = load(state.total + j);
      const Ints unseen = max == -__builtin_inff();
      store(factor + j, unseen ? Floats{} : p.dropout_scale / total);
      store(lse + j, unseen ? splat(__builtin_inff()) : (max + log2(total)) * kLn2);
    }
    std::memcpy(p.lse + item.head * p.total_q + token, lse, size_t(count) * sizeof(float));
    transpose(results + strip * shape.width * kColumns, kColumns, shape.width, kColumns, by_query, shape.width);
    bf16* out = rows_of<bf16>(p.out, token, item.head);
    for (int64_t i = 0; i < kColumns; ++i)
      if (const int64_t query = query_at(i); query < count)
        write_row(by_query + i * shape.width, factor[query], p.head_dim, out + query * p.out.token_stride);
  }
}

}  // namespace penstock::PENSTOCK_ISA
