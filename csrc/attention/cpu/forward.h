// Forward: the scores of a strip of queries against a block of keys stay in the cache between the two products. Longer
// sequences than one block of keys go on with the online softmax of FlashAttention-2 (Dao, 2023).
#pragma once

#include "attention/cpu/common.h"

namespace penstock::PENSTOCK_ISA {

// The softmax of one query as its blocks of keys go by, in units of log2.
struct OnlineSoftmax {
  float max, total;
};

// Turns the scores of one query in [0, round_up(range.end, kLanes)) into weights relative to the largest score yet,
// 0 outside `range`, and adds to the total. Dropout zeroes weights but not their share of the total. Returns what
// rescales the results of earlier blocks.
template <class Target>
static float softmax_row(const float* scores, float scale, Range range, const uint64_t* words, OnlineSoftmax& state,
                         Target* weights, int64_t end) {
  const auto seen = [&](int64_t c, auto whole, Floats x, Floats otherwise) __attribute__((always_inline)) {
    return whole ? x : choose(lanes_between(c, range.begin, range.end), x, otherwise);
  };
  Floats largest = splat(-__builtin_inff());
  for_vectors(range.begin / kLanes * kLanes, range.end, range,
              [&](int64_t c, auto whole) __attribute__((always_inline)) {
                largest = max(largest, seen(c, whole, load(scores + c) * scale, largest));
              });
  const float before = state.max, highest = horizontal_max(largest);
  state.max = before > highest ? before : highest;                       // in this order NaN passes
  const float from = state.max == -__builtin_inff() ? 0.0f : state.max;  // scores of -inf alone have weights of 0
  Floats total{};
  // rounded as the largest was, of which the weight would not be 1 else if it is large
  for_vectors(0, end, range, [&](int64_t c, auto whole) __attribute__((always_inline)) {
    Floats weight = seen(c, whole, exp2(rounded(load(scores + c) * scale) - from), Floats{});
    total += weight;
    if (words != nullptr) weight = keep(keep_lanes(words, c), weight);
    store(weights + c, weight);
  });
  const float rescale = before == state.max || before == -__builtin_inff() ? 1.0f : exp2(splat(before - state.max))[0];
  state.total = state.total * rescale + horizontal_sum(total);
  return rescale;
}

template <class Element, class Unit>
static void forward_item(const Problem& p, const Item& item, Scratch& scratch) {
  using Target = std::conditional_t<UnitTraits<Unit>::kElements == 2, bf16, float>;
  constexpr int kElements = UnitTraits<Unit>::kElements;
  const Spans s(p, item.sequence);
  const Shape<Unit> shape(p.head_dim);
  const int64_t rows = item.last - item.first, kv_head = item.head / p.group();
  const float scale = p.scale * kLog2E;
  const bool dropout = p.dropout_threshold > 0;
  const KeepWeights rule = keep_rule(p, item.sequence, item.head);

  Unit* queries = scratch.take<Unit>(rows * shape.row);
  copy_rows(rows_of<Element>(p.q, s.first_q + item.first, item.head), p.q.token_stride, rows, p.head_dim, queries,
            shape.row, rows);
  float* results = scratch.take<float>(rows * shape.width);
  fill_zero(results, rows * shape.width);
  OnlineSoftmax* states = scratch.take<OnlineSoftmax>(rows);
  for (int64_t i = 0; i < rows; ++i) states[i] = {-__builtin_inff(), 0.0f};

  const Range all = visible_keys(p, s, item.first, item.last - 1);
  const int64_t start = all.begin / 64 * 64;  // dropout's groups of 64 keys never straddle blocks
  const int64_t most = round_up(all.end - start < kKeyBlock ? all.end - start : kKeyBlock, kLanes);
  // an odd number of vectors from row to row spreads the rows over the cache's sets
  const int64_t key_row = most + (most / kLanes % 2 ? 0 : kLanes);
  Unit* copied = scratch.take<Unit>(most * shape.row);
  Unit* keys = scratch.take<Unit>(shape.units * key_row);
  Unit* paired = scratch.take<Unit>(most / 2 * shape.width);
  float* scores = scratch.take<float>(kStrip * key_row);
  Unit* weights = scratch.take<Unit>(kStrip * key_row);
  KeptKeys<kKeyBlock> kept;
  const int64_t strip_size = part_size(rows, kStrip, 1);

  for (int64_t block = start; block < all.end; block += kKeyBlock) {
    const int64_t count = all.end - block < kKeyBlock ? all.end - block : kKeyBlock, padded = round_up(count, kLanes);
    copy_rows(rows_of<Element>(p.k, s.first_k + block, kv_head), p.k.token_stride, count, p.head_dim, copied, shape.row,
              padded);
    transpose(copied, shape.row, padded, shape.units, keys, key_row);
    copy_rows(rows_of<Element>(p.v, s.first_k + block, kv_head), p.v.token_stride, count, p.head_dim, copied, shape.row,
              padded);
    const Unit* values = summed_over_rows(copied, shape, padded, paired);
    kept.start(block, count);

    for (int64_t strip = 0; strip < rows; strip += strip_size) {
      const int64_t strip_rows = rows - strip < strip_size ? rows - strip : strip_size, first = item.first + strip;
      const Range seen = visible_keys(p, s, first, first + strip_rows - 1).within(block, block + count);
      if (seen.empty()) continue;
      const int64_t from = (seen.begin - block) / 64 * 64, length = seen.end - block - from;
      multiply<false>(Left<Unit>{queries + strip * shape.row, shape.row, 1}, Right<Unit>{keys + from, key_row},
                      Product{scores, key_row}, strip_rows, round_up(length, kLanes) / kLanes, shape.units);
      for (int64_t i = 0; i < strip_rows; ++i) {
        Range range = visible_keys(p, s, first + i).within(block + from, block + from + length);
        range = range.empty() ? Range{0, 0} : Range{range.begin - block - from, range.end - block - from};
        const uint64_t* words = dropout ? kept.of(p, s, rule, first + i) + from / 64 : nullptr;
        const float rescale = range.empty()
                                  ? (fill_zero(reinterpret_cast<float*>(weights + i * key_row), key_row), 1.0f)
                                  : softmax_row(scores + i * key_row, scale, range, words, states[strip + i],
                                                reinterpret_cast<Target*>(weights + i * key_row), length);
        if (rescale != 1.0f)
          for (int64_t d = 0; d < shape.width; d += kLanes) {
            float* result = results + (strip + i) * shape.width + d;
            store(result, load(result) * rescale);
          }
      }
      multiply<true>(Left<Unit>{weights, key_row, 1}, Right<Unit>{values + from / kElements * shape.width, shape.width},
                     Product{results + strip * shape.width, shape.width}, strip_rows, shape.vectors,
                     (length + kElements - 1) / kElements);
    }
  }

  Element* out = rows_of<Element>(p.out, s.first_q + item.first, item.head);
  float* lse = p.lse + item.head * p.total_q + s.first_q + item.first;
  for (int64_t i = 0; i < rows; ++i) {
    const auto [max, total] = states[i];
    const bool unseen = max == -__builtin_inff();
    write_row(results + i * shape.width, unseen ? 0.0f : p.dropout_scale / total, p.head_dim,
              out + i * p.out.token_stride);
    lse[i] = unseen ? __builtin_inff() : (max + __builtin_log2f(total)) * kLn2;
  }
}

}  // namespace penstock::PENSTOCK_ISA
