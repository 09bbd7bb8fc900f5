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

// The first n lanes of value * factor, which rounds to 127 at most; what a NaN becomes is a number.
PENSTOCK_INLINE void store_quantised(QuantisedState* to, Floats value, float factor, int64_t n) {
  constexpr float kShift = 12582912.0f + kZero;  // 1.5 * 2^23: the low bits of the sum are the whole number
  const Uints bits = (Uints)(value * factor + kShift);
  const auto low = [&] {
    if constexpr (kHasByteProducts) return low_bytes(bits);
    if constexpr (!kHasByteProducts) return low_halves(bits);
  }();
  if (__builtin_expect(n == kLanes, 1)) {
    store_as(to, low);
  } else {
    std::memcpy(to, &low, size_t(n) * sizeof(QuantisedState));
  }
}

// The largest size of a row's elements, NaN unless all are finite. Sizes are in the order of their bits.
template <class T>
PENSTOCK_INLINE float largest_size(const T* row, int64_t size) {
  using Word = std::conditional_t<std::is_same_v<T, bf16>, uint16_t, uint32_t>;
  typedef Word Words __attribute__((vector_size(4 * kLanes)));
  constexpr int64_t kWords = 4 * kLanes / sizeof(Word);
  constexpr Word kSign = Word(Word{1} << (8 * sizeof(Word) - 1));
  Words largest = {};
  const auto take = [&](Words x) __attribute__((always_inline)) {
    x &= Word(~kSign);
    largest = x > largest ? x : largest;
  };
  int64_t k = 0;
  for (; k + kWords <= size; k += kWords) take(load_as<Words>(row + k));
  if (k < size) {
    Words x = {};
    std::memcpy(&x, row + k, size_t(size - k) * sizeof(T));
    take(x);
  }
  Uints most = (Uints)largest;  // as whole numbers to the end: a maximum of floats loses a NaN
  if constexpr (sizeof(Word) == 2) {
    const Uints even = most << 16, odd = most & 0xFFFF0000u;
    most = even > odd ? even : odd;
  }
  const Floats sizes = (Floats)most;
  return horizontal_max(sizes) + horizontal_sum(sizes - sizes);
}

// A row of x; returns its scale, NaN if x is not finite, 0 if it is next to nothing.
template <class T>
float quantise_input(const T* row, int64_t size, QuantisedState* out) {
  const float most = largest_size(row, size), factor = most > 1e-30f ? kLargest / most : 0.0f;
  int64_t k = 0;
  for (; k + kLanes <= size; k += kLanes) store_quantised(out + k, load(row + k), factor, kLanes);
  if (k < size) store_quantised(out + k, load(row + k, size - k), factor, size - k);
  return factor > 0 ? most / kLargest : 0.0f * most;
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
