// Rearranging rows into operands of matmul.h, in the namespace PENSTOCK_ISA (see simd.h).
#pragma once

#include "matmul.h"
#include "transpose.h"

namespace penstock::PENSTOCK_ISA {

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The first `width` elements of each of `count` rows (`stride` elements apart), as rows of units `to_row` apart, a
// multiple of kLanes; filled with zeros up to `rows` rows and to whole vectors.
template <class Unit, class Element>
static void copy_rows(const Element* from, int64_t stride, int64_t count, int64_t width, Unit* to, int64_t to_row,
                      int64_t rows) {
  using Target = std::conditional_t<UnitTraits<Unit>::kElements == 2, bf16, float>;
  constexpr bool kSame = std::is_same_v<Element, Target>;
  constexpr int64_t kVector = kSame ? sizeof(Uints) / sizeof(Element) : kLanes;
  const auto copy = [](const Element* in, Target* out) {
    if constexpr (kSame)
      store_as(out, load_as<Uints>(in));
    else
      store(out, load(in));
  };
  const int64_t whole = width / kVector * kVector;
  for (int64_t i = 0; i < count; ++i) {
    const Element* in = from + i * stride;
    __builtin_prefetch(in + width);  // where the next head's row lies, as a rule
    Target* out = reinterpret_cast<Target*>(to + i * to_row);
    for (int64_t d = 0; d < whole; d += kVector) copy(in + d, out + d);
    if (whole < width) {
      Element last[kVector] = {};
      std::memcpy(last, in + whole, size_t(width - whole) * sizeof(Element));
      copy(last, out + whole);
    }
  }
  if (count < rows) std::memset(to + count * to_row, 0, size_t((rows - count) * to_row) * sizeof(Unit));
}

// to[unit][row] = from[row][unit] for `units` units of `rows` rows, a multiple of kLanes; reads whole vectors of units.
template <class Unit>
static void transpose(const Unit* from, int64_t from_row, int64_t rows, int64_t units, Unit* to, int64_t to_row) {
  for (int64_t row = 0; row < rows; row += kLanes)
    for (int64_t unit = 0; unit < units; unit += kLanes) {
      Uints block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = load_as<Uints>(from + (row + i) * from_row + unit);
      transpose(block);
      const int64_t count = units - unit < kLanes ? units - unit : kLanes;
      for (int i = 0; i < count; ++i) store_as(to + (unit + i) * to_row + row, block[i]);
    }
}

// Rows 2i and 2i + 1 as one row of pairs: to[i][d] = (from[2i][d], from[2i + 1][d]) for an even number of rows of
// `width` elements, a multiple of kLanes.
static inline void pair_rows(const Pair* from, int64_t from_row, int64_t rows, int64_t width, Pair* to,
                             int64_t to_row) {
  for (int64_t i = 0; i < rows / 2; ++i) {
    const bf16* even = reinterpret_cast<const bf16*>(from + 2 * i * from_row);
    const bf16* odd = reinterpret_cast<const bf16*>(from + (2 * i + 1) * from_row);
    for (int64_t d = 0; d < width; d += kLanes) {
      const Uints low = widen(load_as<Halves>(even + d)), high = widen(load_as<Halves>(odd + d));
      store_as(to + i * to_row + d, low | high << 16);
    }
  }
}

}  // namespace penstock::PENSTOCK_ISA
