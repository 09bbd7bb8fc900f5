// A layer's weights as its products read them: packed in panels, all in one piece of memory, which may outlive a call.
#pragma once

#include "gate_layout.h"
#include "layer.h"
#include "panels.h"
#include "quantised.h"
#include "team.h"
#include "workspace.h"

namespace penstock::lstm::PENSTOCK_ISA {

// W_hh of one direction for the forward product, R being T or, quantised, int8_t: a panel holds kLanes units with their
// four gates side by side.
template <class R>
struct RecurrentWeights {
  using Lane = typename Operand<R>::Lane;
  static constexpr int64_t kColumns = 4 * kLanes;  // of a panel
  static constexpr bool kQuantised = Operand<R>::kQuantised;

  Lane* w;
  float* scale;         // (panels * kColumns), only if quantised
  int32_t* correction;  // the same

  static int64_t panels(int64_t hidden_size) { return (hidden_size + kLanes - 1) / kLanes; }
  static int64_t panel_lanes(int64_t hidden_size) { return Operand<R>::lanes(hidden_size) * kColumns; }
  // Of 32 bits each.
  static int64_t words(int64_t hidden_size) {
    return panels(hidden_size) * (panel_lanes(hidden_size) + (kQuantised ? 2 * kColumns : 0));
  }

  RecurrentWeights(int64_t hidden_size, uint32_t* memory)
      : w(reinterpret_cast<Lane*>(memory)),
        scale(reinterpret_cast<float*>(w + panels(hidden_size) * panel_lanes(hidden_size))),
        correction(reinterpret_cast<int32_t*>(scale + panels(hidden_size) * kColumns)) {}

  template <class T>
  void pack(const T* w_hh, int64_t hidden_size, int64_t panel) const {
    const auto row_of = [&](int64_t column) -> const T* {
      const int64_t unit = panel * kLanes + column % kLanes;
      return unit < hidden_size ? w_hh + (column / kLanes * hidden_size + unit) * hidden_size : nullptr;
    };
    Lane* const out = w + panel * panel_lanes(hidden_size);
    if constexpr (kQuantised) {
      const Block block(kColumns * hidden_size * sizeof(QuantisedWeight));
      QuantisedWeight* const rows = block.as<QuantisedWeight>();
      for (int64_t column = 0; column < kColumns; ++column) {
        QuantisedRow row{};
        if (const T* from = row_of(column)) row = quantise(from, hidden_size, rows + column * hidden_size);
        scale[panel * kColumns + column] = row.scale;
        correction[panel * kColumns + column] = row.correction;
      }
      const auto quantised = [&](int64_t column) -> const QuantisedWeight* {
        return row_of(column) ? rows + column * hidden_size : nullptr;
      };
      pack_transposed<R>(hidden_size, kColumns, quantised, out);
    } else {
      pack_transposed<R>(hidden_size, kColumns, row_of, out);
    }
  }

  // Gate v of a panel's units: what the product of a row of h with these weights is, and the input's share.
  PENSTOCK_INLINE Floats gate(int64_t panel, int v, Floats product, Floats from_input) const {
    if constexpr (!kQuantised) return product + from_input;
    const int64_t column = panel * kColumns + v * kLanes;
    const Ints whole = (Ints)product + load_as<Ints>(correction + column);
    return __builtin_convertvector(whole, Floats) * load(scale + column) + from_input;
  }
};

template <class T, class R>
struct PackedWeights {
  using Lane = typename Operand<T>::Lane;

  Lane* w_ih;      // panels of the columns of all directions: those of a token's gates, in the order of gate_layout.h
  float* bias;     // (columns, rounded up to a panel), b_ih + b_hh
  uint32_t* w_hh;  // RecurrentWeights of each direction

  static int64_t columns(const Layer& layer) { return layer.directions * 4 * layer.hidden_size; }
  static int64_t input_lanes(const Layer& layer) {
    return panels_of(columns(layer)) * kPanel * Operand<T>::lanes(layer.input_size);
  }
  static size_t bytes(const Layer& layer) {
    return (input_lanes(layer) + panels_of(columns(layer)) * kPanel +
            layer.directions * RecurrentWeights<R>::words(layer.hidden_size)) *
           4;
  }

  // `memory` holds as many bytes.
  PackedWeights(const Layer& layer, void* memory)
      : w_ih(static_cast<Lane*>(memory)),
        bias(reinterpret_cast<float*>(w_ih + input_lanes(layer))),
        w_hh(reinterpret_cast<uint32_t*>(bias + panels_of(columns(layer)) * kPanel)) {
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

  RecurrentWeights<R> recurrent(const Layer& layer, int64_t direction) const {
    return {layer.hidden_size, w_hh + direction * RecurrentWeights<R>::words(layer.hidden_size)};
  }

  void pack_recurrent(const Layer& layer) const {
    const int64_t panels = RecurrentWeights<R>::panels(layer.hidden_size);
    auto pack = [&](int member, int members) {
      const Range mine = share(layer.directions * panels, members, member);
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        const T* from = static_cast<const T*>(layer.weights[i / panels].w_hh);
        recurrent(layer, i / panels).pack(from, layer.hidden_size, i % panels);
      }
    };
    parallel(layer.threads, pack);
  }
};

}  // namespace penstock::lstm::PENSTOCK_ISA
