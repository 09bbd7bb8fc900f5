// Going along a row by vectors, in the namespace PENSTOCK_ISA (see simd.h).
#pragma once

#include "rowwise/cpu/problem.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

using namespace penstock::rowwise;

constexpr int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// A vector of a row: where it begins, and how many of its lanes lie in the row.
template <bool kWhole>
struct Columns {
  int64_t begin;
  int count;

  uint32_t lanes() const { return kWhole ? kAllLanes : (1u << count) - 1; }

  template <class Element>
  Floats load(const Element* row) const {
    if constexpr (kWhole) {
      return PENSTOCK_ISA::load(row + begin);
    } else {
      return load_part(row + begin, count);
    }
  }
  template <class Element>
  void store(Element* row, Floats x) const {
    if constexpr (kWhole) {
      PENSTOCK_ISA::store(row + begin, x);
    } else {
      store_part(row + begin, x, count);
    }
  }
};

// Calls body(Columns) for each vector of a row.
template <class Body>
PENSTOCK_INLINE void for_columns(int64_t width, Body body) {
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) body(Columns<true>{d, kLanes});
  if (d < width) body(Columns<false>{d, int(width - d)});
}

}  // namespace penstock::PENSTOCK_ISA
