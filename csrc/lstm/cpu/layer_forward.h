// A whole layer forward: the input's projection, then the recurrence of every team, which also pools.
#pragma once

#include <new>

#include "embedding.h"
#include "projection.h"
#include "recurrence_forward.h"

namespace penstock::lstm::PENSTOCK_ISA {

template <class T>
T* of_direction(const void* base, int direction, const Layer& layer) {
  if (base == nullptr) return nullptr;
  return static_cast<T*>(const_cast<void*>(base)) + direction * layer.batch * layer.hidden_size;
}

// The teams of a recurrence, numbered direction by direction.
struct Teams {
  int64_t batch;
  int directions, parts, members;
  bool in_turn;

  Teams(const Layer& layer, const Schedule& schedule)
      : batch(layer.batch),
        directions(layer.directions),
        parts(schedule.parts),
        members(schedule.members),
        in_turn(schedule.in_turn) {}

  int count() const { return directions * parts; }
  int direction(int64_t team) const { return int(team / parts); }
  int64_t part(int64_t team) const { return team % parts; }
  int64_t rows(int64_t team) const { return (batch - part(team) + parts - 1) / parts; }
  // Teams' states lie one after the other.
  int64_t first_row(int64_t team) const {
    int64_t row = direction(team) * batch;
    for (int64_t earlier = team - part(team); earlier < team; ++earlier) row += rows(earlier);
    return row;
  }

  // Calls work(team, member, members, barrier) for every member of every team.
  template <class Work>
  void run(int threads, const Work& work) const {
    Block block(count() * sizeof(Barrier));
    for (int team = 0; team < count(); ++team) new (block.as<Barrier>() + team) Barrier(members);
    const int at_once = in_turn ? parts : count(), wanted = at_once * members;
    for (int first = 0; first < count(); first += at_once) {
      auto on_thread = [&](int thread, int available) {
        if (members > 1 && available == wanted) {
          const int team = first + thread / members;
          work(team, thread % members, members, block.as<Barrier>()[team]);
          return;
        }
        const Range mine = share(at_once, available, thread);
        Barrier alone(1);
        for (int64_t team = mine.begin; team < mine.end; ++team) work(first + team, 0, 1, alone);
      };
      parallel(threads < wanted ? threads : wanted, on_thread);
    }
  }
};

template <class T, class R>
void pack(const Layer& layer, void* memory) {
  const PackedWeights<T, R> weights(layer, memory);
  weights.pack_input(layer);
  weights.pack_recurrent(layer);
}

template <class T, class R>
void forward(const Layer& layer, const Forward& out) {
  using Element = typename Operand<R>::Element;
  const int64_t H = layer.hidden_size, D = layer.directions, B = layer.batch;
  const Schedule schedule(layer, Operand<R>::kTileRows, sizeof(Element));
  const Teams teams(layer, schedule);
  const Inputs inputs(layer);
  if (out.y && schedule.covered < layer.tokens) std::memset(out.y, 0, layer.tokens * D * H * sizeof(T));

  // Where every token has a row of its own, its gates are completed in place.
  const bool in_place = out.gates != nullptr && !inputs.shared;
  Block projected_block(in_place ? 0 : inputs.rows * D * 4 * H * sizeof(T));
  T* projected = in_place ? static_cast<T*>(out.gates) : projected_block.as<T>();
  Block x_block(inputs.shared ? inputs.rows * layer.input_size * sizeof(T) : 0);
  if (inputs.shared) look_up<T>(layer, inputs, x_block.as<T>());

  Block w_block(layer.packed ? 0 : PackedWeights<T, R>::bytes(layer));
  const PackedWeights<T, R> weights(layer, layer.packed ? const_cast<void*>(layer.packed) : w_block.as<void>());
  if (!layer.packed) weights.pack_input(layer);
  project_input<T, R>(layer, weights, inputs.shared ? x_block.as<T>() : static_cast<const T*>(layer.x), inputs.rows,
                      projected);

  const int64_t h_stride = (H + 31) / 32 * 32 + kLinePad * Operand<R>::kPerLane;
  Block h_block((2 * D * B + Operand<R>::kRowStep - 1) * h_stride * sizeof(Element)),
      c_block(D * B * H * sizeof(float));
  Block pool_block(layer.pool == Pool::none ? 0 : D * B * H * sizeof(float));
  if (!layer.packed) weights.pack_recurrent(layer);

  teams.run(layer.threads, [&](int64_t index, int member, int members, Barrier& barrier) {
    const int direction = teams.direction(index);
    Element* h = h_block.as<Element>() + 2 * teams.first_row(index) * h_stride;
    const ForwardTeam<T, R> team{
        direction,
        layer.directions,
        H,
        schedule.sequences.data() + teams.part(index),
        teams.rows(index),
        teams.parts,
        weights.recurrent(layer, direction),
        projected,
        inputs.shared ? inputs.row_of.data() : nullptr,
        static_cast<T*>(out.gates),
        out.c,
        static_cast<T*>(out.y),
        of_direction<T>(layer.h0, direction, layer),
        of_direction<float>(layer.c0, direction, layer),
        of_direction<T>(out.h_n, direction, layer),
        of_direction<float>(out.c_n, direction, layer),
        {layer.pool, direction, layer.directions, H, pool_block.as<float>() + teams.first_row(index) * H,
         static_cast<T*>(out.pooled), out.maximum},
        {h, h + teams.rows(index) * h_stride},
        h_stride,
        c_block.as<float>() + teams.first_row(index) * H};
    if (member == 0) team.start();
    barrier.wait();
    team.run(share(RecurrentPanels::count(H), members, member), barrier);
    if (member == 0) team.finish();
  });
}

}  // namespace penstock::lstm::PENSTOCK_ISA
