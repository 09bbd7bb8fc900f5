// The two kinds of large product around the recurrence, each over all tokens at once.
#pragma once

#include "gate_layout.h"
#include "pack.h"

namespace penstock::lstm::PENSTOCK_ISA {

constexpr int64_t kDepth = 512;     // lanes of k at a time: a panel of B stays in the second-level cache
constexpr int64_t kRowBlock = 96;   // rows of A that share a pass over B
constexpr int64_t kLinePad = 16;    // lanes added to strides, lest rows a power of two apart evict each other

// C (rows, columns) = A (rows, k) B (k, columns), for the rows of one thread.
//   a_row(r): A's row, lanes contiguous.      b: panels as [panel][k][width].
//   finish(r, column, n, value): takes n <= kLanes results.
//   partial: kRowBlock * panels * kPanel floats, used when k > kDepth.
template <class T, class RowOfA, class Finish>
void product_by_rows(Range rows, int64_t lanes, int64_t columns, const RowOfA& a_row, const typename Operand<T>::Lane* b,
                     float* partial, const Finish& finish) {
  using Lane = typename Operand<T>::Lane;
  const int64_t panels = panels_of(columns), partial_stride = panels * kPanel;
  const int64_t blocks = (rows.size() + kRowBlock - 1) / kRowBlock;
  for (int64_t block = 0; block < blocks; ++block) {
    Range in_block = share(rows.size(), blocks, block);
    in_block.begin += rows.begin, in_block.end += rows.begin;
    const int64_t tiles = tiles_of(in_block.size());
    for (int64_t k0 = 0; k0 < lanes; k0 += kDepth) {
      const int64_t depth = lanes - k0 < kDepth ? lanes - k0 : kDepth;
      const bool last = k0 + depth == lanes;
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t vecs = vecs_of_panel(columns, panel);
        const Lane* b_part = b + panel * kPanel * lanes + k0 * vecs * kLanes;
        for (int64_t i = 0; i < tiles; ++i) {
          const Range tile = share(in_block.size(), tiles, i);
          const int64_t row = in_block.begin + tile.begin;
          alignas(64) float result[kTileRows * kPanel];
          // The sums stay in `partial` between the parts of k; with a single part they never get there.
          float* sums = lanes > kDepth ? partial + tile.begin * partial_stride + panel * kPanel : result;
          const int64_t stride = lanes > kDepth ? partial_stride : kPanel;
          const Lane* a[kTileRows];
          for (int64_t r = 0; r < tile.size(); ++r) a[r] = a_row(row + r) + k0;
          multiply_rows<T>(tile.size(), vecs, a, b_part, depth, sums, stride, k0 > 0);
          if (!last) continue;
          for (int64_t r = 0; r < tile.size(); ++r) {
            for (int64_t column = panel * kPanel, v = 0; v < vecs; ++v, column += kLanes) {
              finish(row + r, column, columns - column < kLanes ? columns - column : kLanes,
                     load(sums + r * stride + v * kLanes));
            }
          }
        }
      }
    }
  }
}

// The weight gradients of one direction: dgates^T (4H, tokens) times [x | h before] (tokens, I + H), and the column sums
// of dgates, for a range of the 4H rows.
template <class T>
struct WeightProduct {
  using Element = typename Operand<T>::Element;
  using Lane = typename Operand<T>::Lane;
  static constexpr int64_t kTokens = 256 * Operand<T>::kPerLane;  // at a time
  static constexpr int64_t kDepthOfStep = 256;                   // the same in lanes

  int64_t tokens, input_size, hidden_size;
  const T* x;               // (tokens, I)
  const T* const* h_before;  // (tokens) pointers to rows of H
  const Element* dgates;    // this direction's first column
  int64_t dgates_stride;
  T *dw_ih, *dw_hh;
  T* bias;  // or null

  // Panels of x, then panels of h.
  int64_t panels() const { return panels_of(input_size) + panels_of(hidden_size); }
  int64_t sums_stride() const { return panels() * kPanel + kLinePad; }

  // Lanes that `run` needs for its operands, and floats for its sums, given a number of rows.
  static int64_t tile_stride() { return kTileRows * kDepthOfStep + kLinePad; }
  static int64_t panel_stride() { return kPanel * kDepthOfStep + kLinePad; }
  int64_t line_lanes() const { return (4 * hidden_size + 15) / 16 * 16; }
  int64_t operand_lanes(int64_t rows) const {
    return line_lanes() + tiles_of(rows) * tile_stride() + panels() * panel_stride();
  }
  int64_t sum_floats(int64_t rows) const { return rows * sums_stride() + rows; }

  void run(Range rows, Lane* operands, float* sums) const {
    const int64_t tiles = tiles_of(rows.size());
    Lane* line = operands;
    Lane* a = line + line_lanes();
    Lane* b = a + tiles * tile_stride();
    float* bias_sums = sums + rows.size() * sums_stride();
    std::memset(sums, 0, sum_floats(rows.size()) * sizeof(float));
    for (int64_t first = 0; first < tokens; first += kTokens) {
      const int64_t count = tokens - first < kTokens ? tokens - first : kTokens;
      pack_gates(rows, first, count, line, a, bias_sums);
      pack_inputs(first, count, b);
      accumulate(rows.size(), Operand<T>::lanes(count), a, b, sums);
    }
    write(rows, sums, bias_sums);
  }

 private:
  void pack_gates(Range rows, int64_t first, int64_t count, Lane* line, Lane* a, float* bias_sums) const {
    constexpr int kStep = Operand<T>::kPerLane;
    const int64_t n = rows.size(), tiles = tiles_of(n);
    for (int64_t k = 0; k < count; k += kStep) {
      const Element* row = dgates + (first + k) * dgates_stride + rows.begin;
      for (int64_t i = 0; i < n; ++i) bias_sums[i] += to_float(row[i]);
      const Lane* from;
      if constexpr (kStep == 1) {
        from = row;
      } else {
        if (k + 1 < count) {
          const Element* next = row + dgates_stride;
          for (int64_t i = 0; i < n; ++i) bias_sums[i] += to_float(next[i]);
          lanes_across<T>(row, next, n, line);
        } else {
          for (int64_t i = 0; i < n; ++i) line[i] = row[i].bits;
        }
        from = line;
      }
      Lane* to = a;
      for (int64_t i = 0; i < tiles; ++i, to += tile_stride()) {
        const Range tile = share(n, tiles, i);
        Lane* lane = to + k / kStep * tile.size();
        for (int64_t r = 0; r < tile.size(); ++r) lane[r] = from[tile.begin + r];
      }
    }
  }

  void pack_inputs(int64_t first, int64_t count, Lane* b) const {
    for (int64_t panel = 0; panel < panels_of(input_size); ++panel, b += panel_stride()) {
      const int64_t width = vecs_of_panel(input_size, panel) * kLanes, column = panel * kPanel;
      pack_rows<T>(count, input_size - column < width ? input_size - column : width, width,
                   [&](int64_t k) { return x + (first + k) * input_size + column; }, b);
    }
    for (int64_t panel = 0; panel < panels_of(hidden_size); ++panel, b += panel_stride()) {
      const int64_t width = vecs_of_panel(hidden_size, panel) * kLanes, column = panel * kPanel;
      pack_rows<T>(count, hidden_size - column < width ? hidden_size - column : width, width,
                   [&](int64_t k) { return h_before[first + k] + column; }, b);
    }
  }

  void accumulate(int64_t rows, int64_t lanes, const Lane* a, const Lane* b, float* sums) const {
    const int64_t tiles = tiles_of(rows), x_panels = panels_of(input_size);
    for (int64_t panel = 0; panel < panels(); ++panel, b += panel_stride()) {
      const int64_t vecs = panel < x_panels ? vecs_of_panel(input_size, panel) : vecs_of_panel(hidden_size, panel - x_panels);
      for (int64_t i = 0; i < tiles; ++i) {
        const Range tile = share(rows, tiles, i);
        multiply_packed<T>(tile.size(), vecs, a + i * tile_stride(), b, lanes,
                           sums + tile.begin * sums_stride() + panel * kPanel, sums_stride(), true);
      }
    }
  }

  void write(Range rows, const float* sums, const float* bias_sums) const {
    const int64_t h_column = panels_of(input_size) * kPanel;
    for (int64_t r = 0; r < rows.size(); ++r) {
      const int64_t row = gate_row(rows.begin + r, hidden_size);
      const float* from = sums + r * sums_stride();
      write_row(from, input_size, dw_ih + row * input_size);
      write_row(from + h_column, hidden_size, dw_hh + row * hidden_size);
      if (bias) store(bias + row, broadcast(bias_sums[r]), 1);
    }
  }

  static void write_row(const float* from, int64_t n, T* to) {
    for (int64_t i = 0; i < n; i += kLanes) store(to + i, load(from + i), n - i < kLanes ? n - i : kLanes);
  }
};

}  // namespace penstock::lstm::PENSTOCK_ISA
