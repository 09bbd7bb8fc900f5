// Panels: what the right operand of a product of tile.h is packed in, columns side by side and zeros to whole vectors.
// (pack.h, without panels, serves the products of matmul.h.)
#pragma once

#include "tile.h"
#include "transpose.h"

namespace penstock::PENSTOCK_ISA {

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

// n lanes of a row from lane k on, n <= kLanes, the others zero: bit for bit, whatever they hold. The row is of T, or
// of what T's lanes are made of.
template <class T, class From>
PENSTOCK_INLINE Uints lanes_along(const From* row, int64_t k, int64_t size) {
  Uints value = {};
  if constexpr (sizeof(From) == sizeof(typename Operand<T>::Element)) {
    const int64_t left = (size - k * Operand<T>::kPerLane) * int64_t{sizeof(From)};
    const From* from = row + k * Operand<T>::kPerLane;
    if (left >= int64_t{sizeof value}) {
      std::memcpy(&value, from, sizeof value);
    } else {
      std::memcpy(&value, from, left);
    }
  } else {
    value = Uints(load(row + k, size - k < kLanes ? size - k : kLanes));
  }
  return value;
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

// A panel of B = W^T: column j is row(j) of W, along k, as lanes_along takes it. row(j) is null for a column of zeros.
template <class T, class Row>
void pack_transposed(int64_t size, int64_t width, const Row& row, typename Operand<T>::Lane* out) {
  using Lane = typename Operand<T>::Lane;
  const int64_t lanes = Operand<T>::lanes(size);
  for (int64_t j = 0; j < width; j += kLanes) {
    decltype(row(0)) rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = row(j + i);
    for (int64_t k = 0; k < lanes; k += kLanes) {
      Uints block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = rows[i] ? lanes_along<T>(rows[i], k, size) : Uints{};
      transpose(block);
      const int64_t n = lanes - k < kLanes ? lanes - k : kLanes;
      Lane* to = out + k * width + (Operand<T>::kMatrixUnit ? j * kAmxPairs : j);
      constexpr bool kBlocks = Operand<T>::kMatrixUnit;
      for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * (kBlocks ? kLanes : width), &block[i], sizeof block[i]);
    }
  }
}

// The same as pack_rows in the matrix unit's blocks.
template <class T, class Row>
void pack_blocks(int64_t size, int64_t columns, int64_t width, const Row& row, uint32_t* out) {
  for (int64_t k = 0; k < Operand<T>::lanes(size); ++k) {
    const T* even = 2 * k < size ? row(2 * k) : nullptr;
    const T* odd = 2 * k + 1 < size ? row(2 * k + 1) : nullptr;
    uint32_t* to = out + k / kAmxPairs * kAmxPairs * width + k % kAmxPairs * kLanes;
    for (int64_t i = 0; i < width; i += kLanes, to += kAmxPairs * kLanes) {
      const int64_t n = columns - i < kLanes ? columns - i : kLanes;
      Uints lanes = {};
      if (even && n > 0) lanes = Uints(load(even + i, n)) >> 16;
      if (odd && n > 0) lanes |= Uints(load(odd + i, n));
      std::memcpy(to, &lanes, sizeof lanes);
    }
  }
}

// A panel of B whose row k is row(k), `columns` of which exist; lanes of k beyond `size` are zero.
template <class T, class Row>
void pack_rows(int64_t size, int64_t columns, int64_t width, const Row& row, typename Operand<T>::Lane* out) {
  using Lane = typename Operand<T>::Lane;
  constexpr int kStep = Operand<T>::kPerLane;
  if constexpr (Operand<T>::kMatrixUnit) return pack_blocks<T>(size, columns, width, row, out);
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

}  // namespace penstock::PENSTOCK_ISA
