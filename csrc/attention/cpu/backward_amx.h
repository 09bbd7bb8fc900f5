// Backward on the matrix unit, by recomputation as in backward.h, but with keys in the rows of the scores and queries
// in their columns: so the weights and the scores' gradients are written as dv = w^T grad_out and dk = g^T q read them,
// and dq^T = k^T g reads pairs of their rows. Only q, grad_out and k are transposed on the way in, and dq on the way
// out.
#pragma once

#include "attention/cpu/common_amx.h"

namespace penstock::PENSTOCK_ISA {

// Queries per block, and keys per tile of scores.
constexpr int64_t kQueryBlock = 128, kTileKeys = kGroup;

// What a block of queries brings from forward, as in backward.h: logsumexp in units of log2, and delta.
struct SavedQueries {
  float lse[kQueryBlock], delta[kQueryBlock];
};

// The sums of a * b over `units` units of `rows` rows, a multiple of kLanes, times `factor`.
static void dot_rows(const Pair* a, const Pair* b, int64_t row, int64_t units, int64_t rows, float factor, float* to) {
  for (int64_t first = 0; first < rows; first += kLanes) {
    float sums[kLanes][kLanes], by_lane[kLanes][kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      Floats sum{};
      for (int64_t unit = (first + i) * row, end = unit + units; unit < end; unit += kLanes)
        sum = multiply_add<Pair>(sum, load_as<Floats>(a + unit), load_as<Floats>(b + unit));
      store(sums[i], sum);
    }
    transpose(sums[0], kLanes, kLanes, kLanes, by_lane[0], kLanes);
    Floats total{};
    for (const auto& lane : by_lane) total += load(lane);
    store(to + first, total * factor);
  }
}

// The weights w and the gradients g of the scores of a tile of keys and a block of queries.
struct TileGradients {
  Pair *weights, *gradients;  // pairs of queries, by key
  Pair* by_pair;              // pairs of keys, by query, the queries in the order of query_at
  int64_t queries;

  TileGradients(int64_t queries_, Scratch& scratch)
      : weights(scratch.take<Pair>(kTileKeys * queries_ / 2)),
        gradients(scratch.take<Pair>(kTileKeys * queries_ / 2)),
        by_pair(scratch.take<Pair>(kTileKeys / 2 * queries_)),
        queries(queries_) {}

  // Two keys and kColumns queries.
  __attribute__((always_inline)) void put(int64_t key, int64_t query, const Floats (&w)[2][2],
                                          const Floats (&g)[2][2]) {
    const __m512i rows[2]{to_bf16(g[0]), to_bf16(g[1])};
    for (int r = 0; r < 2; ++r) {
      store_as(weights + ((key + r) * queries + query) / 2, to_bf16(w[r]));
      store_as(gradients + ((key + r) * queries + query) / 2, rows[r]);
    }
    store_pairs(rows, by_pair + key / 2 * queries + query);
  }
  // An even number of keys.
  void clear(int64_t first, int64_t last) {
    for (Pair* part : {weights, gradients, by_pair})
      std::memset(part + first * queries / 2, 0, size_t((last - first) * queries / 2) * sizeof(Pair));
  }
};

static void backward_item(const Problem& p, const Item& item, Scratch& scratch) {
  const Spans s(p, item.sequence);
  const Shape<Pair> shape(p.head_dim);
  const int64_t group = p.group();
  const float scale = p.scale * kLog2E;
  const bool dropout = p.dropout_threshold > 0;
  const float delta_scale = p.dropout_scale > 0 ? 1.0f / p.dropout_scale : 0.0f;
  const auto rows_from = [&](const Tensor& tensor, int64_t token, int64_t head) {
    return rows_of<bf16>(tensor, token, head);
  };

  const int64_t most = round_up(s.length_k < kKeyBlock ? s.length_k : kKeyBlock, kSummed);
  Pair *keys = scratch.take<Pair>(most * shape.row), *values = scratch.take<Pair>(most * shape.row);
  Pair* paired_keys = scratch.take<Pair>(most / 2 * shape.width);
  Pair* keys_by_unit = scratch.take<Pair>(shape.width * most / 2);
  float *grad_k = scratch.take<float>(most * shape.width), *grad_v = scratch.take<float>(most * shape.width);

  const int64_t block_size = part_size(s.length_q, kQueryBlock, kColumns);
  const int64_t blocks = (s.length_q + block_size - 1) / block_size;
  float* grad_q = scratch.take<float>(group * blocks * shape.width * block_size);
  fill_zero(grad_q, group * blocks * shape.width * block_size);
  Pair *copied = scratch.take<Pair>(block_size * shape.row), *out = scratch.take<Pair>(block_size * shape.row);
  Pair *queries = scratch.take<Pair>(shape.row * block_size), *grad_out = scratch.take<Pair>(shape.row * block_size);
  Pair* paired_queries = scratch.take<Pair>(block_size / 2 * shape.width);
  Pair* paired_grad_out = scratch.take<Pair>(block_size / 2 * shape.width);
  TileGradients gradients(block_size, scratch);
  float* scores = scratch.take<float>(kTileKeys * kColumns);
  float* grad_weights = scratch.take<float>(kTileKeys * kColumns);
  SavedQueries saved;
  Kept kept;

  for (int64_t block = 0; block < s.length_k; block += kKeyBlock) {
    const int64_t left = s.length_k - block, count = left < kKeyBlock ? left : kKeyBlock;
    const int64_t padded = round_up(count, kSummed);
    copy_rows(rows_from(p.v, s.first_k + block, item.head), p.v.token_stride, count, p.head_dim, values, shape.row,
              padded);
    copy_rows(rows_from(p.k, s.first_k + block, item.head), p.k.token_stride, count, p.head_dim, keys, shape.row,
              padded);
    pair_rows(keys, shape.row, padded, shape.width, paired_keys, shape.width);
    transpose(paired_keys, shape.width, padded / 2, shape.width, keys_by_unit, most / 2);
    fill_zero(grad_k, padded * shape.width);
    fill_zero(grad_v, padded * shape.width);

    for (int64_t member = 0; member < group; ++member) {
      const int64_t head = item.head * group + member;
      const KeepWeights rule = keep_rule(p, item.sequence, head);
      for (int64_t first = 0; first < s.length_q; first += block_size) {
        const int64_t rows = s.length_q - first < block_size ? s.length_q - first : block_size;
        const int64_t columns = round_up(rows, kColumns);
        const Range seen = visible_keys(p, s, first, first + rows - 1).within(block, block + count);
        if (seen.empty()) continue;
        const int64_t from = (seen.begin - block) / kTileKeys * kTileKeys, to = seen.end - block;

        const auto pack = [&](const bf16* from_rows, int64_t stride, Pair* by_unit, Pair* paired) {
          copy_rows(from_rows, stride, rows, p.head_dim, copied, shape.row, columns);
          transpose(copied, shape.row, columns, shape.row, by_unit, block_size);
          pair_rows(copied, shape.row, columns, shape.width, paired, shape.width);
        };
        pack(rows_from(p.q, s.first_q + first, head), p.q.token_stride, queries, paired_queries);
        pack(rows_from(p.grad_out, s.first_q + first, head), p.grad_out.token_stride, grad_out, paired_grad_out);
        copy_rows(rows_from(p.out, s.first_q + first, head), p.out.token_stride, rows, p.head_dim, out, shape.row,
                  columns);
        dot_rows(copied, out, shape.row, shape.row, columns, delta_scale, saved.delta);
        const float* lse = p.lse + head * p.total_q + s.first_q + first;
        for (int64_t i = 0; i < columns; ++i) saved.lse[i] = i < rows ? lse[i] * kLog2E : __builtin_inff();

        float* grad_q_columns = grad_q + (member * blocks + first / block_size) * shape.width * block_size;
        for (int64_t tile = from; tile < to; tile += kTileKeys) {
          const int64_t length = to - tile < kTileKeys ? to - tile : kTileKeys;
          const int64_t summed = round_up(length, kSummed);
          for (int64_t strip = 0; strip < columns; strip += kColumns) {
            const int64_t strip_rows = rows - strip < kColumns ? rows - strip : kColumns;
            multiply<false>(Left<Pair>{keys + tile * shape.row, shape.row, 1}, Right<Pair>{queries + strip, block_size},
                            Product{scores, kColumns}, summed, 2, shape.row);
            multiply<false>(Left<Pair>{values + tile * shape.row, shape.row, 1},
                            Right<Pair>{grad_out + strip, block_size}, Product{grad_weights, kColumns}, summed, 2,
                            shape.row);
            if (dropout) kept.fill(rule, first + strip, strip_rows, block + tile);
            const int64_t halves = strip_rows > kLanes ? 2 : 1;
            Floats lse[2], delta[2];
            uint32_t there[2];  // the queries of a strip; the others fill it up, and 0 times a key of infinity is NaN
            for (int j = 0; j < 2; ++j) {
              there[j] = lanes_between(j * kLanes, 0, strip_rows);
              lse[j] = load(saved.lse + strip + j * kLanes);
              delta[j] = load(saved.delta + strip + j * kLanes);
            }
            const auto compute = [&](int64_t key, auto whole, auto dropped) __attribute__((always_inline)) {
              Floats weight[2][2]{}, gradient[2][2]{};
              for (int r = 0; r < 2; ++r) {
                const Range range = whole ? Range{} : visible_queries(p, s, block + tile + key + r);
                for (int64_t j = 0; j < halves; ++j) {
                  const int64_t at = (key + r) * kColumns + j * kLanes;
                  const Floats w = exp2(min(Floats{}, load(scores + at) * scale - lse[j]));  // in this order NaN passes
                  Floats g = load(grad_weights + at);
                  uint32_t lanes = there[j];
                  if (!whole) lanes &= lanes_between(first + strip + j * kLanes, range.begin, range.end);
                  const uint32_t kept_lanes = dropped ? kept.lanes[key + r][j] : kAllLanes;
                  if (dropped) g = keep(kept_lanes, g);
                  gradient[r][j] = keep(lanes, w * (g - delta[j]));
                  weight[r][j] = keep(lanes & kept_lanes, w);
                }
              }
              gradients.put(key, strip, weight, gradient);
            };
            for_pairs_of_keys(p, s, first + strip, first + strip + strip_rows - 1, block + tile, length,
                              [&](int64_t key, auto whole) __attribute__((always_inline)) {
                                dropout ? compute(key, whole, std::true_type{})
                                        : compute(key, whole, std::false_type{});
                              });
          }

          gradients.clear(round_up(length, 2), summed);

          const int64_t row = block_size / 2;
          multiply<true>(Left<Pair>{gradients.weights, row, 1}, Right<Pair>{paired_grad_out, shape.width},
                         Product{grad_v + tile * shape.width, shape.width}, summed, shape.vectors, columns / 2);
          multiply<true>(Left<Pair>{gradients.gradients, row, 1}, Right<Pair>{paired_queries, shape.width},
                         Product{grad_k + tile * shape.width, shape.width}, summed, shape.vectors, columns / 2);
          multiply<true>(Left<Pair>{keys_by_unit + tile / 2, most / 2, 1}, Right<Pair>{gradients.by_pair, block_size},
                         Product{grad_q_columns, block_size}, shape.width, columns / kLanes, summed / 2);
        }
      }
    }

    write_key_gradients<bf16>(p, s, item.head, block, count, shape.width, grad_k, grad_v);
  }

  float* by_query = scratch.take<float>(block_size * shape.width);
  for (int64_t member = 0; member < group; ++member)
    for (int64_t first = 0; first < s.length_q; first += block_size) {
      const int64_t rows = s.length_q - first < block_size ? s.length_q - first : block_size;
      const int64_t columns = round_up(rows, kColumns);
      transpose(grad_q + (member * blocks + first / block_size) * shape.width * block_size, block_size, shape.width,
                columns, by_query, shape.width);
      bf16* grad_q_rows = rows_from(p.grad_q, s.first_q + first, item.head * group + member);
      for (int64_t i = 0; i < columns; ++i)
        if (const int64_t query = query_at(i); query < rows)
          write_row(by_query + i * shape.width, p.scale * p.dropout_scale, p.head_dim,
                    grad_q_rows + query * p.grad_q.token_stride);
    }
}

}  // namespace penstock::PENSTOCK_ISA
