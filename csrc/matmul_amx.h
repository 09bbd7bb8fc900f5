// The product of matmul.h for pairs of bfloat16 on the matrix unit (amx.h), in the namespace PENSTOCK_ISA.
#pragma once

#include "amx.h"
#include "matmul.h"

namespace penstock::PENSTOCK_ISA {

// kRows x kColumns registers of c, at most four. Those of a follow c's, and those of b take turns in what is left.
template <bool kAccumulate, int kRows, int kColumns>
static void multiply_registers(Left<Pair> a, Right<Pair> b, Product c, int64_t depth) {
  constexpr int kA = 4, kB = kA + kRows, kBs = 8 - kB;
  const auto for_c = [&](auto body) __attribute__((always_inline)) {
    unroll<kRows * kColumns>([&](auto n) __attribute__((always_inline)) {
      body(n, c.data + n / kColumns * kAmxRows * c.row + n % kColumns * kAmxRows);
    });
  };
  for_c([&](auto n, float* at) __attribute__((always_inline)) {
    if constexpr (kAccumulate)
      load_register<n>(at, c.row);
    else
      clear_register<n>();
  });
  for (int64_t k = 0; k < depth; k += kAmxPairs) {
    unroll<kRows>([&](auto i) __attribute__((always_inline)) {
      load_register<kA + i>(a.data + i * kAmxRows * a.row + k, a.row);
    });
    unroll<kColumns>([&](auto j) __attribute__((always_inline)) {
      load_register<kB + j % kBs>(b.data + k * b.row + j * kAmxRows, b.row);
      unroll<kRows>([&](auto i)
                        __attribute__((always_inline)) { add_product<i * kColumns + j, kA + i, kB + j % kBs>(); });
    });
  }
  for_c([&](auto n, float* at) __attribute__((always_inline)) { store_register<n>(at, c.row); });
}

// As matmul.h's, for operands in whole registers: the rows of a and c are there up to a multiple of kAmxRows, whatever
// they hold, `depth` is a multiple of kAmxPairs, and a.step is 1.
template <bool kAccumulate>
static void multiply(Left<Pair> a, Right<Pair> b, Product c, int64_t rows, int64_t vectors, int64_t depth) {
  const auto panel = [&](auto height, auto most_columns) __attribute__((always_inline)) {
    for (int64_t v = 0; v < vectors;) {
      const Right<Pair> right{b.data + v * kAmxRows, b.row};
      const Product product{c.data + v * kAmxRows, c.row};
      unroll<most_columns>([&](auto n) __attribute__((always_inline)) {
        constexpr int kColumns = n + 1;
        if (vectors - v == kColumns || (kColumns == most_columns && vectors - v > kColumns))
          multiply_registers<kAccumulate, height, kColumns>(a, right, product, depth);
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
