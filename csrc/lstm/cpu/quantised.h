// W_hh and h in whole numbers of 8 bits, for inference: each row of W_hh, which is one gate of one unit, has a scale of
// its own, and h, which lies between -1 and 1, is a multiple of 1/127. The products are exact, so that
//   |sum_k w_k h_k - scale sum_k q(w_k) q(h_k)| <= sum_k |w_k| / 254 + (largest |w| / 254) sum_k |h_k|
// up to a small term, the product of the two errors.
#pragma once

#include "tile.h"

namespace penstock::lstm::PENSTOCK_ISA {

constexpr float kLargest = 127.0f;

// Bytes of h are unsigned, as the instruction wants them: 128 more than they mean.
constexpr int kZero = kHasByteProducts ? 128 : 0;

using QuantisedWeight = std::conditional_t<kHasByteProducts, int8_t, int16_t>;
using QuantisedState = typename Operand<int8_t>::Element;
typedef QuantisedState QuantisedStates __attribute__((vector_size(sizeof(QuantisedState) * kLanes)));

// The first n lanes, of h in [-1, 1]; what a NaN becomes is a number.
PENSTOCK_INLINE void store_quantised(QuantisedState* to, Floats h, int64_t n) {
  constexpr float kShift = 12582912.0f + kZero;  // 1.5 * 2^23: the low bits of the sum are the whole number
  const Uints bits = (Uints)(h * kLargest + kShift);
  const QuantisedStates low = __builtin_convertvector(bits, QuantisedStates);
  if (__builtin_expect(n == kLanes, 1)) {
    store_as(to, low);
  } else {
    std::memcpy(to, &low, size_t(n) * sizeof(QuantisedState));
  }
}

// One row of W_hh.
struct QuantisedRow {
  float scale;         // of a product with a row of h
  int32_t correction;  // to be added to that product first, for kZero
};

template <class T>
QuantisedRow quantise(const T* row, int64_t size, QuantisedWeight* out) {
  float largest = 0;
  for (int64_t k = 0; k < size; ++k) {
    const float w = to_float(row[k]), size_of_w = w < 0 ? -w : w;
    if (size_of_w > largest) largest = size_of_w;
  }
  // Divided twice: the reciprocal of a small scale would be infinite.
  const float step = largest / kLargest;
  int32_t sum = 0;
  for (int64_t k = 0; k < size; ++k) {
    const float exact = step > 0 ? to_float(row[k]) / step : 0.0f;
    const int32_t whole = int32_t(exact < 0 ? exact - 0.5f : exact + 0.5f);
    const int32_t q = whole > 127 ? 127 : whole < -127 ? -127 : whole;
    out[k] = QuantisedWeight(q);
    sum += q;
  }
  return {step / kLargest, -kZero * sum};
}

}  // namespace penstock::lstm::PENSTOCK_ISA
