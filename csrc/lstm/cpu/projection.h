// What x and the gates exchange, over all rows of x at once: gates = x W_ih^T + b, and dx = dgates W_ih.
#pragma once

#include "products.h"
#include "workspace.h"

namespace penstock::lstm::PENSTOCK_ISA {

// x: (rows, I); gates: (rows, directions, 4H).
template <class T, class R>
void project_input(const Layer& layer, const PackedWeights<T, R>& weights, const T* x, int64_t rows, T* gates) {
  using Lane = typename Operand<R>::Lane;
  using Element = typename Operand<R>::Element;
  constexpr bool kQuantised = Operand<R>::kQuantised;
  const int64_t I = layer.input_size, columns = weights.columns(layer), lanes = Operand<R>::lanes(I);

  // The matrix unit reads beyond the last row.
  const bool in_place = std::is_same_v<T, Element> && I % Operand<R>::kPerLane == 0 && !Operand<R>::kMatrixUnit;
  const int64_t x_stride = in_place ? lanes : (lanes + kLinePad) / kLinePad * kLinePad + kLinePad;
  Block x_block(in_place ? 0 : (rows + Operand<R>::kRowStep - 1) * x_stride * sizeof(Lane));
  Block units_block(kQuantised ? rows * sizeof(float) : 0);
  float* units = units_block.as<float>();
  const Lane* a = in_place ? reinterpret_cast<const Lane*>(x) : x_block.as<Lane>();
  const RowProduct<T, R> product{lanes, columns, a, x_stride, units, weights.w_ih, weights.bias, gates};
  const int64_t partial_floats = product.partial_floats(lanes, columns);
  Block partial_block(layer.threads * partial_floats * sizeof(float));
  auto project = [&](int member, int members) {
    const Range mine = share(rows, members, member);
    for (int64_t row = mine.begin; !in_place && row < mine.end; ++row) {
      const T* from = x + row * I;
      Lane* to = x_block.as<Lane>() + row * x_stride;
      if constexpr (kQuantised) {
        units[row] = quantise_input(from, I, reinterpret_cast<Element*>(to));
      } else {
        for (int64_t k = 0; k < lanes; k += kLanes) {
          const Uints value = lanes_along<T>(from, k, I);
          std::memcpy(to + k, &value, sizeof value);
        }
      }
    }
    product.run(mine, partial_block.as<float>() + member * partial_floats);
  };
  parallel(layer.threads, project);
}

// dgates: (rows, dgates_stride), of which the first directions * 4H elements of each row, and zeros up to the end of
// the last lane; kRowStep - 1 rows more can be read; dx: (rows, I).
template <class T>
void project_gradient(const Layer& layer, const typename Operand<T>::Element* dgates, int64_t dgates_stride,
                      int64_t rows, T* dx) {
  using Lane = typename Operand<T>::Lane;
  const int64_t H = layer.hidden_size, I = layer.input_size, gates = layer.directions * 4 * H;
  const int64_t panels = panels_of(I), lanes = Operand<T>::lanes(gates);

  Block w_block(panels * kPanel * lanes * sizeof(Lane));
  Lane* w = w_block.as<Lane>();
  auto pack = [&](int member, int members) {
    const Range mine = share(panels, members, member);
    for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
      const int64_t first = panel * kPanel, width = vecs_of_panel(I, panel) * kLanes;
      pack_rows<T>(
          gates, I - first < width ? I - first : width, width,
          [&](int64_t k) {
            return static_cast<const T*>(layer.weights[k / (4 * H)].w_ih) + gate_row(k % (4 * H), H) * I + first;
          },
          w + first * lanes);
    }
  };
  parallel(layer.threads, pack);

  const PackedColumns<T> columns(panels * kPanel, lanes, reinterpret_cast<uint32_t*>(w));
  const auto* a = reinterpret_cast<const Lane*>(dgates);
  const RowProduct<T, T> product{lanes, I, a, dgates_stride / Operand<T>::kPerLane, nullptr, columns, nullptr, dx};
  const int64_t partial_floats = product.partial_floats(lanes, I);
  Block partial_block(layer.threads * partial_floats * sizeof(float));
  auto project = [&](int member, int members) {
    product.run(share(rows, members, member), partial_block.as<float>() + member * partial_floats);
  };
  parallel(layer.threads, project);
}

}  // namespace penstock::lstm::PENSTOCK_ISA
