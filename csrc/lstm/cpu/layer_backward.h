// A whole layer backward: the recurrence of every team, then dx and the weights' gradients over all tokens at once.
#pragma once

#include "layer_forward.h"
#include "recurrence_backward.h"

namespace penstock::lstm::PENSTOCK_ISA {

// The row of h that entered each token's cell, (tokens) pointers.
template <class T>
void rows_before(const Layer& layer, const Schedule& schedule, int direction, const T* y, const T* zeros,
                 const T** rows) {
  const int64_t H = layer.hidden_size, stride = layer.directions * H;
  const T* h0 = of_direction<T>(layer.h0, direction, layer);
  if (schedule.covered < layer.tokens) {
    for (int64_t token = 0; token < layer.tokens; ++token) rows[token] = zeros;
  }
  for (const Sequence& sequence : schedule.sequences) {
    if (sequence.length == 0) continue;
    const int64_t end = sequence.start + sequence.length, back = direction == 0 ? -1 : 1;
    for (int64_t token = sequence.start; token < end; ++token)
      rows[token] = y + (token + back) * stride + direction * H;
    rows[direction == 0 ? sequence.start : end - 1] = h0 ? h0 + sequence.index * H : zeros;
  }
}

// Shares the products of all directions out among the threads.
template <class T>
void weight_gradients(const Layer& layer, WeightProduct<T> (&products)[kMaxDirections]) {
  using Lane = typename Operand<T>::Lane;
  const int64_t H = layer.hidden_size;
  const int per_direction = layer.threads > layer.directions ? layer.threads / layer.directions : 1;
  const int tasks = per_direction * layer.directions;
  const int workers = layer.threads < tasks ? layer.threads : tasks;
  const int64_t most_rows = (4 * H + per_direction - 1) / per_direction;
  const int64_t operand_lanes = products[0].operand_lanes(most_rows), sum_floats = products[0].sum_floats(most_rows);
  Block operands(workers * operand_lanes * sizeof(Lane)), sums(workers * sum_floats * sizeof(float));
  auto multiply = [&](int worker, int available) {
    const Range mine = share(tasks, available, worker);
    for (int64_t task = mine.begin; task < mine.end; ++task) {
      products[task / per_direction].run(share(4 * H, per_direction, task % per_direction),
                                         operands.as<Lane>() + worker * operand_lanes,
                                         sums.as<float>() + worker * sum_floats);
    }
  };
  parallel(workers, multiply);
}

template <class T>
void backward(const Layer& layer, const Backward& io) {
  using Lane = typename Operand<T>::Lane;
  using Element = typename Operand<T>::Element;
  const int64_t H = layer.hidden_size, D = layer.directions, B = layer.batch;
  const Schedule schedule(layer, Operand<T>::kTileRows, sizeof(Element));
  const Teams teams(layer, schedule);
  const Inputs inputs(layer);

  constexpr int64_t kSpareRows = Operand<T>::kRowStep - 1;
  const int64_t dgates_stride = (D * 4 * H + 31) / 32 * 32 + kLinePad * Operand<T>::kPerLane;
  const int64_t after_stride = (4 * H + 31) / 32 * 32 + kLinePad * Operand<T>::kPerLane;
  const int64_t panels = panels_of(H), packed_lanes = panels * kPanel * Operand<T>::lanes(4 * H);
  Block dgates_block((layer.tokens + kSpareRows) * dgates_stride * sizeof(Element));
  Block after_block((2 * D * B + kSpareRows) * after_stride * sizeof(Element));
  Block w_block(D * packed_lanes * sizeof(Lane)), dc_block(D * B * H * sizeof(float));
  Block zeros_block(H * sizeof(T));
  Element* dgates = dgates_block.as<Element>();
  std::memset(zeros_block.as<void>(), 0, H * sizeof(T));
  if (schedule.covered < layer.tokens) std::memset(dgates, 0, layer.tokens * dgates_stride * sizeof(Element));

  // The products' last lanes may reach beyond a row's gradients.
  const auto clear_padding = [&](Element* rows, int64_t count) {
    const int64_t used = D * 4 * H, padded = Operand<T>::lanes(used) * Operand<T>::kPerLane;
    for (int64_t row = 0; used < padded && row < count; ++row)
      std::memset(rows + row * dgates_stride + used, 0, (padded - used) * sizeof(Element));
  };

  auto pack = [&](int member, int members) {
    const Range mine = share(D * panels, members, member);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      RecurrentWeightsBackward<T>::pack(static_cast<const T*>(layer.weights[i / panels].w_hh), H, i % panels,
                                        w_block.as<Lane>() + i / panels * packed_lanes);
    }
  };
  parallel(layer.threads, pack);

  teams.run(layer.threads, [&](int64_t index, int member, int members, Barrier& barrier) {
    const int direction = teams.direction(index);
    Element* after = after_block.as<Element>() + 2 * teams.first_row(index) * after_stride;
    const BackwardTeam<T> team{
        direction,
        layer.directions,
        H,
        schedule.sequences.data() + teams.part(index),
        teams.rows(index),
        teams.parts,
        w_block.as<Lane>() + direction * packed_lanes,
        static_cast<const T*>(io.gates),
        io.c,
        of_direction<float>(layer.c0, direction, layer),
        static_cast<const T*>(io.dy),
        {layer.pool, direction, layer.directions, H, static_cast<const T*>(io.dpooled), io.maximum},
        io.dc,
        of_direction<T>(io.dh_n, direction, layer),
        dgates,
        dgates_stride,
        {after, after + teams.rows(index) * after_stride},
        after_stride,
        dc_block.as<float>() + teams.first_row(index) * H,
        of_direction<T>(io.dh0, direction, layer)};
    if (member == 0) team.start(of_direction<float>(io.dc_n, direction, layer));
    barrier.wait();
    team.run(share(panels, members, member), barrier);
    if (member == 0 && io.dc0) team.finish(of_direction<float>(io.dc0, direction, layer));
  });

  const bool want_weights = io.weights[0].w_ih != nullptr;
  Block rows_block(want_weights ? D * layer.tokens * sizeof(const T*) : 0);
  WeightProduct<T> products[kMaxDirections];
  for (int d = 0; want_weights && d < layer.directions; ++d) {
    const T** h_before = rows_block.as<const T*>() + d * layer.tokens;
    rows_before(layer, schedule, d, static_cast<const T*>(io.y), zeros_block.as<T>(), h_before);
    products[d] = {layer.tokens,
                   layer.input_size,
                   H,
                   !inputs.shared,
                   true,
                   static_cast<const T*>(layer.x),
                   h_before,
                   dgates + d * 4 * H,
                   dgates_stride,
                   static_cast<T*>(io.weights[d].w_ih),
                   static_cast<T*>(io.weights[d].w_hh),
                   static_cast<T*>(io.weights[d].bias)};
  }
  if (want_weights) weight_gradients<T>(layer, products);
  if (!inputs.shared) {
    if (!io.dx) return;
    clear_padding(dgates, layer.tokens);
    project_gradient<T>(layer, dgates, dgates_stride, layer.tokens, static_cast<T*>(io.dx));
    return;
  }
  if (!io.dx && !want_weights) return;

  // x is known for each distinct id, and so is all that its gradient needs: the sum of its tokens' gate gradients.
  Block sums_block((inputs.rows + kSpareRows) * dgates_stride * sizeof(Element)),
      x_block(inputs.rows * layer.input_size * sizeof(T));
  Element* sums = sums_block.as<Element>();
  T* x = x_block.as<T>();
  sum_by_row(TokensOfRows(inputs), layer.threads, D * 4 * H, dgates, dgates_stride, sums);
  if (want_weights) {
    look_up<T>(layer, inputs, x);
    for (int d = 0; d < layer.directions; ++d) {
      WeightProduct<T>& product = products[d];
      product.tokens = inputs.rows;
      product.with_x = true;
      product.with_h = false;
      product.x = x;
      product.dgates = sums + d * 4 * H;
      product.bias = nullptr;
    }
    weight_gradients<T>(layer, products);
  }
  if (!io.dx) return;
  clear_padding(sums, inputs.rows);
  project_gradient<T>(layer, sums, dgates_stride, inputs.rows, x);
  if (layer.table_dtype == layer.dtype) {
    spread_gradient(layer, inputs, x, static_cast<T*>(io.dx));
  } else {
    spread_gradient(layer, inputs, x, static_cast<float*>(io.dx));
  }
}

}  // namespace penstock::lstm::PENSTOCK_ISA
