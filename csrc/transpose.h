// A block of as many registers as they have lanes, in the namespace PENSTOCK_ISA (see simd.h).
#pragma once

#include <utility>

#include "simd.h"

namespace penstock::PENSTOCK_ISA {

template <class Vector, int... kIndex>
PENSTOCK_INLINE Vector interleave_low(Vector a, Vector b, std::integer_sequence<int, kIndex...>) {
  return __builtin_shufflevector(a, b, (kIndex / 2 + kIndex % 2 * int(sizeof...(kIndex)))...);
}
template <class Vector, int... kIndex>
PENSTOCK_INLINE Vector interleave_high(Vector a, Vector b, std::integer_sequence<int, kIndex...>) {
  constexpr int n = sizeof...(kIndex);
  return __builtin_shufflevector(a, b, (n / 2 + kIndex / 2 + kIndex % 2 * n)...);
}

// rows[i][j] = rows[j][i]: interleaving the halves of the block log2(kLanes) times transposes it.
PENSTOCK_INLINE void transpose(Uints (&rows)[kLanes]) {
  constexpr auto indices = std::make_integer_sequence<int, kLanes>{};
  Uints mixed[kLanes];
  for (int width = kLanes; width > 1; width /= 2) {
    for (int i = 0; i < kLanes / 2; ++i) {
      mixed[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2], indices);
      mixed[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2], indices);
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = mixed[i];
  }
}

}  // namespace penstock::PENSTOCK_ISA
