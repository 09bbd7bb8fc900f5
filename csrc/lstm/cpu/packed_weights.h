// A layer's weights as its products read them: packed in panels, all in one piece of memory, which may outlive a call.
#pragma once

#include "gate_layout.h"
#include "layer.h"
#include "panels.h"
#include "team.h"

namespace penstock::lstm::PENSTOCK_ISA {

// W_hh for the forward product: a panel holds kLanes units with their four gates side by side.
template <class T>
struct RecurrentWeights {
  using Lane = typename Operand<T>::Lane;

  static int64_t panels(int64_t hidden_size) { return (hidden_size + kLanes - 1) / kLanes; }
  static int64_t panel_lanes(int64_t hidden_size) { return Operand<T>::lanes(hidden_size) * 4 * kLanes; }

  static void pack(const T* w_hh, int64_t hidden_size, int64_t panel, Lane* out) {
    pack_transposed<T>(
        hidden_size, 4 * kLanes,
        [&](int64_t column) -> const T* {
          const int64_t unit = panel * kLanes + column % kLanes;
          return unit < hidden_size ? w_hh + (column / kLanes * hidden_size + unit) * hidden_size : nullptr;
        },
        out + panel * panel_lanes(hidden_size));
  }
};

template <class T>
struct PackedWeights {
  using Lane = typename Operand<T>::Lane;

  Lane* w_ih;   // panels of the columns of all directions: those of a token's gates, in the order of gate_layout.h
  float* bias;  // (columns, rounded up to a panel), b_ih + b_hh
  Lane* w_hh;   // (directions, panels of RecurrentWeights)

  static int64_t columns(const Layer& layer) { return layer.directions * 4 * layer.hidden_size; }
  static int64_t input_lanes(const Layer& layer) {
    return panels_of(columns(layer)) * kPanel * Operand<T>::lanes(layer.input_size);
  }
  static int64_t direction_lanes(const Layer& layer) {
    return RecurrentWeights<T>::panels(layer.hidden_size) * RecurrentWeights<T>::panel_lanes(layer.hidden_size);
  }
  static size_t bytes(const Layer& layer) {
    return (input_lanes(layer) + panels_of(columns(layer)) * kPanel + layer.directions * direction_lanes(layer)) * 4;
  }

  // `memory` holds as many bytes.
  PackedWeights(const Layer& layer, void* memory)
      : w_ih(static_cast<Lane*>(memory)),
        bias(reinterpret_cast<float*>(w_ih + input_lanes(layer))),
        w_hh(reinterpret_cast<Lane*>(bias + panels_of(columns(layer)) * kPanel)) {
    static_assert(sizeof(Lane) == sizeof(float) && kPanel * sizeof(float) % 64 == 0, "each part begins a line");
  }

  void pack_input(const Layer& layer) const {
    const int64_t H = layer.hidden_size, I = layer.input_size, all = columns(layer);
    auto pack = [&](int member, int members) {
      const Range mine = share(panels_of(all), members, member);
      for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
        const int64_t first = panel * kPanel, width = vecs_of_panel(all, panel) * kLanes;
        pack_transposed<T>(
            I, width,
            [&](int64_t j) -> const T* {
              const int64_t column = first + j;
              if (column >= all) return nullptr;
              return static_cast<const T*>(layer.weights[column / (4 * H)].w_ih) + gate_row(column % (4 * H), H) * I;
            },
            w_ih + first * Operand<T>::lanes(I));
        for (int64_t column = first; column < first + width; ++column) {
          bias[column] = 0;
          if (column >= all) continue;
          const Weights& weights = layer.weights[column / (4 * H)];
          const int64_t row = gate_row(column % (4 * H), H);
          if (weights.b_ih) bias[column] += to_float(static_cast<const T*>(weights.b_ih)[row]);
          if (weights.b_hh) bias[column] += to_float(static_cast<const T*>(weights.b_hh)[row]);
        }
      }
    };
    parallel(layer.threads, pack);
  }

  void pack_recurrent(const Layer& layer) const {
    const int64_t panels = RecurrentWeights<T>::panels(layer.hidden_size);
    auto pack = [&](int member, int members) {
      const Range mine = share(layer.directions * panels, members, member);
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        RecurrentWeights<T>::pack(static_cast<const T*>(layer.weights[i / panels].w_hh), layer.hidden_size, i % panels,
                                  w_hh + i / panels * direction_lanes(layer));
      }
    };
    parallel(layer.threads, pack);
  }
};

}  // namespace penstock::lstm::PENSTOCK_ISA
