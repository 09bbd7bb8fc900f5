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
  // A panel of columns of a tile of rows, for a part of k.
  struct Tile {
    Range rows;
    int64_t column, vecs;
    bool last;  // part of k
    float* sums;
    int64_t stride;  // of sums
    alignas(64) float whole[Operand<R>::kTileRows * kPanel];
    TileProduct<R> product;  // into `sums`
  };

  void run_block(int64_t first, int64_t rows, float* partial) const {
    const Tiling<R> tiles(rows);
    const int64_t parts = (lanes + kPanelDepth - 1) / kPanelDepth, count = parts * panels_of(columns) * tiles.count;
    for_tiles<R, Tile>(
        count, [&](Tile& tile, int64_t i) __attribute__((always_inline)) { begin(tile, first, tiles, i, partial); },
        [&](Tile& tile, TileProduct<R>& next) __attribute__((always_inline)) {
          if (tile.last) write(tile, next);
        });
  }

  void begin(Tile& tile, int64_t first, const Tiling<R>& tiles, int64_t i, float* partial) const {
    const int64_t panels = panels_of(columns), panel = i / tiles.count % panels;
    const int64_t k = i / tiles.count / panels * kPanelDepth;
    const int64_t depth = lanes - k < kPanelDepth ? lanes - k : kPanelDepth;
    const Range rows = tiles[i % tiles.count];
    tile.rows = {first + rows.begin, first + rows.end};
    tile.column = panel * kPanel;
    tile.vecs = vecs_of_panel(columns, panel);
    tile.last = k + depth == lanes;
    const bool in_parts = lanes > kPanelDepth;
    tile.sums = in_parts ? partial + rows.begin * panels * kPanel + tile.column : tile.whole;
    tile.stride = in_parts ? panels * kPanel : kPanel;
    Prefetches prefetches;
    for (int64_t r = 0; !Operand<R>::kMatrixUnit && r < rows.size(); ++r) {
      if (k > 0) prefetches.add(tile.sums + r * tile.stride, tile.vecs * kLanes);
      if (tile.last) prefetches.add(c + (tile.rows.begin + r) * columns + tile.column, tile.vecs * kLanes);
    }
    tile.product.start(rows.size(), tile.vecs, {a + tile.rows.begin * a_stride + k, a_stride},
                       b.w + tile.column * lanes + k * tile.vecs * kLanes, depth, tile.sums, tile.stride, k > 0,
                       prefetches);
  }

  // A tile whose product is made, while the next one's is.
  void write(const Tile& tile, TileProduct<R>& next_product) const {
    const int64_t steps_a_row = (next_product.steps_left() + tile.rows.size() - 1) / tile.rows.size();
    for (int64_t r = 0; r < tile.rows.size(); ++r) {
      const int64_t row = tile.rows.begin + r;
      for (int64_t i = 0; i < steps_a_row; ++i) next_product.step();
      // the next panel's, which these rows come to when all of the block have had this one
      if constexpr (Operand<R>::kMatrixUnit) prefetch(c + row * columns + tile.column + kPanel, kPanel);
      const float unit = Operand<R>::kQuantised ? units[row] : 1.0f;
      for (int64_t v = 0; v < tile.vecs; ++v) {
        const int64_t column = tile.column + v * kLanes;
        const Floats rest = bias ? load(bias + column) : Floats{};
        store(c + row * columns + column, b.result(column, load(tile.sums + r * tile.stride + v * kLanes), unit, rest),
              columns - column < kLanes ? columns - column : kLanes);
      }
    }
  }
};

}  // namespace penstock::PENSTOCK_ISA
