// A layer's weights as its products read them: packed in panels, all in one piece of memory, which may outlive a call.
#pragma once

#include "gate_layout.h"
#include "layer.h"
#include "packed_columns.h"
#include "threads.h"

namespace penstock::lstm::PENSTOCK_ISA {

using namespace penstock::PENSTOCK_ISA;

// W_hh for the forward product: a panel holds kLanes units with their four gates side by side.
struct RecurrentPanels {
  static constexpr int64_t kColumns = 4 * kLanes;  // of a panel

  static int64_t count(int64_t hidden_size) { return (hidden_size + kLanes - 1) / kLanes; }
  static int64_t columns(int64_t hidden_size) { return count(hidden_size) * kColumns; }
};

template <class T, class R>
struct PackedWeights {
  PackedColumns<R> w_ih;  // of all directions: a token's gates, in the order of gate_layout.h
  float* bias;            // (columns, rounded up to a panel), b_ih + b_hh
  uint32_t* w_hh;         // the memory of each direction's

  static int64_t columns(const Layer& layer) { return layer.directions * 4 * layer.hidden_size; }
  static int64_t padded_columns(const Layer& layer) { return panels_of(columns(layer)) * kPanel; }
  static int64_t input_words(const Layer& layer) {
    return PackedColumns<R>::words(padded_columns(layer), Operand<R>::lanes(layer.input_size));
  }
  static int64_t recurrent_words(const Layer& layer) {
    return PackedColumns<R>::words(RecurrentPanels::columns(layer.hidden_size), Operand<R>::lanes(layer.hidden_size));
  }
  static size_t bytes(const Layer& layer) {
    return (input_words(layer) + padded_columns(layer) + layer.directions * recurrent_words(layer)) * sizeof(uint32_t);
  }

  // `memory` holds as many bytes.
  PackedWeights(const Layer& layer, void* memory)
      : w_ih(padded_columns(layer), Operand<R>::lanes(layer.input_size), static_cast<uint32_t*>(memory)),
        bias(static_cast<float*>(memory) + input_words(layer)),
        w_hh(reinterpret_cast<uint32_t*>(bias + padded_columns(layer))) {
    static_assert(kPanel * sizeof(float) % 64 == 0, "each part begins a line");
  }

  // Packing in int8 takes memory in each thread, so both may throw std::bad_alloc.
  void pack_input(const Layer& layer) const {
    const int64_t H = layer.hidden_size, I = layer.input_size, all = columns(layer);
    parallel_for(panels_of(all), layer.threads, [&](int64_t panel, int) {
      const int64_t first = panel * kPanel, width = vecs_of_panel(all, panel) * kLanes;
      w_ih.template pack<T>(first, width, I, 1.0f, [&](int64_t j) -> const T* {
        const int64_t column = first + j;
        if (column >= all) return nullptr;
        return static_cast<const T*>(layer.weights[column / (4 * H)].w_ih) + gate_row(column % (4 * H), H) * I;
      });
      for (int64_t column = first; column < first + width; ++column) {
        bias[column] = 0;
        if (column >= all) continue;
        const Weights& weights = layer.weights[column / (4 * H)];
        const int64_t row = gate_row(column % (4 * H), H);
        if (weights.b_ih) bias[column] += to_float(static_cast<const T*>(weights.b_ih)[row]);
        if (weights.b_hh) bias[column] += to_float(static_cast<const T*>(weights.b_hh)[row]);
      }
    });
  }

  PackedColumns<R> recurrent(const Layer& layer, int64_t direction) const {
    return {RecurrentPanels::columns(layer.hidden_size), Operand<R>::lanes(layer.hidden_size),
            w_hh + direction * recurrent_words(layer)};
  }

  void pack_recurrent(const Layer& layer) const {
    const int64_t H = layer.hidden_size, panels = RecurrentPanels::count(H);
    parallel_for(layer.directions * panels, layer.threads, [&](int64_t i, int) {
      const int64_t direction = i / panels, panel = i % panels;
      const T* w = static_cast<const T*>(layer.weights[direction].w_hh);
      const auto row_of = [&](int64_t column) -> const T* {
        const int64_t unit = panel * kLanes + column % kLanes;
        return unit < H ? w + (column / kLanes * H + unit) * H : nullptr;
      };
      constexpr int64_t width = RecurrentPanels::kColumns;
      recurrent(layer, direction).template pack<T>(panel * width, width, H, 1 / kLargest, row_of);
    });
  }
};

}  // namespace penstock::lstm::PENSTOCK_ISA
