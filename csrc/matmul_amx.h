// The product of matmul.h for pairs of bfloat16 on the matrix unit (amx.h), in the namespace PENSTOCK_ISA.
#pragma once

#include "amx.h"
#include "matmul.h"

namespace penstock::PENSTOCK_ISA {

// As matmul.h's, for operands in whole registers: the rows of a and c are there up to a multiple of kAmxRows, whatever
// they hold, `depth` is a multiple of kAmxPairs, and a.step is 1.
template <bool kAccumulate>
static void multiply(Left<Pair> a, Right<Pair> b, Product c, int64_t rows, int64_t vectors, int64_t depth) {
  const auto panel = [&](auto height, auto most_columns) __attribute__((always_inline)) {
    for (int64_t v = 0; v < vectors;) {
      unroll<most_columns>([&](auto n) __attribute__((always_inline)) {
        constexpr int kColumns = n + 1;
        if (vectors - v == kColumns || (kColumns == most_columns && vectors - v > kColumns))
          multiply_registers<height, kColumns>(a.data, a.row, b.data + v * kAmxRows,
                                               {b.row, kAmxRows, kAmxPairs * b.row}, c.data + v * kAmxRows, c.row,
                                               kAccumulate, depth, [] {});
      });
      v += most_columns;
    }
    a.data += height * kAmxRows * a.row;
    c.data += height * kAmxRows * c.row;
    rows -= height * kAmxRows;
  };
  while (rows > kAmxRows) panel(std::integral_constant<int, 2>{}, std::integral_constant<int, 2>{});
  if (rows > 0) panel(std::integral_constant<int, 1>{}, std::integral_constant<int, 4>{});
}

}  // namespace penstock::PENSTOCK_ISA
