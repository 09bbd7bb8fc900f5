// The forward recurrence of a group of blocks: per step one product W_hh h, the cells, one exchange of h.
#pragma once

#include "lstm/cuda/cell.h"
#include "lstm/cuda/exchange.h"
#include "lstm/cuda/lane_ring.h"
#include "lstm/cuda/pooled.h"
#include "lstm/cuda/problem.h"

namespace penstock::lstm::cuda {

// The A operands of a warp: 32 gate rows over its part of K. A thread's four words of (k, m) are rows i / 4 and
// i / 4 + 8, columns 2 (i % 4) and 8 beyond.
template <class S>
class ForwardWeights {
 public:
  PENSTOCK_DEVICE explicit ForwardWeights(char* shared) : rest_(reinterpret_cast<device::Quad*>(shared)) {}

  PENSTOCK_DEVICE void load(const uint16_t* w_hh, int first_unit, int first_k) {
    const int lane = device::thread() % 32;
    const uint16_t* corner = w_hh + int64_t(first_unit + lane / 4) * S::kHidden + first_k + lane % 4 * 2;
    PENSTOCK_UNROLL
    for (int k = 0; k < S::kForwardK; ++k) {
      PENSTOCK_UNROLL
      for (int m = 0; m < 2; ++m) {
        PENSTOCK_UNROLL
        for (int word = 0; word < 4; ++word) {
          const int gate = 2 * m + word % 2, column = 16 * k + word / 2 * 8;
          const uint16_t* from = corner + int64_t(gate) * S::kHidden * S::kHidden + column;
          const uint32_t value = *reinterpret_cast<const uint32_t*>(from);
          (k < S::kForwardKept ? kept_[k % S::kForwardKept][m] : *rest(k, m)).word[word] = value;
        }
      }
    }
  }

  // Gates (i, f) and (g, o) of eight units for eight lanes of h; k-tiles of even and of odd number are summed apart.
  PENSTOCK_DEVICE void multiply(const uint16_t* h, float (&sums)[2][4]) const {
    const int lane = device::thread() % 32;
    const uint16_t* row = h + lane % 8 * S::kStateStride + lane / 8 * 8;
    float odd[2][4] = {};
    PENSTOCK_UNROLL
    for (int k = 0; k < S::kForwardK; k += 2) {
      device::Quad b;
      device::load_matrices(b, row + 16 * k);
      PENSTOCK_UNROLL
      for (int m = 0; m < 2; ++m) {
        multiply_one(k, m, b.word[0], b.word[1], sums[m]);
        multiply_one(k + 1, m, b.word[2], b.word[3], odd[m]);
      }
    }
    PENSTOCK_UNROLL
    for (int m = 0; m < 2; ++m) {
      PENSTOCK_UNROLL
      for (int i = 0; i < 4; ++i) sums[m][i] += odd[m][i];
    }
  }

 private:
  PENSTOCK_DEVICE device::Quad* rest(int k, int m) const {
    return rest_ + ((k - S::kForwardKept) * 2 + m) * S::kThreads + device::thread();
  }

  PENSTOCK_DEVICE void multiply_one(int k, int m, uint32_t b0, uint32_t b1, float (&d)[4]) const {
    device::multiply_add(d, k < S::kForwardKept ? kept_[k % S::kForwardKept][m] : *rest(k, m), b0, b1);
  }

  static_assert(S::kForwardK % 2 == 0);
  device::Quad kept_[S::kForwardKept][2];
  device::Quad* rest_;  // the k-tiles that registers have no room for, in shared memory, thread by thread
};

struct alignas(16) GateSums {
  float gate[4];
};

template <class S>
PENSTOCK_DEVICE void run_forward(const ForwardProblem& problem) {
  using Memory = ForwardMemory<S>;
  constexpr int H = S::kHidden;
  char* shared = device::shared();
  const int thread = device::thread(), warp = thread / 32, lane = thread % 32;
  const int unit_group = warp / S::kParts, part = warp % S::kParts;
  const int rank = device::block() % S::kBlocks, group = device::block() / S::kBlocks;
  const int first_unit = rank * S::kUnits + 8 * unit_group;
  // as products leave them: this thread's unit, and the first of its two lanes of every tile that its warp owns
  const int unit = first_unit + lane / 4, column = lane % 4 * 2;

  StateExchange<S> exchange(problem.exchange + group * S::kForwardWords, shared + Memory::kStates);
  ForwardWeights<S> weights(shared + Memory::kWeights);
  auto* inputs = reinterpret_cast<device::Pair*>(shared + Memory::kInputs);
  auto* partial_sums = reinterpret_cast<GateSums*>(shared + Memory::kSums);

  uint32_t message = 0;
  int loaded = -1;
  float biases[4] = {};
  for (int turn = group; turn < problem.tiles * problem.directions; turn += problem.groups) {
    const int direction = turn % problem.directions, tile = turn / problem.directions;
    if (direction != loaded) {
      weights.load(problem.w_hh + int64_t(direction) * 4 * H * H, first_unit, part * (H / S::kParts));
      load_biases(problem.biases == nullptr ? nullptr : problem.biases + direction * 4 * H + 4 * unit, biases);
      loaded = direction;
    }
    LaneRing<S> ring(shared + Memory::kRings, problem.ranked, problem.batch, tile * S::kLanes,
                     problem.tiles * S::kLanes, direction == 0);

    // offsets, in elements, of this thread's unit
    const auto gates_at = [&](int32_t row) {
      return (int64_t(row) * problem.directions + direction) * 4 * H + 4 * unit;
    };
    const auto token_at = [&](int32_t row) { return (int64_t(row) * problem.directions + direction) * H + unit; };
    const auto state_at = [&](int32_t sequence) { return (int64_t(direction) * problem.batch + sequence) * H + unit; };
    const auto input = [&](uint32_t step, int owned, int i) {
      const int stage = step % (S::kAhead + 1);
      return inputs + ((stage * S::kOwned + owned) * 2 + i) * S::kThreads + thread;
    };
    // The row of the projections that lane `lane` of the tile reads. It is looked up a step before the copy is asked
    // for, so that no step waits for an id.
    const auto look_up = [&](uint32_t step) {
      const int32_t row = lane < S::kLanes ? ring.at(step, lane).row : -1;
      return row < 0 || problem.ids == nullptr ? row : problem.ids[row];
    };
    int32_t upcoming = look_up(0);
    const auto fetch = [&](uint32_t step) {
      PENSTOCK_UNROLL
      for (int owned = 0; owned < S::kOwned; ++owned) {
        const int n = owned * S::kParts + part;
        if (n >= S::kTiles) continue;
        PENSTOCK_UNROLL
        for (int i = 0; i < 2; ++i) {
          const auto row = int32_t(device::shuffle(uint32_t(upcoming), 8 * n + column + i));
          device::copy_async<8>(input(step, owned, i), problem.projections + gates_at(row < 0 ? 0 : row), row >= 0);
        }
      }
      device::close_copies();
      upcoming = look_up(step + 1);
      device::sync_warp();
    };
    const auto initial_state = [&](int32_t sequence) -> uint32_t {
      return sequence < 0 || problem.h0 == nullptr ? 0 : problem.h0[state_at(sequence)];
    };
    const auto initial_cell = [&](int32_t sequence) {
      return sequence < 0 || problem.c0 == nullptr ? 0.0f : problem.c0[state_at(sequence)];
    };

    PENSTOCK_UNROLL
    for (int step = 0; step < S::kAhead; ++step) fetch(step);

    RunningPools<S> pools(shared + Memory::kPools, problem.shares != nullptr);
    float c[S::kOwned][2];
    PENSTOCK_UNROLL
    for (int owned = 0; owned < S::kOwned; ++owned) {
      const int n = owned * S::kParts + part;
      if (n >= S::kTiles) continue;
      uint32_t h[2];
      PENSTOCK_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int32_t sequence = ring.at(0, 8 * n + column + i).sequence;
        pools.start(owned, i);
        c[owned][i] = initial_cell(sequence);
        h[i] = initial_state(sequence);
      }
      exchange.post(message, n, first_unit, device::transpose(h[1] << 16 | h[0]));
    }

    bool more = true;
    for (uint32_t step = 0; more; ++step) {
      ring.advance(step);
      more = ring.any(step + 1);
      fetch(step + S::kAhead);
      const uint16_t* states = exchange.receive(message);
      ++message;

      if constexpr (S::kParts > 1) {
        PENSTOCK_ROLL
        for (int n = 0; n < S::kTiles; ++n) {
          float sums[2][4] = {};
          weights.multiply(states + 8 * n * S::kStateStride + part * (H / S::kParts), sums);
          PENSTOCK_UNROLL
          for (int i = 0; i < 2; ++i) {
            partial_sums[((warp * S::kTiles + n) * 2 + i) * 32 + lane] = {
                {sums[0][i], sums[0][2 + i], sums[1][i], sums[1][2 + i]}};
          }
        }
        device::sync_threads(1 + unit_group, 32 * S::kParts);
      }
      device::wait_copies<S::kAhead>();

      PENSTOCK_UNROLL
      for (int owned = 0; owned < S::kOwned; ++owned) {
        const int n = owned * S::kParts + part;
        if (n >= S::kTiles) continue;
        float pre[2][4];
        if constexpr (S::kParts > 1) {
          PENSTOCK_UNROLL
          for (int i = 0; i < 2; ++i) {
            PENSTOCK_UNROLL
            for (int gate = 0; gate < 4; ++gate) pre[i][gate] = 0.0f;
            PENSTOCK_UNROLL
            for (int p = 0; p < S::kParts; ++p) {
              const int from = ((unit_group * S::kParts + p) * S::kTiles + n) * 2 + i;
              const GateSums sums = partial_sums[from * 32 + lane];
              PENSTOCK_UNROLL
              for (int gate = 0; gate < 4; ++gate) pre[i][gate] += sums.gate[gate];
            }
          }
        } else {
          float sums[2][4] = {};
          weights.multiply(states + 8 * n * S::kStateStride, sums);
          PENSTOCK_UNROLL
          for (int i = 0; i < 2; ++i) {
            PENSTOCK_UNROLL
            for (int gate = 0; gate < 4; ++gate) pre[i][gate] = sums[gate / 2][gate % 2 * 2 + i];
          }
        }

        float h[2], cell[2];
        LaneStep now[2], next[2];
        PENSTOCK_UNROLL
        for (int i = 0; i < 2; ++i) {
          const device::Pair projected = *input(step, owned, i);
          pre[i][0] += low_half(projected.word[0]);
          pre[i][1] += high_half(projected.word[0]);
          pre[i][2] += low_half(projected.word[1]);
          pre[i][3] += high_half(projected.word[1]);
          now[i] = ring.at(step, 8 * n + column + i);
          next[i] = ring.at(step + 1, 8 * n + column + i);
          float biased[4];
          PENSTOCK_UNROLL
          for (int gate = 0; gate < 4; ++gate) biased[gate] = pre[i][gate] + biases[gate];
          h[i] = cell_forward(biased, c[owned][i]);
          cell[i] = c[owned][i];
        }
        const uint32_t of_step = device::pack(h[0], h[1]);
        const uint32_t two_units = device::transpose(of_step);  // of lane i / 4
        uint32_t fed_back = of_step;
        PENSTOCK_UNROLL
        for (int i = 0; i < 2; ++i) {
          if (next[i].sequence == now[i].sequence) continue;
          if (now[i].sequence >= 0) {
            problem.h_n[state_at(now[i].sequence)] = uint16_t(i == 0 ? of_step : of_step >> 16);
            problem.c_n[state_at(now[i].sequence)] = cell[i];
          }
          c[owned][i] = initial_cell(next[i].sequence);
          const uint32_t first = initial_state(next[i].sequence);
          fed_back = i == 0 ? (fed_back & 0xffff0000u) | first : (fed_back & 0xffffu) | first << 16;
        }
        device::sync_warp();
        if (more) exchange.post(message, n, first_unit, device::transpose(fed_back));

        PENSTOCK_UNROLL
        for (int i = 0; i < 2; ++i) {
          if (now[i].row < 0) continue;
          if (problem.gates != nullptr) {
            *reinterpret_cast<device::Pair*>(problem.gates + gates_at(now[i].row)) = {
                {device::pack(pre[i][0], pre[i][1]), device::pack(pre[i][2], pre[i][3])}};
          }
          if (problem.cells != nullptr) problem.cells[token_at(now[i].row)] = cell[i];
          if (problem.pooled == nullptr) continue;
          const float rounded = i == 0 ? low_half(of_step) : high_half(of_step);  // as y holds it
          const int64_t at = token_at(now[i].sequence);  // pooled has a row to a sequence as y has to a token
          const bool is_maximum = pools.add(owned, i, rounded, direction == 0);
          if (is_maximum && problem.maximum != nullptr) problem.maximum[at] = now[i].row;
          if (next[i].sequence == now[i].sequence) continue;
          const float share = problem.shares != nullptr ? problem.shares[now[i].sequence] : 1.0f;
          problem.pooled[at] = uint16_t(device::pack(pools.value(owned, i) * share, 0.0f));
          pools.start(owned, i);
        }
        const int32_t row = ring.at(step, 8 * n + lane / 4).row;
        if (row >= 0 && problem.y != nullptr) {
          const int64_t at = (int64_t(row) * problem.directions + direction) * H + first_unit + column;
          *reinterpret_cast<uint32_t*>(problem.y + at) = two_units;
        }
        device::sync_warp();
      }
    }
  }
  exchange.finish();
}

}  // namespace penstock::lstm::cuda
