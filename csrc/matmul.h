// Small matrix products on packed operands, in the namespace PENSTOCK_ISA (see simd.h).
//
// The operands' elements are units of 32 bits: a float, or neighbours along the summed dimension, which one instruction
// multiplies and adds: a pair of bfloat16, or whole numbers of 8 or 16 bits. All run through the same code. The sums of
// whole numbers are integers of 32 bits, which lie in memory in the place of the floats.
#pragma once

#include <array>
#include <type_traits>
#include <utility>

#include "simd.h"

namespace penstock::PENSTOCK_ISA {

using Pair = uint32_t;
enum class BytesUnit : uint32_t {};   // four, unsigned in the left operand, signed in the right
enum class ShortsUnit : uint32_t {};  // two, signed

template <class Unit>
struct UnitTraits;
template <>
struct UnitTraits<float> {
  static constexpr int kElements = 1;  // along the summed dimension
};
template <>
struct UnitTraits<Pair> {
  static constexpr int kElements = 2;
};
template <>
struct UnitTraits<BytesUnit> {
  static constexpr int kElements = 4;
};
template <>
struct UnitTraits<ShortsUnit> {
  static constexpr int kElements = 2;
};

PENSTOCK_INLINE Ints multiply_shorts(Ints a, Ints b) {
#if defined(__AVX512BW__)
  return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

template <class Unit>
using Sums = std::conditional_t<std::is_same_v<Unit, BytesUnit> || std::is_same_v<Unit, ShortsUnit>, Ints, Floats>;

// Vectors of units, whatever these are.
template <class Unit>
PENSTOCK_INLINE Sums<Unit> multiply_add(Sums<Unit> sum, Floats a, Floats b) {
  if constexpr (std::is_same_v<Unit, float>) return a * b + sum;
  if constexpr (std::is_same_v<Unit, ShortsUnit>) return sum + multiply_shorts((Ints)a, (Ints)b);
#if defined(__AVX512VNNI__)
  if constexpr (std::is_same_v<Unit, BytesUnit>) return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#endif
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<Unit, Pair>) return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
}

template <class Unit>
PENSTOCK_INLINE Floats broadcast_unit(const Unit* p) {
  Floats value = (Floats)splat(load_as<uint32_t>(p));  // whose bits may be those of a signalling NaN
#if defined(__AVX512F__)
  // Else the broadcast is folded into each of a row's multiplications, which then wait for the load ports.
  asm("" : "+v"(value));
#endif
  return value;
}

// Unit (i, k) of the left operand at data[i * row + k * step]: either of the two may be 1.
template <class Unit>
struct Left {
  const Unit* data;
  int64_t row, step;
  PENSTOCK_INLINE const Unit* at(int i, int64_t k) const { return data + i * row + k * step; }
};
// Row k of the right operand, a whole number of vectors, at data + k * row.
template <class Unit>
struct Right {
  const Unit* data;
  int64_t row;
};
struct Product {
  float* data;
  int64_t row;
};

// sum += a b, where a.at(i, k) is the address of unit k of row i. each_step(k) runs beside each of the `depth` steps.
template <class Unit, int kRows, int kColumns, class A, class EachStep>
PENSTOCK_INLINE void add_products(Sums<Unit> (&sum)[kRows][kColumns], const A& a, Right<Unit> b, int64_t depth,
                                  EachStep each_step) {
  for (int64_t k = 0; k < depth; ++k) {
    each_step(k);
    Floats right[kColumns];
    for (int j = 0; j < kColumns; ++j) right[j] = load_as<Floats>(b.data + k * b.row + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Floats left = broadcast_unit(a.at(i, k));
      for (int j = 0; j < kColumns; ++j) sum[i][j] = multiply_add<Unit>(sum[i][j], left, right[j]);
    }
  }
}

template <class Unit, int kRows, int kColumns, bool kAccumulate>
static void multiply_tile(Left<Unit> a, Right<Unit> b, Product c, int64_t depth) {
  Floats sum[kRows][kColumns];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) sum[i][j] = kAccumulate ? load(c.data + i * c.row + j * kLanes) : Floats{};
  add_products(sum, a, b, depth, [](int64_t) {});
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) store(c.data + i * c.row + j * kLanes, sum[i][j]);
}

// As many accumulators as leave registers for a row of the right operand and one of the left's units.
constexpr int kMaxColumns = kRegisters == 32 ? 4 : 2;
constexpr int max_rows(int columns) { return (kRegisters == 32 ? 24 : 12) / columns; }

template <class Unit, bool kAccumulate, int kColumns, int... kRows>
constexpr auto tiles_of_width(std::integer_sequence<int, kRows...>) {
  return std::array{&multiply_tile<Unit, kRows + 1, kColumns, kAccumulate>...};
}

template <class Unit, bool kAccumulate, int kColumns>
static void multiply_panel(Left<Unit> a, Right<Unit> b, Product c, int64_t rows, int64_t depth) {
  static constexpr auto tiles =
      tiles_of_width<Unit, kAccumulate, kColumns>(std::make_integer_sequence<int, max_rows(kColumns)>{});
  for (int64_t parts = (rows + max_rows(kColumns) - 1) / max_rows(kColumns); parts > 0; --parts) {
    const int64_t part = (rows + parts - 1) / parts;  // near-equal parts: a tile of few rows waits for its loads
    tiles[part - 1](a, b, c, depth);
    a.data += part * a.row;
    c.data += part * c.row;
    rows -= part;
  }
}

// c (rows x vectors * kLanes) = a b, or += if kAccumulate.
template <bool kAccumulate, class Unit>
static void multiply(Left<Unit> a, Right<Unit> b, Product c, int64_t rows, int64_t vectors, int64_t depth) {
  while (vectors > 0) {
    const int64_t parts = (vectors + kMaxColumns - 1) / kMaxColumns;
    const int64_t part = (vectors + parts - 1) / parts;
    switch (part) {
      case 1:
        multiply_panel<Unit, kAccumulate, 1>(a, b, c, rows, depth);
        break;
      case 2:
        multiply_panel<Unit, kAccumulate, 2>(a, b, c, rows, depth);
        break;
      case 3:
        if constexpr (kMaxColumns > 2) multiply_panel<Unit, kAccumulate, 3>(a, b, c, rows, depth);
        break;
      default:
        if constexpr (kMaxColumns > 2) multiply_panel<Unit, kAccumulate, 4>(a, b, c, rows, depth);
    }
    b.data += part * kLanes;
    c.data += part * kLanes;
    vectors -= part;
  }
}

}  // namespace penstock::PENSTOCK_ISA
