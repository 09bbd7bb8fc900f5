// Right operands that stay packed: columns of panels (panels.h), in whole numbers with their scales (quantised.h) or as
// they are, in one piece of memory.
#pragma once

#include "panels.h"
#include "quantised.h"
#include "workspace.h"

namespace penstock::PENSTOCK_ISA {

// Columns of panels, R being T or, quantised, int8_t.
template <class R>
struct PackedColumns {
  using Lane = typename Operand<R>::Lane;
  static constexpr bool kQuantised = Operand<R>::kQuantised;

  Lane* w;
  float* scale;         // (columns), only if quantised
  int32_t* correction;  // the same

  // Of 32 bits each.
  static int64_t words(int64_t columns, int64_t lanes) { return columns * (lanes + (kQuantised ? 2 : 0)); }

  PackedColumns(int64_t columns, int64_t lanes, uint32_t* memory)
      : w(reinterpret_cast<Lane*>(memory)),
        scale(reinterpret_cast<float*>(w + columns * lanes)),
        correction(reinterpret_cast<int32_t*>(scale + columns)) {
    static_assert(sizeof(Lane) == sizeof(float));
  }

  // A panel: columns from `first` on, which are rows row_of(0), row_of(1), ... of T, or null. `unit` is what 1 stands
  // for in the left operand, if that is known beforehand.
  template <class T, class Row>
  void pack(int64_t first, int64_t width, int64_t size, float unit, const Row& row_of) const {
    Lane* const out = w + first * Operand<R>::lanes(size);
    if constexpr (!kQuantised) {
      pack_transposed<R>(size, width, row_of, out);
    } else {
      const Block block(width * size * sizeof(QuantisedWeight));
      QuantisedWeight* const rows = block.as<QuantisedWeight>();
      for (int64_t j = 0; j < width; ++j) {
        QuantisedRow row{};
        if (const T* from = row_of(j)) row = quantise(from, size, rows + j * size);
        scale[first + j] = row.scale * unit;
        correction[first + j] = row.correction;
      }
      const auto quantised = [&](int64_t j) -> const QuantisedWeight* { return row_of(j) ? rows + j * size : nullptr; };
      pack_transposed<R>(size, width, quantised, out);
    }
  }

  // A vector of columns, from `column` on.
  struct Columns {
    Ints correction;
    Floats scale;

    // What a product with them means, and `rest`; `unit` is what 1 stands for in the left operand.
    PENSTOCK_INLINE Floats result(Floats product, float unit, Floats rest) const {
      if constexpr (!kQuantised) return product + rest;
      return __builtin_convertvector((Ints)product + correction, Floats) * (scale * unit) + rest;
    }
  };
  PENSTOCK_INLINE Columns at(int64_t column) const {
    if constexpr (!kQuantised) return Columns{};
    return Columns{load_as<Ints>(correction + column), load(scale + column)};
  }
  PENSTOCK_INLINE Floats result(int64_t column, Floats product, float unit, Floats rest) const {
    return at(column).result(product, unit, rest);
  }
};

}  // namespace penstock::PENSTOCK_ISA
