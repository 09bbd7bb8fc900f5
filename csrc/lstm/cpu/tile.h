// The product that everything else is made of: a tile of up to kTileRows rows by kTileVecs vectors, kept in registers.
//
// Operands are streams of 4-byte lanes: one float, or, where the machine multiplies bfloat16 (AVX-512 BF16), a pair of
// bfloat16 adjacent in k. Elsewhere bfloat16 operands are widened to float when they are packed.
#pragma once

#include <type_traits>
#include <utility>

#include "vec.h"

namespace penstock::lstm::PENSTOCK_ISA {

#if defined(__AVX512BF16__)
constexpr bool kHasBfloat16 = true;
#else
constexpr bool kHasBfloat16 = false;
#endif

// How tensors of storage type T enter a product.
template <class T>
struct Operand {
  static constexpr bool kPairs = kHasBfloat16 && std::is_same_v<T, bfloat16>;
  static constexpr int kPerLane = kPairs ? 2 : 1;
  using Element = std::conditional_t<kPairs, bfloat16, float>;  // what a lane is made of
  using Lane = std::conditional_t<kPairs, uint32_t, float>;

  static constexpr int64_t lanes(int64_t elements) { return (elements + kPerLane - 1) / kPerLane; }
};

PENSTOCK_INLINE void multiply_add(Vec& sum, Vec a, Vec b, std::false_type) { sum += a * b; }
PENSTOCK_INLINE void multiply_add(Vec& sum, Vec a, Vec b, std::true_type) {
#if defined(__AVX512BF16__)
  sum = _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
  (void)sum, (void)a, (void)b;
#endif
}

template <class Lane>
PENSTOCK_INLINE Vec broadcast_lane(const Lane* from) {
  float lane;
  std::memcpy(&lane, from, 4);
  Vec value = broadcast(lane);
#if defined(__AVX512F__)
  // Else the broadcast is folded into each of the tile's multiplications, which then wait for the load ports.
  asm("" : "+v"(value));
#endif
  return value;
}

// Where row r of A has its lane k: rows anywhere in memory, or packed as [k][row].
template <class Lane, int rows>
struct RowsOfA {
  const Lane* const* row;
  PENSTOCK_INLINE const Lane* at(int r, int64_t k) const { return row[r] + k; }
};

template <class Lane, int rows>
struct PackedA {
  const Lane* tile;
  PENSTOCK_INLINE const Lane* at(int r, int64_t k) const { return tile + k * rows + r; }
};

// Cache lines that whatever follows a product will read or write. They are fetched shortly before its end: earlier, and
// B streaming through the first-level cache would push them out again before they are needed.
struct Soon {
  static constexpr int64_t kMost = 512;
  static constexpr int64_t kLead = 64;  // rounds between the last fetch and the end
  const void* line[kMost];
  int64_t count = 0;

  // The lines of n elements from `from` on.
  template <class T>
  PENSTOCK_INLINE void add(const T* from, int64_t n) {
    constexpr int64_t kPerLine = 64 / sizeof(T);
    for (int64_t i = 0; i < n && count < kMost; i += kPerLine) line[count++] = from + i;
  }
};

// out[r][v] (+)= sum over k of A[r][k] B[k][v]; b is packed as [k][vecs * kLanes].
template <class T, int rows, int vecs, class A>
PENSTOCK_INLINE void multiply(A a, const typename Operand<T>::Lane* b, int64_t lanes, float* out, int64_t stride,
                              bool add, const Soon& soon) {
  Vec sum[rows][vecs] = {};
  const int64_t last_fetch = lanes > Soon::kLead ? lanes - Soon::kLead : lanes;
  const int64_t first_fetch = last_fetch > soon.count ? last_fetch - soon.count : 0;
  for (int64_t k = 0; k < lanes; ++k) {
    if (uint64_t(k - first_fetch) < uint64_t(soon.count)) __builtin_prefetch(soon.line[k - first_fetch], 1);
    Vec bs[vecs];
    for (int v = 0; v < vecs; ++v) std::memcpy(&bs[v], b + (k * vecs + v) * kLanes, sizeof(Vec));
    for (int r = 0; r < rows; ++r) {
      const Vec as = broadcast_lane(a.at(r, k));
      for (int v = 0; v < vecs; ++v) multiply_add(sum[r][v], as, bs[v], std::bool_constant<Operand<T>::kPairs>{});
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vecs; ++v) {
      float* to = out + r * stride + v * kLanes;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);
    }
  }
}

// One function per size of tile, called by number of rows and vectors.
template <class T, bool packed>
struct Tiles {
  using Lane = typename Operand<T>::Lane;
  using Operand_A = std::conditional_t<packed, const Lane*, const Lane* const*>;
  using Function = void (*)(Operand_A a, const Lane* b, int64_t lanes, float* out, int64_t stride, bool add,
                            const Soon& soon);

  template <int rows, int vecs>
  static void call(Operand_A a, const Lane* b, int64_t lanes, float* out, int64_t stride, bool add, const Soon& soon) {
    if constexpr (packed) {
      multiply<T, rows, vecs>(PackedA<Lane, rows>{a}, b, lanes, out, stride, add, soon);
    } else {
      const Lane* row[rows];
      for (int r = 0; r < rows; ++r) row[r] = a[r];
      multiply<T, rows, vecs>(RowsOfA<Lane, rows>{row}, b, lanes, out, stride, add, soon);
    }
  }

  static Function of(int64_t rows, int64_t vecs) {
    static constexpr auto table = []<int... sizes>(std::integer_sequence<int, sizes...>) {
      struct {
        Function functions[sizeof...(sizes)];
      } result{{call<sizes / kTileVecs + 1, sizes % kTileVecs + 1>...}};
      return result;
    }(std::make_integer_sequence<int, kTileRows * kTileVecs>{});
    return table.functions[(rows - 1) * kTileVecs + vecs - 1];
  }
};

template <class T>
PENSTOCK_INLINE void multiply_rows(int64_t rows, int64_t vecs, const typename Operand<T>::Lane* const* a,
                                   const typename Operand<T>::Lane* b, int64_t lanes, float* out, int64_t stride,
                                   bool add, const Soon& soon) {
  Tiles<T, false>::of(rows, vecs)(a, b, lanes, out, stride, add, soon);
}

template <class T>
PENSTOCK_INLINE void multiply_packed(int64_t rows, int64_t vecs, const typename Operand<T>::Lane* a,
                                     const typename Operand<T>::Lane* b, int64_t lanes, float* out, int64_t stride,
                                     bool add, const Soon& soon) {
  Tiles<T, true>::of(rows, vecs)(a, b, lanes, out, stride, add, soon);
}

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Part i of n items in `parts` near-equal parts.
inline Range share(int64_t n, int64_t parts, int64_t i) { return {n * i / parts, n * (i + 1) / parts}; }

// Rows cut into tiles of near-equal height: 13 rows are 5 + 4 + 4, not 6 + 6 + 1.
struct Tiling {
  int64_t count, height, taller;  // the first `taller` tiles have one row more

  explicit Tiling(int64_t rows)
      : count((rows + kTileRows - 1) / kTileRows), height(count ? rows / count : 0), taller(rows - count * height) {}

  Range operator[](int64_t i) const {
    const int64_t begin = i * height + (i < taller ? i : taller);
    return {begin, begin + height + (i < taller)};
  }
};

}  // namespace penstock::lstm::PENSTOCK_ISA
