// h and c through time for one direction: each step is one product with W_hh whose epilogue is the cell.
#pragma once

#include "cell.h"
#include "packed_weights.h"
#include "pooled.h"
#include "schedule.h"

namespace penstock::lstm::PENSTOCK_ISA {

// What a team works on: every `parts`-th sequence of one direction.
template <class T, class R>
struct ForwardTeam {
  using Element = typename Operand<R>::Element;
  using Lane = typename Operand<R>::Lane;
  static constexpr bool kQuantised = Operand<R>::kQuantised;

  int direction, directions;
  int64_t hidden_size;
  const Sequence* sequences;  // sequence r of this team is sequences[r * parts]
  int64_t rows, parts;
  PackedColumns<R> w_hh;  // RecurrentPanels
  const T* projected;     // (rows, directions, 4H): the input's share of the gates
  const int32_t* row_of;  // (tokens), the row of each token there, or null where it is the token's own
  T* gates;               // (tokens, directions, 4H), or null; may be `projected` itself
  float* c_saved;         // (tokens, directions, H) or null
  T* y;                   // (tokens, directions, H) or null
  const T* h0;            // (batch, H) of this direction, or null for zeros
  const float* c0;        // the same
  T* h_n;                 // (batch, H) of this direction
  float* c_n;             // the same
  Pooled<T> pooled;
  Element* h[2];  // (rows, h_stride), the steps alternate; beyond H zeros; kRowStep - 1 rows more can be read
  int64_t h_stride;
  float* c;  // (rows, H), the state

  void start() const {
    std::memset(h[0], 0, rows * h_stride * sizeof(Element));
    std::memset(h[1], 0, rows * h_stride * sizeof(Element));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t index = sequences[r * parts].index;
      for (int64_t unit = 0; unit < hidden_size; ++unit) {
        if (h0 || kQuantised) h[0][r * h_stride + unit] = to_element(h0 ? h0[index * hidden_size + unit] : T{0});
        c[r * hidden_size + unit] = c0 ? c0[index * hidden_size + unit] : 0.0f;
      }
      pooled.start(index, r);
    }
  }

  // A sequence's last h stays in the buffer that its last step wrote; quantised, that step wrote h_n.
  void finish() const {
    for (int64_t r = 0; r < rows; ++r) {
      const Sequence& sequence = sequences[r * parts];
      const Element* last = h[sequence.length % 2] + r * h_stride;
      for (int64_t unit = 0; unit < hidden_size; unit += kLanes) {
        const int64_t n = hidden_size - unit < kLanes ? hidden_size - unit : kLanes,
                      at = sequence.index * hidden_size + unit;
        if constexpr (!kQuantised) {
          store(h_n + at, load(last + unit, n), n);
        } else if (sequence.length == 0) {
          store(h_n + at, h0 ? load(h0 + at, n) : Floats{}, n);
        }
        store(c_n + at, load(c + r * hidden_size + unit, n), n);
      }
      pooled.finish(sequence, r);
    }
  }

  void run(Range panels, Barrier& barrier) const {
    [[maybe_unused]] const typename Operand<R>::Unit unit{};
    int64_t active = rows;
    for (int64_t step = 0;; ++step) {
      while (active > 0 && sequences[(active - 1) * parts].length <= step) --active;
      if (active == 0) return;
      const Tiling<R> tiles(active);
      for_tiles<R, Tile>(
          panels.size() * tiles.count,
          [&](Tile& tile, int64_t i) __attribute__((always_inline)) { begin(tile, step, panels, tiles, i); },
          [&](Tile& tile, TileProduct<R>& next) __attribute__((always_inline)) { apply_cell(tile, step, next); });
      barrier.wait();
    }
  }

 private:
  static Element to_element(T value) {
    if constexpr (kQuantised) {
      Element element;
      store_quantised(&element, splat(to_float(value)), kLargest, 1);
      return element;
    } else if constexpr (std::is_same_v<T, Element>) {
      return value;
    } else {
      return to_float(value);
    }
  }

  // h rounded as y holds it, of which `next` is what the next step reads.
  static PENSTOCK_INLINE Floats as_stored(Floats h, const Element* next, int64_t n) {
    if constexpr (!kQuantised) return load(next, n);
    T rounded[kLanes];
    store(rounded, h);
    return load(rounded);
  }

  int64_t token(int64_t row, int64_t step) const {
    const Sequence& sequence = sequences[row * parts];
    return sequence.start + (direction == 0 ? step : sequence.length - 1 - step);
  }

  // 16 units of a tile of rows at a step.
  struct Tile {
    int64_t unit, n;  // the units' first and number
    int64_t ahead;    // to the units that the same rows come to next
    int64_t first_row, height;
    int64_t cell[Operand<R>::kTileRows];  // (token, direction)
    const T* gate_in[Operand<R>::kTileRows];
    alignas(64) float sums[Operand<R>::kTileRows][4][kLanes];
    TileProduct<R> product;  // into `sums`
  };

  // Tile i of a step.
  void begin(Tile& tile, int64_t step, Range panels, const Tiling<R>& tiles, int64_t i) const {
    const PanelTile<R> place(panels, tiles, i);
    const int64_t panel = place.panel, next = next_around(panels, panel);
    const int64_t lanes = Operand<R>::lanes(hidden_size), panel_lanes = RecurrentPanels::kColumns * lanes;
    tile.unit = panel * kLanes;
    tile.n = hidden_size - tile.unit < kLanes ? hidden_size - tile.unit : kLanes;
    tile.ahead = units_ahead(panels, panel, kLanes, (direction == 0 ? directions : -directions) * hidden_size);
    tile.first_row = place.rows.begin;
    tile.height = place.rows.size();
    const GateSlot slot = gate_slot(tile.unit, hidden_size);
    const Element* h_before = h[step % 2];
    Element* h_after = h[(step + 1) % 2];
    Prefetches prefetches;
    if (!Operand<R>::kMatrixUnit && tiles.count > 1)
      prefetches.add_panel(w_hh.w + next * panel_lanes, panel_lanes, tiles.count, i % tiles.count);
    for (int64_t r = 0; r < tile.height; ++r) {
      const int64_t row = tile.first_row + r;
      const int64_t here = token(row, step);
      tile.cell[r] = here * directions + direction;
      tile.gate_in[r] =
          projected + ((row_of ? row_of[here] : here) * directions + direction) * 4 * hidden_size + slot.offset;
      if constexpr (Operand<R>::kMatrixUnit) continue;
      prefetches.add(tile.gate_in[r], 4 * tile.n);
      if (gates && row_of) prefetches.add(gates + tile.cell[r] * 4 * hidden_size + slot.offset, 4 * tile.n);
      prefetches.add(c + row * hidden_size + tile.unit, tile.n);
      if (c_saved) prefetches.add(c_saved + tile.cell[r] * hidden_size + tile.unit, tile.n);
      if (y) prefetches.add(y + tile.cell[r] * hidden_size + tile.unit, tile.n);
      prefetches.add(h_after + row * h_stride + tile.unit, tile.n);
    }
    const Rows<Lane> a{reinterpret_cast<const Lane*>(h_before + tile.first_row * h_stride),
                       h_stride / Operand<R>::kPerLane};
    tile.product.start(tile.height, 4, a, w_hh.w + panel * panel_lanes, lanes, tile.sums[0][0], 4 * kLanes, false,
                       prefetches);
  }

  // The cell of a tile whose product is made, while the next one's is.
  void apply_cell(Tile& tile, int64_t step, TileProduct<R>& next_product) const {
    const int64_t unit = tile.unit, n = tile.n, first_row = tile.first_row, height = tile.height;
    const int64_t *cell = tile.cell, ahead = tile.ahead;
    const T* const* gate_in = tile.gate_in;
    float (*const product)[4][kLanes] = tile.sums;
    const GateSlot slot = gate_slot(unit, hidden_size);
    Element* h_after = h[(step + 1) % 2];
    const int64_t steps_a_row = (next_product.steps_left() + height - 1) / height;

    // Gates are read for all rows before any are written: rows lie a power of two apart, and a load waits for an
    // earlier store whose address ends alike.
    for (int64_t r = 0; r < height; ++r) {
      for (int v = 0; v < 4; ++v) {
        const Floats from_input = load(gate_in[r] + v * slot.stride, n);
        const int64_t column = 4 * unit + v * kLanes;
        store(product[r][v], w_hh.result(column, load(product[r][v]), 1.0f, from_input));
      }
    }
    for (int64_t r = 0; r < height; ++r) {
      for (int64_t i = 0; i < steps_a_row; ++i) next_product.step();
      Floats value[4];
      for (int v = 0; v < 4; ++v) value[v] = load(product[r][v]);
      float* state = c + (first_row + r) * hidden_size + unit;
      const Cell after = cell_forward<T>(value[0], value[1], value[2], value[3], load(state, n));
      store(state, after.c, n);
      if constexpr (Operand<R>::kMatrixUnit) {
        // The unit is so fast that a list of lines costs as much as the product.
        prefetch(gate_in[r] + 4 * ahead, 4 * kLanes);
        if (gates && row_of) prefetch(gates + cell[r] * 4 * hidden_size + slot.offset + 4 * ahead, 4 * kLanes);
        if (c_saved) prefetch(c_saved + cell[r] * hidden_size + unit + ahead, kLanes);
        if (y) prefetch(y + cell[r] * hidden_size + unit + ahead, kLanes);
      }
      if (gates) {
        T* gate = gates + cell[r] * 4 * hidden_size + slot.offset;
        for (int v = 0; v < 4; ++v) store(gate + v * slot.stride, value[v], n);
      }
      if (c_saved) store(c_saved + cell[r] * hidden_size + unit, after.c, n);
      if (y) store(y + cell[r] * hidden_size + unit, after.h, n);
      Element* next = h_after + (first_row + r) * h_stride + unit;
      if constexpr (kQuantised) {
        store_quantised(next, after.h, kLargest, n);
        const Sequence& sequence = sequences[(first_row + r) * parts];
        if (sequence.length == step + 1) store(h_n + sequence.index * hidden_size + unit, after.h, n);
      } else if constexpr (std::is_same_v<T, Element>) {
        store(next, after.h, n);
      } else {
        T rounded[kLanes];
        store(rounded, after.h);
        store(next, load(rounded), n);
      }
      if (pooled.wanted()) {
        const int64_t row = first_row + r;
        pooled.add(sequences[row * parts].index, row, int32_t(token(row, step)), unit, as_stored(after.h, next, n), n);
      }
    }
  }
};

}  // namespace penstock::lstm::PENSTOCK_ISA
