// From tensors to the order in which tiles read them.
#pragma once

#include "tile.h"

namespace penstock::lstm::PENSTOCK_ISA {

constexpr int64_t kPanel = kTileVecs * kLanes;  // columns of B side by side

inline int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
inline int64_t vecs_of_panel(int64_t columns, int64_t panel) {
  const int64_t left = (columns - panel * kPanel + kLanes - 1) / kLanes;
  return left < kTileVecs ? left : kTileVecs;
}

template <class T>
PENSTOCK_INLINE uint32_t pair(T low, T high) {
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
}

// One lane: element k of a row, or elements 2k and 2k + 1 of a row with `size` elements.
template <class T>
PENSTOCK_INLINE auto lane_along(const T* row, int64_t k, int64_t size) {
  if constexpr (Operand<T>::kPairs) {
    return pair(row[2 * k], 2 * k + 1 < size ? row[2 * k + 1] : T{0});
  } else {
    (void)size;
    return to_float(row[k]);
  }
}

// n lanes: a row, or two rows element by element.
template <class T>
PENSTOCK_INLINE void lanes_across(const T* row, const T* next, int64_t n, typename Operand<T>::Lane* out) {
  if constexpr (Operand<T>::kPairs) {
    for (int64_t i = 0; i < n; ++i) out[i] = pair(row[i], next[i]);
  } else {
    (void)next;
    for (int64_t i = 0; i < n; ++i) out[i] = to_float(row[i]);
  }
}

// A panel of B = W^T: column j is row(j) of W, along k. row(j) is null for a column of zeros.
template <class T, class Row>
void pack_transposed(int64_t size, int64_t width, const Row& row, typename Operand<T>::Lane* out) {
  using Lane = typename Operand<T>::Lane;
  const int64_t lanes = Operand<T>::lanes(size);
  const T* rows[kPanel];
  for (int64_t j = 0; j < width; ++j) rows[j] = row(j);
  // Cache line by cache line along the rows: whole rows at a power-of-two distance would evict each other.
  constexpr int64_t kStep = 16;
  for (int64_t k0 = 0; k0 < lanes; k0 += kStep) {
    const int64_t k1 = k0 + kStep < lanes ? k0 + kStep : lanes;
    for (int64_t j = 0; j < width; ++j) {
      const T* from = rows[j];
      if (from == nullptr) {
        for (int64_t k = k0; k < k1; ++k) out[k * width + j] = Lane{0};
      } else {
        for (int64_t k = k0; k < k1; ++k) out[k * width + j] = lane_along(from, k, size);
      }
    }
  }
}

// A panel of B whose row k is row(k), `columns` of which exist; lanes of k beyond `size` are zero.
template <class T, class Row>
void pack_rows(int64_t size, int64_t columns, int64_t width, const Row& row, typename Operand<T>::Lane* out) {
  using Lane = typename Operand<T>::Lane;
  constexpr int kStep = Operand<T>::kPerLane;
  for (int64_t k = 0; k < size; k += kStep, out += width) {
    if (k + kStep <= size) {
      lanes_across<T>(row(k), row(k + kStep - 1), columns, out);
    } else {
      const T* last = row(k);
      for (int64_t i = 0; i < columns; ++i) {
        if constexpr (Operand<T>::kPairs) out[i] = pair(last[i], T{0});
      }
    }
    for (int64_t i = columns; i < width; ++i) out[i] = Lane{0};
  }
}

}  // namespace penstock::lstm::PENSTOCK_ISA
