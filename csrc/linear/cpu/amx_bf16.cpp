// The gradients of a linear layer's parameters on Intel's matrix unit. Both operands have tokens in their rows, and
// tokens are what is summed over: pairs of them have to come together, and grad_out has to be transposed besides. The
// matrix library does that at a third of the speed of its other products; here it costs a quarter of the product.
#ifdef __AMX_BF16__
#include <algorithm>

#define PENSTOCK_ISA amx_bf16
#include "linear/cpu/packed.h"
#include "linear/cpu/problem.h"
#include "matmul_amx.h"
#include "pack.h"

namespace penstock {
namespace amx_bf16 {

using linear::Block;
using linear::WeightGradient;

// Tokens summed between two visits of a result, and what operands and result are filled up to with zeros.
constexpr int64_t kDepth = 256, kTile = 2 * kAmxRows, kTokens = 2 * kAmxPairs;

// to[column][token] = from[token][column] for eight columns, of which `columns` are there, and 32 tokens, of which
// `tokens` are; a row of `to` has `to_row` pairs of tokens.
template <bool kWhole>
PENSTOCK_INLINE void transpose_eight(const bf16* from, int64_t stride, int64_t tokens, int64_t columns, Pair* to,
                                     int64_t to_row) {
  const auto eight_of = [&](int64_t token) __attribute__((always_inline)) {
    const bf16* at = from + token * stride;
    if constexpr (kWhole) return load_as<__m128i>(at);
    const uint32_t mask = token < tokens ? (1u << columns) - 1 : 0;
    return _mm_maskz_loadu_epi16(__mmask8(mask), at);
  };
  __m512i x[8], y[8];  // a lane of 128 bits for each eight tokens
  for (int i = 0; i < 8; ++i) {
    x[i] = _mm512_castsi128_si512(eight_of(i));
    x[i] = _mm512_inserti32x4(x[i], eight_of(8 + i), 1);
    x[i] = _mm512_inserti32x4(x[i], eight_of(16 + i), 2);
    x[i] = _mm512_inserti32x4(x[i], eight_of(24 + i), 3);
  }
  for (int i = 0; i < 4; ++i) {
    y[i] = _mm512_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
    y[4 + i] = _mm512_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 8; i += 2) {  // x: columns 0, 1; 2, 3; and so on, of tokens 0 to 3 and 4 to 7
    const int four = i / 4 * 4, half = i / 2 % 2;
    x[four + half] = _mm512_unpacklo_epi32(y[i], y[i + 1]);
    x[four + 2 + half] = _mm512_unpackhi_epi32(y[i], y[i + 1]);
  }
  for (int i = 0; i < 8; i += 2) {
    store_as(to + i * to_row, _mm512_unpacklo_epi64(x[i], x[i + 1]));
    store_as(to + (i + 1) * to_row, _mm512_unpackhi_epi64(x[i], x[i + 1]));
  }
}

// grad_out's `rows` columns, at most kTile, of `tokens` tokens as rows of pairs of tokens, filled up with zeros.
static void transpose_tokens(const bf16* from, int64_t stride, int64_t tokens, int64_t rows, Pair* to, int64_t to_row) {
  for (int64_t token = 0; token < tokens; token += kTokens)
    for (int64_t row = 0; row < kTile; row += 8) {
      const bf16* at = from + token * stride + row;
      Pair* out = to + row * to_row + token / 2;
      const int64_t left = rows - row < 0 ? 0 : rows - row < 8 ? rows - row : 8;
      if (left == 8 && tokens - token >= kTokens)
        transpose_eight<true>(at, stride, kTokens, 8, out, to_row);
      else
        transpose_eight<false>(at, stride, tokens - token, left, out, to_row);
    }
}

// x's `columns` columns as panels of kAmxRows, each with a row of pairs for every two tokens, `panel` apart; up to a
// multiple of two panels and of 32 tokens, zeros beyond the last.
template <bool kWhole>
PENSTOCK_INLINE void pair_tile(const bf16* from, int64_t stride, int64_t tokens, int64_t columns, Pair* to,
                               int64_t panel) {
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = first + _mm512_set1_epi64(4);
  const auto row = [&](int64_t token) __attribute__((always_inline)) {
    const bf16* at = from + token * stride;
    if constexpr (kWhole) return load_as<__m512i>(at);
    return _mm512_maskz_loadu_epi16(token >= tokens ? 0 : columns < kTile ? (1u << columns) - 1 : ~0u, at);
  };
  for (int64_t token = 0; token < kTokens; token += 2) {
    const __m512i even = row(token), odd = row(token + 1);
    const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
    store_as(to + token / 2 * kAmxRows, _mm512_permutex2var_epi64(low, first, high));
    store_as(to + token / 2 * kAmxRows + panel, _mm512_permutex2var_epi64(low, second, high));
  }
}

static void pair_tokens(const bf16* from, int64_t stride, int64_t tokens, int64_t columns, Pair* to, int64_t panel) {
  for (int64_t token = 0; token < tokens; token += kTokens)
    for (int64_t column = 0; column < columns; column += kTile) {
      const bf16* at = from + token * stride + column;
      Pair* out = to + column / kAmxRows * panel + token / 2 * kAmxRows;
      if (tokens - token >= kTokens && columns - column >= kTile)
        pair_tile<true>(at, stride, kTokens, kTile, out, panel);
      else
        pair_tile<false>(at, stride, tokens - token, columns - column, out, panel);
    }
}

// sums[row] += both of each of `pairs` pairs, in a vector's lanes; rows are `to_row` pairs apart.
static void add_pairs(const Pair* rows, int64_t to_row, int64_t pairs, Floats* sums) {
  const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3F803F80);
  for (int64_t row = 0; row < kTile; row += 4) {
    Floats sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = sums[row + i];
    for (int64_t k = 0; k < pairs; k += kLanes)
      for (int i = 0; i < 4; ++i) {
        const auto pair = load_as<__m512bh>(rows + (row + i) * to_row + k);
        sum[i] = (Floats)_mm512_dpbf16_ps((__m512)sum[i], pair, ones);
      }
    for (int i = 0; i < 4; ++i) sums[row + i] = sum[i];
  }
}

static void compute(const WeightGradient& p, const Block& block, Scratch& scratch) {
  const int64_t rows = round_up(block.rows, kTile), columns = round_up(block.columns, kTile);
  const int64_t chunks = (p.tokens + kDepth - 1) / kDepth;
  const int64_t depth = round_up((p.tokens + chunks - 1) / chunks, kTokens), pairs = depth / 2;
  Pair *left = scratch.take<Pair>(kTile * pairs), *right = scratch.take<Pair>(columns * pairs);
  float* sums = scratch.take<float>(rows * columns);
  // blocks side by side have the same rows
  Floats* bias_sums = p.grad_bias == nullptr || block.column > 0 ? nullptr : scratch.take<Floats>(rows);
  if (bias_sums != nullptr) std::fill_n(bias_sums, rows, Floats{});
  const MatrixUnit unit;
  for (int64_t token = 0; token < p.tokens; token += depth) {
    const int64_t tokens = p.tokens - token < depth ? p.tokens - token : depth;
    const int64_t summed = round_up(tokens, kTokens) / 2;
    const bf16* grad_out = p.grad_out + token * p.rows + block.row;
    pair_tokens(p.x + token * p.columns + block.column, p.columns, tokens, block.columns, right, pairs * kAmxRows);
    for (int64_t row = 0; row < block.rows; row += kTile) {
      transpose_tokens(grad_out + row, p.rows, tokens, block.rows - row, left, pairs);
      if (bias_sums != nullptr) add_pairs(left, pairs, summed, bias_sums + row);
      for (int64_t column = 0; column < columns; column += kTile)
        multiply_registers<2, 2>(left, pairs, right + column * pairs,
                                 {kAmxRows, pairs * kAmxRows, kAmxPairs * kAmxRows}, sums + row * columns + column,
                                 columns, token > 0, summed, [] {});
    }
  }
  for (int64_t row = 0; row < block.rows; ++row)
    std::memcpy(p.grad_weight + (block.row + row) * p.columns + block.column, sums + row * columns,
                size_t(block.columns) * sizeof(float));
  if (bias_sums == nullptr) return;
  for (int64_t row = 0; row < block.rows; ++row) p.grad_bias[block.row + row] = horizontal_sum(bias_sums[row]);
}

}  // namespace amx_bf16

void linear::compute_on_amx(const WeightGradient& p, const Block& block, Scratch& scratch) {
  amx_bf16::compute(p, block, scratch);
}

}  // namespace penstock
#endif
