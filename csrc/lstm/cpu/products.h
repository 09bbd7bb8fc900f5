// The two kinds of large product around the recurrence, each over all tokens at once: row_product.h, and the weight
// gradients.
#pragma once

#include "packed_weights.h"
#include "row_product.h"

namespace penstock::lstm::PENSTOCK_ISA {

// The weight gradients of one direction: dgates^T (4H, tokens) times [x | h before] (tokens, I + H), or one of the two,
// and the column sums of dgates, for a range of the 4H rows.
template <class T>
struct WeightProduct {
  using Element = typename Operand<T>::Element;
  using Lane = typename Operand<T>::Lane;
  static constexpr int64_t kDepthOfStep = Operand<T>::kMatrixUnit ? 512 : 256;  // lanes at a time
  static constexpr int64_t kTokens = kDepthOfStep * Operand<T>::kPerLane;

  int64_t tokens, input_size, hidden_size;
  bool with_x, with_h;
  const T* x;                // (tokens, I)
  const T* const* h_before;  // (tokens) pointers to rows of H
  const Element* dgates;     // this direction's first column
  int64_t dgates_stride;
  T *dw_ih, *dw_hh;
  T* bias;  // or null

  // Panels of x, then panels of h.
  int64_t x_panels() const { return with_x ? panels_of(input_size) : 0; }
  int64_t h_panels() const { return with_h ? panels_of(hidden_size) : 0; }
  int64_t panels() const { return x_panels() + h_panels(); }
  int64_t sums_stride() const { return panels() * kPanel + kLinePad; }

  // Lanes that `run` needs for its operands, and floats for its sums, given a number of rows.
  static constexpr int64_t kTilesAtOnce = 4;  // of the matrix unit's A, which share a pass over B
  static int64_t row_stride() { return kDepthOfStep + kLinePad; }
  static int64_t tile_stride() { return kRegisterRows * kDepthOfStep + kLinePad; }
  static int64_t panel_stride() { return kPanel * kDepthOfStep + kLinePad; }
  int64_t line_lanes() const { return (4 * hidden_size + 15) / 16 * 16; }
  int64_t a_lanes(int64_t rows) const {
    return Operand<T>::kMatrixUnit ? kTilesAtOnce * Operand<T>::kTileRows * row_stride()
                                   : line_lanes() + Tiling<T>(rows).count * tile_stride();
  }
  int64_t operand_lanes(int64_t rows) const { return a_lanes(rows) + panels() * panel_stride(); }
  int64_t sum_floats(int64_t rows) const {
    constexpr int64_t step = Operand<T>::kRowStep;
    return (rows + step - 1) / step * step * sums_stride() + rows;
  }

  void run(Range rows, Lane* operands, float* sums) const {
    [[maybe_unused]] const typename Operand<T>::Unit unit{};
    Lane* const b = operands + a_lanes(rows.size());
    float* bias_sums = sums + sum_floats(rows.size()) - rows.size();
    std::memset(sums, 0, sum_floats(rows.size()) * sizeof(float));
    for (int64_t first = 0; first < tokens; first += kTokens) {
      const int64_t count = tokens - first < kTokens ? tokens - first : kTokens;
      pack_inputs(first, count, b);
      if constexpr (Operand<T>::kMatrixUnit) {
        accumulate_transposed(rows, first, count, operands, b, sums, bias_sums);
      } else {
        Lane *const line = operands, *const a = line + line_lanes();
        pack_gates(rows, first, count, line, a, bias_sums);
        accumulate(rows.size(), Operand<T>::lanes(count), a, b, sums);
      }
    }
    write(rows, sums, bias_sums);
  }

 private:
  void pack_gates(Range rows, int64_t first, int64_t count, Lane* line, Lane* a, float* bias_sums) const {
    constexpr int kStep = Operand<T>::kPerLane;
    const int64_t n = rows.size();
    const Tiling<T> tiles(n);
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
      const int64_t lane = k / kStep;
      for (int64_t i = 0; i < tiles.taller; ++i, from += tiles.height + 1) {
        copy_lanes(from, tiles.height + 1, a + i * tile_stride() + lane * (tiles.height + 1));
      }
      for (int64_t i = tiles.taller; i < tiles.count; ++i, from += tiles.height) {
        copy_lanes(from, tiles.height, a + i * tile_stride() + lane * tiles.height);
      }
    }
  }

  static PENSTOCK_INLINE void copy_lanes(const Lane* from, int64_t n, Lane* to) {
    // Most tiles are full: a copy of known size is a few moves.
    if (n == kRegisterRows) {
      std::memcpy(to, from, kRegisterRows * sizeof(Lane));
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = from[i];
    }
  }

  // A for the matrix unit: rows of tokens.
  void transpose_gates(Range rows, int64_t first, int64_t count, Lane* a, float* bias_sums) const {
    for (int64_t k = 0; k < Operand<T>::lanes(count); k += kLanes) {
      for (int64_t i = 0; i < rows.size(); i += kLanes) {
        const int64_t n = rows.size() - i < kLanes ? rows.size() - i : kLanes;
        Uints block[kLanes] = {};
        Floats sum = load(bias_sums + i, n);
        for (int64_t lane = 0; lane < kLanes && 2 * (k + lane) < count; ++lane) {
          const Element* row = dgates + (first + 2 * (k + lane)) * dgates_stride + rows.begin + i;
          const Uints even = Uints(load(row, n));
          const Uints odd = 2 * (k + lane) + 1 < count ? Uints(load(row + dgates_stride, n)) : Uints{};
          sum += (Floats)even + (Floats)odd;
          block[lane] = even >> 16 | odd;
        }
        store(bias_sums + i, sum, n);
        transpose(block);
        for (int64_t r = 0; r < kLanes; ++r) std::memcpy(a + (i + r) * row_stride() + k, &block[r], sizeof block[r]);
      }
    }
  }

  void accumulate_transposed(Range rows, int64_t first, int64_t count, Lane* a, const Lane* b, float* sums,
                             float* bias_sums) const {
    constexpr int64_t kMost = kTilesAtOnce * Operand<T>::kTileRows;
    for (int64_t begin = 0; begin < rows.size(); begin += kMost) {
      const int64_t size = rows.size() - begin < kMost ? rows.size() - begin : kMost;
      transpose_gates({rows.begin + begin, rows.begin + begin + size}, first, count, a, bias_sums + begin);
      const Tiling<T> tiles(size);
      for (int64_t panel = 0; panel < panels(); ++panel) {
        for (int64_t i = 0; i < tiles.count; ++i) {
          multiply_rows<T>(tiles[i].size(), vecs_of(panel), {a + tiles[i].begin * row_stride(), row_stride()},
                           b + panel * panel_stride(), Operand<T>::lanes(count),
                           sums + (begin + tiles[i].begin) * sums_stride() + panel * kPanel, sums_stride(), true,
                           Prefetches{});
        }
      }
    }
  }

  int64_t vecs_of(int64_t panel) const {
    return panel < x_panels() ? vecs_of_panel(input_size, panel) : vecs_of_panel(hidden_size, panel - x_panels());
  }

  void pack_inputs(int64_t first, int64_t count, Lane* b) const {
    for (int64_t panel = 0; panel < x_panels(); ++panel, b += panel_stride()) {
      const int64_t width = vecs_of_panel(input_size, panel) * kLanes, column = panel * kPanel;
      pack_rows<T>(
          count, input_size - column < width ? input_size - column : width, width,
          [&](int64_t k) { return x + (first + k) * input_size + column; }, b);
    }
    for (int64_t panel = 0; panel < h_panels(); ++panel, b += panel_stride()) {
      const int64_t width = vecs_of_panel(hidden_size, panel) * kLanes, column = panel * kPanel;
      pack_rows<T>(
          count, hidden_size - column < width ? hidden_size - column : width, width,
          [&](int64_t k) { return h_before[first + k] + column; }, b);
    }
  }

  void accumulate(int64_t rows, int64_t lanes, const Lane* a, const Lane* b, float* sums) const {
    const Tiling<T> tiles(rows);
    for (int64_t panel = 0; panel < panels(); ++panel, b += panel_stride()) {
      const int64_t vecs = vecs_of(panel);
      for (int64_t i = 0; i < tiles.count; ++i) {
        const Range tile = tiles[i];
        float* out = sums + tile.begin * sums_stride() + panel * kPanel;
        Prefetches prefetches;
        for (int64_t r = 0; r < tile.size(); ++r) prefetches.add(out + r * sums_stride(), vecs * kLanes);
        multiply_packed<T>(tile.size(), vecs, a + i * tile_stride(), b, lanes, out, sums_stride(), true, prefetches);
      }
    }
  }

  void write(Range rows, const float* sums, const float* bias_sums) const {
    for (int64_t r = 0; r < rows.size(); ++r) {
      const int64_t row = gate_row(rows.begin + r, hidden_size);
      const float* from = sums + r * sums_stride();
      if (with_x) write_row(from, input_size, dw_ih + row * input_size);
      if (with_h) write_row(from + x_panels() * kPanel, hidden_size, dw_hh + row * hidden_size);
      if (bias) store(bias + row, splat(bias_sums[r]), 1);
    }
  }

  static void write_row(const float* from, int64_t n, T* to) {
    for (int64_t i = 0; i < n; i += kLanes) store(to + i, load(from + i), n - i < kLanes ? n - i : kLanes);
  }
};

}  // namespace penstock::lstm::PENSTOCK_ISA
