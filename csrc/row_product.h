// The large product of rows by packed columns: of the LSTM's input projection, and of a linear layer.
#pragma once

#include "packed_columns.h"

namespace penstock::PENSTOCK_ISA {

constexpr int64_t kPanelDepth = 512;  // lanes of k at a time: a panel of B stays in the second-level cache
constexpr int64_t kRowBlock = 96;     // rows of A that share a pass over B; their part of k stays in that cache too
constexpr int64_t kLinePad = 16;      // lanes added to strides: rows a power of two apart would evict each other

// C (rows, columns) = A (rows, k) B (k, columns) + bias, for the rows of one thread. R is T or, quantised, int8_t.
template <class T, class R>
struct RowProduct {
  using Lane = typename Operand<R>::Lane;

  int64_t lanes, columns;  // lanes of k
  const Lane* a;           // rows a_stride lanes apart; kRowStep - 1 more than there are can be read
  int64_t a_stride;
  const float* units;  // what 1 stands for in each row of a, if quantised
  PackedColumns<R> b;
  const float* bias;  // (columns, rounded up to a panel) or null
  T* c;               // (rows, columns)

  // Floats that `run` needs between the parts of k, if there are several.
  static int64_t partial_floats(int64_t lanes, int64_t columns) {
    return lanes > kPanelDepth ? kRowBlock * panels_of(columns) * kPanel : 0;
  }

  void run(Range rows, float* partial) const {
    [[maybe_unused]] const typename Operand<R>::Unit unit{};
    const int64_t blocks = (rows.size() + kRowBlock - 1) / kRowBlock;
    for (int64_t i = 0; i < blocks; ++i) {
      const Range block = share(rows.size(), blocks, i);
      run_block(rows.begin + block.begin, block.size(), partial);
    }
  }

 private:
  void run_block(int64_t first, int64_t rows, float* partial) const {
    const Tiling<R> tiles(rows);
    const int64_t panels = panels_of(columns);
    for (int64_t k = 0; k < lanes; k += kPanelDepth) {
      const int64_t depth = lanes - k < kPanelDepth ? lanes - k : kPanelDepth;
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t vecs = vecs_of_panel(columns, panel);
        const Lane* b_part = b.w + panel * kPanel * lanes + k * vecs * kLanes;
        for (int64_t i = 0; i < tiles.count; ++i) {
          const Range tile = tiles[i];
          const bool last = k + depth == lanes;
          const Rows<Lane> a_rows{a + (first + tile.begin) * a_stride + k, a_stride};
          alignas(64) float result[Operand<R>::kTileRows * kPanel];
          const bool in_parts = lanes > kPanelDepth;
          float* sums = in_parts ? partial + tile.begin * panels * kPanel + panel * kPanel : result;
          const int64_t stride = in_parts ? panels * kPanel : kPanel;
          Prefetches prefetches;
          for (int64_t r = 0; r < tile.size(); ++r) {
            if (k > 0) prefetches.add(sums + r * stride, vecs * kLanes);
            if (last) prefetches.add(c + (first + tile.begin + r) * columns + panel * kPanel, vecs * kLanes);
          }
          multiply_rows<R>(tile.size(), vecs, a_rows, b_part, depth, sums, stride, k > 0, prefetches);
          if (last) finish(first + tile.begin, tile.size(), panel * kPanel, vecs, sums, stride);
        }
      }
    }
  }

  void finish(int64_t row, int64_t rows, int64_t first_column, int64_t vecs, const float* sums, int64_t stride) const {
    for (int64_t r = 0; r < rows; ++r) {
      const float unit = Operand<R>::kQuantised ? units[row + r] : 1.0f;
      for (int64_t v = 0; v < vecs; ++v) {
        const int64_t column = first_column + v * kLanes;
        const Floats rest = bias ? load(bias + column) : Floats{};
        store(c + (row + r) * columns + column, b.result(column, load(sums + r * stride + v * kLanes), unit, rest),
              columns - column < kLanes ? columns - column : kLanes);
      }
    }
  }
};

}  // namespace penstock::PENSTOCK_ISA
