// Backward by recomputation: the weights come back from the scores and the saved logsumexp, tile by tile, and a block
// of queries' weights and score gradients serve the three products that sum over queries or keys.
#pragma once

#include "attention/cpu/common.h"

namespace penstock::PENSTOCK_ISA {

// Queries per block, a whole number of strips, and keys per tile of scores.
constexpr int64_t kQueryBlock = 5 * kStrip, kTileKeys = 128;

// What the weights w and the gradients g of the scores of a block of queries are kept as: operands of
// dv = w^T grad_out and dk = g^T q, which sum over queries, and of dq = g k, which sums over keys.
template <class Unit>
struct BlockGradients;

template <>
struct BlockGradients<float> {
  int64_t row;
  float *weights, *gradients;

  BlockGradients(int64_t keys, Scratch& scratch)
      : row(keys), weights(scratch.take<float>(kQueryBlock * row)), gradients(scratch.take<float>(kQueryBlock * row)) {}

  __attribute__((always_inline)) void put(int64_t i, int64_t key, const Floats (&w)[2], const Floats (&g)[2]) {
    for (int j = 0; j < 2; ++j) {
      store(weights + (i + j) * row + key, w[j]);
      store(gradients + (i + j) * row + key, g[j]);
    }
  }
  Left<float> weights_by_key(int64_t key) const { return {weights + key, 1, row}; }
  Left<float> gradients_by_key(int64_t key) const { return {gradients + key, 1, row}; }
  Left<float> gradients_by_query(int64_t key) const { return {gradients + key, row, 1}; }
};

#if defined(__AVX512BF16__)
template <>
struct BlockGradients<Pair> {
  int64_t row;
  Pair *weights, *gradients;  // pairs of queries, by key
  Pair* by_query;             // pairs of keys

  BlockGradients(int64_t keys, Scratch& scratch)
      : row(keys),
        weights(scratch.take<Pair>(kQueryBlock / 2 * row)),
        gradients(scratch.take<Pair>(kQueryBlock / 2 * row)),
        by_query(scratch.take<Pair>(kQueryBlock * row / 2)) {}

  __attribute__((always_inline)) void put(int64_t i, int64_t key, const Floats (&w)[2], const Floats (&g)[2]) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i ws = (__m512i)_mm512_cvtne2ps_pbh((__m512)w[1], (__m512)w[0]);
    const __m512i gs = (__m512i)_mm512_cvtne2ps_pbh((__m512)g[1], (__m512)g[0]);
    store_as(weights + i / 2 * row + key, _mm512_permutexvar_epi16(interleave, ws));
    store_as(gradients + i / 2 * row + key, _mm512_permutexvar_epi16(interleave, gs));
    store_as(by_query + (i * row + key) / 2, _mm512_castsi512_si256(gs));
    store_as(by_query + ((i + 1) * row + key) / 2, _mm512_extracti64x4_epi64(gs, 1));
  }
  Left<Pair> weights_by_key(int64_t key) const { return {weights + key, 1, row}; }
  Left<Pair> gradients_by_key(int64_t key) const { return {gradients + key, 1, row}; }
  Left<Pair> gradients_by_query(int64_t key) const { return {by_query + key / 2, row / 2, 1}; }
};
#endif

// What a query brings from forward: logsumexp in units of log2, and the sum of grad_out * out over the head, divided by
// dropout's scale as the weights' gradients are. A query that sees no key has lse +inf, and so weights of 0.
struct SavedQuery {
  float lse, delta;
};

template <class Element, class Unit>
static void backward_item(const Problem& p, const Item& item, Scratch& scratch) {
  constexpr int kElements = UnitTraits<Unit>::kElements;
  const Spans s(p, item.sequence);
  const Shape<Unit> shape(p.head_dim);
  const int64_t group = p.group();
  const float scale = p.scale * kLog2E;
  const bool dropout = p.dropout_threshold > 0;
  const float delta_scale = p.dropout_scale > 0 ? 1.0f / p.dropout_scale : 0.0f;

  const int64_t most = round_up(s.length_k < kKeyBlock ? s.length_k : kKeyBlock, kLanes);
  const int64_t key_row = most + (most / kLanes % 2 ? 0 : kLanes);
  Unit* copied = scratch.take<Unit>(most * shape.row);
  Unit *keys = scratch.take<Unit>(shape.units * key_row), *values = scratch.take<Unit>(shape.units * key_row);
  float *grad_k = scratch.take<float>(most * shape.width), *grad_v = scratch.take<float>(most * shape.width);
  float* grad_q = scratch.take<float>(group * s.length_q * shape.width);
  fill_zero(grad_q, group * s.length_q * shape.width);
  Unit *queries = scratch.take<Unit>(kQueryBlock * shape.row), *grad_out = scratch.take<Unit>(kQueryBlock * shape.row);
  Unit *paired_queries = nullptr, *paired_grad_out = nullptr, *paired_keys = nullptr;
  if (kElements == 2) {
    paired_queries = scratch.take<Unit>(kQueryBlock / 2 * shape.width);
    paired_grad_out = scratch.take<Unit>(kQueryBlock / 2 * shape.width);
    paired_keys = scratch.take<Unit>(most / 2 * shape.width);
  }
  BlockGradients<Unit> gradients(key_row, scratch);
  constexpr int64_t kTileRow = kTileKeys + kLanes;
  float *scores = scratch.take<float>(kStrip * kTileRow), *grad_weights = scratch.take<float>(kStrip * kTileRow);
  SavedQuery saved[kQueryBlock];
  const int64_t block_size = part_size(s.length_q, kQueryBlock, 2);
  KeptKeys<kTileKeys> kept;

  for (int64_t block = 0; block < s.length_k; block += kKeyBlock) {
    const int64_t left = s.length_k - block, count = left < kKeyBlock ? left : kKeyBlock;
    const int64_t padded = round_up(count, kLanes);
    copy_rows(rows_of<Element>(p.v, s.first_k + block, item.head), p.v.token_stride, count, p.head_dim, copied,
              shape.row, padded);
    transpose(copied, shape.row, padded, shape.units, values, key_row);
    copy_rows(rows_of<Element>(p.k, s.first_k + block, item.head), p.k.token_stride, count, p.head_dim, copied,
              shape.row, padded);
    transpose(copied, shape.row, padded, shape.units, keys, key_row);
    const Unit* summed_keys = summed_over_rows(copied, shape, padded, paired_keys);
    fill_zero(grad_k, padded * shape.width);
    fill_zero(grad_v, padded * shape.width);

    for (int64_t member = 0; member < group; ++member) {
      const int64_t head = item.head * group + member;
      const KeepWeights rule = keep_rule(p, item.sequence, head);
      for (int64_t first = 0; first < s.length_q; first += block_size) {
        const int64_t rows = s.length_q - first < block_size ? s.length_q - first : block_size;
        const int64_t even_rows = round_up(rows, 2), strip_size = part_size(even_rows, kStrip, 2);
        const Range seen = visible_keys(p, s, first, first + rows - 1).within(block, block + count);
        if (seen.empty()) continue;
        const int64_t from = (seen.begin - block) / 64 * 64, to = seen.end - block;

        const Element* query_rows = rows_of<Element>(p.q, s.first_q + first, head);
        const Element* grad_rows = rows_of<Element>(p.grad_out, s.first_q + first, head);
        const Element* out_rows = rows_of<Element>(p.out, s.first_q + first, head);
        copy_rows(query_rows, p.q.token_stride, rows, p.head_dim, queries, shape.row, even_rows);
        copy_rows(grad_rows, p.grad_out.token_stride, rows, p.head_dim, grad_out, shape.row, even_rows);
        const Unit* summed_queries = summed_over_rows(queries, shape, even_rows, paired_queries);
        const Unit* summed_grad_out = summed_over_rows(grad_out, shape, even_rows, paired_grad_out);
        for (int64_t i = 0; i < rows; ++i)
          saved[i] = {p.lse[head * p.total_q + s.first_q + first + i] * kLog2E,
                      delta_scale *
                          dot(grad_rows + i * p.grad_out.token_stride, out_rows + i * p.out.token_stride, p.head_dim)};
        if (rows < even_rows) saved[rows] = {__builtin_inff(), 0.0f};

        for (int64_t tile = from; tile < to; tile += kTileKeys) {
          const int64_t length = to - tile < kTileKeys ? to - tile : kTileKeys;
          const int64_t vectors = round_up(length, kLanes) / kLanes;
          kept.start(block + tile, length);
          for (int64_t strip = 0; strip < even_rows; strip += strip_size) {
            const int64_t strip_rows = even_rows - strip < strip_size ? even_rows - strip : strip_size;
            multiply<false>(Left<Unit>{queries + strip * shape.row, shape.row, 1}, Right<Unit>{keys + tile, key_row},
                            Product{scores, kTileRow}, strip_rows, vectors, shape.units);
            multiply<false>(Left<Unit>{grad_out + strip * shape.row, shape.row, 1}, Right<Unit>{values + tile, key_row},
                            Product{grad_weights, kTileRow}, strip_rows, vectors, shape.units);
            for (int64_t i = 0; i < strip_rows; i += 2) {
              const int64_t query = first + strip + i, offset = block + tile;
              const Range even = visible_keys(p, s, query), odd = visible_keys(p, s, query + 1);
              Range range[2]{{even.begin - offset, even.end - offset}, {odd.begin - offset, odd.end - offset}};
              if (strip + i + 1 == rows) range[1] = {};  // it fills the block up: 0 times a key of infinity is NaN
              const uint64_t* words[2]{};
              if (dropout)
                for (int j = 0; j < 2; ++j) words[j] = kept.of(p, s, rule, query + j);
              const Range both{range[0].begin > range[1].begin ? range[0].begin : range[1].begin,
                               range[0].end < range[1].end ? range[0].end : range[1].end};
              const auto compute = [&](int64_t c, auto whole) __attribute__((always_inline)) {
                Floats weight[2], gradient[2];
                for (int j = 0; j < 2; ++j) {
                  const auto [lse, delta] = saved[strip + i + j];
                  Floats grad = load(grad_weights + (i + j) * kTileRow + c);
                  weight[j] = exp2(min(Floats{}, load(scores + (i + j) * kTileRow + c) * scale - lse));  // NaN passes
                  if (dropout) grad = keep(keep_lanes(words[j], c), grad);
                  gradient[j] = weight[j] * (grad - delta);
                  if (dropout) weight[j] = keep(keep_lanes(words[j], c), weight[j]);
                  if (whole) continue;
                  const uint32_t seen_lanes = lanes_between(c, range[j].begin, range[j].end);
                  weight[j] = keep(seen_lanes, weight[j]), gradient[j] = keep(seen_lanes, gradient[j]);
                }
                gradients.put(strip + i, tile + c, weight, gradient);
              };
              for_vectors(0, vectors * kLanes, both, compute);
            }
          }
        }

        const int64_t steps = even_rows / kElements;
        multiply<true>(gradients.weights_by_key(from), Right<Unit>{summed_grad_out, shape.width},
                       Product{grad_v + from * shape.width, shape.width}, to - from, shape.vectors, steps);
        multiply<true>(gradients.gradients_by_key(from), Right<Unit>{summed_queries, shape.width},
                       Product{grad_k + from * shape.width, shape.width}, to - from, shape.vectors, steps);
        multiply<true>(gradients.gradients_by_query(from),
                       Right<Unit>{summed_keys + from / kElements * shape.width, shape.width},
                       Product{grad_q + (member * s.length_q + first) * shape.width, shape.width}, rows, shape.vectors,
                       (to - from + kElements - 1) / kElements);
      }
    }

    write_key_gradients<Element>(p, s, item.head, block, count, shape.width, grad_k, grad_v);
  }
  for (int64_t member = 0; member < group; ++member) {
    Element* grad_q_rows = rows_of<Element>(p.grad_q, s.first_q, item.head * group + member);
    for (int64_t i = 0; i < s.length_q; ++i)
      write_row(grad_q + (member * s.length_q + i) * shape.width, p.scale * p.dropout_scale, p.head_dim,
                grad_q_rows + i * p.grad_q.token_stride);
  }
}

}  // namespace penstock::PENSTOCK_ISA
