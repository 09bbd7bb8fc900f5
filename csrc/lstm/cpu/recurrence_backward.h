// Gradients back through time for one direction: each step is one product of the following step's gate gradients with
// W_hh, whose epilogue is the cell's backward.
#pragma once

#include "cell.h"
#include "gate_layout.h"
#include "layer.h"
#include "panels.h"
#include "pooled.h"
#include "schedule.h"
#include "team.h"

namespace penstock::lstm::PENSTOCK_ISA {

// W_hh for the backward product: panels of H columns, k runs over the 4H gates in the order of gate_layout.h.
template <class T>
struct RecurrentWeightsBackward {
  using Lane = typename Operand<T>::Lane;

  static int64_t panel_offset(int64_t hidden_size, int64_t panel) {
    return panel * kPanel * Operand<T>::lanes(4 * hidden_size);
  }

  static void pack(const T* w_hh, int64_t hidden_size, int64_t panel, Lane* out) {
    const int64_t first = panel * kPanel, width = vecs_of_panel(hidden_size, panel) * kLanes;
    const int64_t columns = hidden_size - first < width ? hidden_size - first : width;
    pack_rows<T>(
        4 * hidden_size, columns, width,
        [&](int64_t k) { return w_hh + gate_row(k, hidden_size) * hidden_size + first; },
        out + panel_offset(hidden_size, panel));
  }
};

template <class T>
struct BackwardTeam {
  using Element = typename Operand<T>::Element;
  using Lane = typename Operand<T>::Lane;

  int direction, directions;
  int64_t hidden_size;
  const Sequence* sequences;  // sequence r of this team is sequences[r * parts]
  int64_t rows, parts;
  const Lane* w_hh;
  const T* gates;   // (tokens, directions, 4H) pre-activations
  const float* c;   // (tokens, directions, H)
  const float* c0;  // (batch, H) of this direction, or null
  const T* dy;      // (tokens, directions * H) or null
  PooledGradient<T> dpooled;
  const float* dcells;  // (tokens, directions * H), gradient of every c, or null
  const T* dh_n;        // (batch, H) of this direction, or null
  Element* dgates;      // (tokens, dgates_stride), this direction's from column direction * 4H
  int64_t dgates_stride;
  Element* after[2];  // (rows, after_stride), the gate gradients of the steps, which alternate; zeros beyond 4H and
                      // after a sequence's last step; kRowStep - 1 rows more can be read
  int64_t after_stride;
  float* dc;  // (rows, H), the state
  T* dh0;     // (batch, H) of this direction, or null

  // dc_n: (batch, H) of this direction, or null for zeros.
  void start(const float* dc_n) const {
    for (Element* gradients : after) std::memset(gradients, 0, rows * after_stride * sizeof(Element));
    for (int64_t r = 0; r < rows; ++r) {
      float* state = dc + r * hidden_size;
      for (int64_t unit = 0; unit < hidden_size; ++unit) {
        state[unit] = dc_n ? dc_n[sequence(r).index * hidden_size + unit] : 0.0f;
      }
    }
  }

  // After `run` the state is the initial state's gradient.
  void finish(float* dc0) const {
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(dc0 + sequence(r).index * hidden_size, dc + r * hidden_size, hidden_size * sizeof(float));
    }
  }

  void run(Range panels, Barrier& barrier) const {
    [[maybe_unused]] const typename Operand<T>::Unit unit{};
    const int64_t longest = rows > 0 ? sequences[0].length : 0;
    int64_t active = 0;
    for (int64_t step = longest; step-- > 0;) {
      while (active < rows && sequences[active * parts].length > step) ++active;
      const Tiling<T> tiles(active);
      for_tiles<T, Tile>(
          panels.size() * tiles.count,
          [&](Tile& tile, int64_t i) __attribute__((always_inline)) { begin(tile, step, panels, tiles, i); },
          [&](Tile& tile, TileProduct<T>& next) __attribute__((always_inline)) { apply_cell(tile, step, next); });
      barrier.wait();
    }
    if (dh0 == nullptr) return;
    const Tiling<T> tiles(rows);
    for_tiles<T, Tile>(
        panels.size() * tiles.count,
        [&](Tile& tile, int64_t i) __attribute__((always_inline)) { begin(tile, -1, panels, tiles, i); },
        [&](Tile& tile, TileProduct<T>&) __attribute__((always_inline)) { write_initial(tile); });
  }

 private:
  // A panel of units of a tile of rows at a step.
  struct Tile {
    int64_t first, end;  // of the units
    int64_t ahead;       // to the units that the same rows come to next
    int64_t first_row, height;
    alignas(64) float dh[Operand<T>::kTileRows][kPanel];  // what comes from the step after
    TileProduct<T> product;                               // into `dh`
  };

  const Sequence& sequence(int64_t row) const { return sequences[row * parts]; }

  int64_t token(int64_t row, int64_t step) const {
    return sequence(row).start + (direction == 0 ? step : sequence(row).length - 1 - step);
  }

  // Tile i of a step; step -1 gives the initial state's.
  void begin(Tile& tile, int64_t step, Range panels, const Tiling<T>& tiles, int64_t i) const {
    const PanelTile<T> place(panels, tiles, i);
    const int64_t panel = place.panel, lanes = Operand<T>::lanes(4 * hidden_size);
    tile.first = panel * kPanel;
    tile.end = tile.first + kPanel < hidden_size ? tile.first + kPanel : hidden_size;
    tile.ahead = units_ahead(panels, panel, kPanel, (direction == 0 ? -directions : directions) * hidden_size);
    tile.first_row = place.rows.begin;
    tile.height = place.rows.size();
    Prefetches prefetches;
    if constexpr (!Operand<T>::kMatrixUnit) {
      const int64_t next = next_around(panels, panel);
      if (tiles.count > 1)
        prefetches.add_panel(w_hh + RecurrentWeightsBackward<T>::panel_offset(hidden_size, next),
                             vecs_of_panel(hidden_size, next) * kLanes * lanes, tiles.count, i % tiles.count);
      if (step >= 0) add_needed(step, panel, tile.first_row, tile.height, prefetches);
    }
    const Rows<Lane> a{reinterpret_cast<const Lane*>(after[(step + 1) % 2] + tile.first_row * after_stride),
                       after_stride / Operand<T>::kPerLane};
    tile.product.start(tile.height, vecs_of_panel(hidden_size, panel), a,
                       w_hh + RecurrentWeightsBackward<T>::panel_offset(hidden_size, panel), lanes, tile.dh[0], kPanel,
                       false, prefetches);
  }

  // The cell's backward of a tile whose product is made, while the next one's is.
  void apply_cell(const Tile& tile, int64_t step, TileProduct<T>& next_product) const {
    const int64_t first = tile.first, end = tile.end, ahead = tile.ahead, height = tile.height;
    const int64_t cells = height * ((end - first + kLanes - 1) / kLanes);
    const int64_t steps_a_cell = (next_product.steps_left() + cells - 1) / cells;
    for (int64_t r = 0; r < height; ++r) {
      const int64_t row = tile.first_row + r, here = token(row, step);
      const int64_t cell = here * directions + direction;
      const float* c_before = step > 0 ? c + (token(row, step - 1) * directions + direction) * hidden_size
                              : c0     ? c0 + sequence(row).index * hidden_size
                                       : nullptr;
      const T* last_dh = dh_n && step + 1 == sequence(row).length ? dh_n + sequence(row).index * hidden_size : nullptr;
      for (int64_t unit = first; unit < end; unit += kLanes) {
        const int64_t n = end - unit < kLanes ? end - unit : kLanes;
        for (int64_t i = 0; i < steps_a_cell; ++i) next_product.step();
        const GateSlot slot = gate_slot(unit, hidden_size);
        const T* gate = gates + cell * 4 * hidden_size + slot.offset;
        if constexpr (Operand<T>::kMatrixUnit) {
          prefetch(gate + 4 * ahead, 4 * kLanes);
          prefetch(c + cell * hidden_size + unit + ahead, kLanes);
          if (c_before) prefetch(c_before + unit + ahead, kLanes);
          if (dy) prefetch(dy + cell * hidden_size + unit + ahead, kLanes);
          prefetch(dgates + here * dgates_stride + direction * 4 * hidden_size + slot.offset + 4 * ahead, 4 * kLanes);
        }
        Floats dh = load(tile.dh[r] + (unit - first));
        if (dy) dh += load(dy + cell * hidden_size + unit, n);
        if (last_dh) dh += load(last_dh + unit, n);
        if (dpooled.gradient) dh += dpooled.at(sequence(row), int32_t(here), unit, n);
        float* dc_state = dc + row * hidden_size + unit;
        Floats dc_here = load(dc_state, n);
        if (dcells) dc_here += load(dcells + cell * hidden_size + unit, n);
        const CellGradient gradient =
            cell_backward<T>(load(gate, n), load(gate + slot.stride, n), load(gate + 2 * slot.stride, n),
                             load(gate + 3 * slot.stride, n), c_before ? load(c_before + unit, n) : Floats{},
                             load(c + cell * hidden_size + unit, n), dh, dc_here);
        for (Element* out : {dgates + here * dgates_stride + direction * 4 * hidden_size + slot.offset,
                             after[step % 2] + row * after_stride + slot.offset}) {
          store(out, gradient.i, n);
          store(out + slot.stride, gradient.f, n);
          store(out + 2 * slot.stride, gradient.g, n);
          store(out + 3 * slot.stride, gradient.o, n);
        }
        store(dc_state, gradient.c_before, n);
      }
    }
  }

  void add_needed(int64_t step, int64_t panel, int64_t first_row, int64_t height, Prefetches& prefetches) const {
    const int64_t first = panel * kPanel;
    const int64_t n = hidden_size - first < kPanel ? hidden_size - first : kPanel;
    for (int64_t r = 0; r < height; ++r) {
      const int64_t row = first_row + r, here = token(row, step), cell = here * directions + direction;
      if (dy) prefetches.add(dy + cell * hidden_size + first, n);
      prefetches.add(dc + row * hidden_size + first, n);
      prefetches.add(gates + cell * 4 * hidden_size + 4 * first, 4 * n);
      prefetches.add(c + cell * hidden_size + first, n);
      if (step > 0) prefetches.add(c + (token(row, step - 1) * directions + direction) * hidden_size + first, n);
      prefetches.add(dgates + here * dgates_stride + direction * 4 * hidden_size + 4 * first, 4 * n);
    }
  }

  void write_initial(const Tile& tile) const {
    for (int64_t r = 0; r < tile.height; ++r) {
      const Sequence& s = sequence(tile.first_row + r);
      for (int64_t unit = tile.first; unit < tile.end; unit += kLanes) {
        const int64_t n = tile.end - unit < kLanes ? tile.end - unit : kLanes;
        Floats value = load(tile.dh[r] + (unit - tile.first));
        if (dh_n && s.length == 0) value += load(dh_n + s.index * hidden_size + unit, n);
        store(dh0 + s.index * hidden_size + unit, value, n);
      }
    }
  }
};

}  // namespace penstock::lstm::PENSTOCK_ISA
