// Whole numbers of 8 bits in the place of weights, of x and of h, for inference: a row of W_ih or W_hh, which is one
// gate of one unit, has a scale of its own, a row of x too, and h, which lies between -1 and 1, is a multiple of 1/127.
// Sums are exact, so that for a row w and an x with the largest sizes |w| and |x|
//   |sum_k w_k x_k - scale_w scale_x sum_k q(w_k) q(x_k)| <= |x| / 254 sum_k |w_k| + |w| / 254 sum_k |x_k|
// up to a small term, the product of the two errors.
#pragma once

#include "tile.h"

namespace penstock::PENSTOCK_ISA {

constexpr float kLargest = 127.0f;

// Bytes of h are unsigned, as the instruction wants them: 128 more than they mean.
constexpr int kZero = kHasByteProducts ? 128 : 0;

using QuantisedWeight = std::conditional_t<kHasByteProducts, int8_t, int16_t>;
using QuantisedState = typename Operand<int8_t>::Element;
typedef QuantisedState QuantisedStates __attribute__((vector_size(sizeof(QuantisedState) * kLanes)));

// The first n lanes of value * factor, which lies within 127; what a NaN becomes is a number.
PENSTOCK_INLINE void store_quantised(QuantisedState* to, Floats value, float factor, int64_t n) {
  constexpr float kShift = 12582912.0f + kZero;  // 1.5 * 2^23: the low bits of the sum are the whole number
  const Uints bits = (Uints)(value * factor + kShift);
  const QuantisedStates low = __builtin_convertvector(bits, QuantisedStates);
  if (__builtin_expect(n == kLanes, 1)) {
    store_as(to, low);
  } else {
    std::memcpy(to, &low, size_t(n) * sizeof(QuantisedState));
  }
}

// A row of x; returns its scale, NaN if x is not finite, 0 if it is next to nothing.
template <class T>
float quantise_input(const T* row, int64_t size, QuantisedState* out) {
  Floats largest = {}, rest = {};
  for (int64_t k = 0; k < size; k += kLanes) {
    const Floats x = load(row + k, size - k < kLanes ? size - k : kLanes);
    largest = max(largest, max(x, -x));
    rest += x - x;  // 0, or NaN
  }
  const float most = horizontal_max(largest), factor = most > 1e-30f ? kLargest / most : 0.0f;
  for (int64_t k = 0; k < size; k += kLanes) {
    const int64_t n = size - k < kLanes ? size - k : kLanes;
    store_quantised(out + k, load(row + k, n), factor, n);
  }
  return (factor > 0 ? most / kLargest : 0.0f) + horizontal_sum(rest);
}

// One row of W_ih or W_hh.
struct QuantisedRow {
  float scale;         // of one of its whole numbers
  int32_t correction;  // to be added to its products first, for kZero
};

template <class T>
QuantisedRow quantise(const T* row, int64_t size, QuantisedWeight* out) {
  float largest = 0;
  for (int64_t k = 0; k < size; ++k) {
    const float w = to_float(row[k]), size_of_w = w < 0 ? -w : w;
    if (size_of_w > largest) largest = size_of_w;
  }
  const float step = largest / kLargest;
  int32_t sum = 0;
  for (int64_t k = 0; k < size; ++k) {
    const float exact = step > 0 ? to_float(row[k]) / step : 0.0f;
    const int32_t whole = int32_t(exact < 0 ? exact - 0.5f : exact + 0.5f);
    const int32_t q = whole > 127 ? 127 : whole < -127 ? -127 : whole;
    out[k] = QuantisedWeight(q);
    sum += q;
  }
  return {step, -kZero * sum};
}

}  // namespace penstock::PENSTOCK_ISA
