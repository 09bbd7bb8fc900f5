// The backward recurrence of a group of blocks: per step the cells' gradients, one product W_hh^T dgates over the
// block's own gates, and one exchange in which every block receives the others' contributions to its units of dh.
#pragma once

#include "lstm/cuda/cell.h"
#include "lstm/cuda/exchange.h"
#include "lstm/cuda/lane_ring.h"
#include "lstm/cuda/problem.h"

namespace penstock::lstm::cuda {

// The A operands of a warp: its share of the H rows over the block's 4U gates.
template <class S>
class BackwardWeights {
 public:
  PENSTOCK_DEVICE explicit BackwardWeights(char* shared) : rest_(reinterpret_cast<device::Quad*>(shared)) {}

  PENSTOCK_DEVICE void load(const uint16_t* transposed, int first_row, int first_gate) {
    const int lane = device::thread() % 32;
    const uint16_t* corner = transposed + int64_t(first_row + lane / 4) * 4 * S::kHidden + first_gate + lane % 4 * 2;
    PENSTOCK_UNROLL
    for (int k = 0; k < S::kBackwardK; ++k) {
      PENSTOCK_UNROLL
      for (int m = 0; m < S::kBackwardM; ++m) {
        PENSTOCK_UNROLL
        for (int word = 0; word < 4; ++word) {
          const int row = 16 * m + word % 2 * 8, column = 16 * k + word / 2 * 8;
          const uint16_t* from = corner + int64_t(row) * 4 * S::kHidden + column;
          const uint32_t value = *reinterpret_cast<const uint32_t*>(from);
          (k < S::kBackwardKept ? kept_[k % S::kBackwardKept][m] : *rest(k, m)).word[word] = value;
        }
      }
    }
  }

  // The warp's rows for eight lanes of gate gradients. With few m-tiles, k-tiles of odd number are summed apart.
  PENSTOCK_DEVICE void multiply(const uint16_t* dgates, float (&sums)[S::kBackwardM][4]) const {
    constexpr int kChains = S::kBackwardM < 4 ? 2 : 1;
    const int lane = device::thread() % 32;
    const uint16_t* row = dgates + lane % 8 * S::kGateStride + lane / 8 * 8;
    float apart[kChains][S::kBackwardM][4] = {};
    PENSTOCK_UNROLL
    for (int k = 0; k < S::kBackwardK; k += 2) {
      device::Quad b;
      device::load_matrices(b, row + 16 * k);
      PENSTOCK_UNROLL
      for (int m = 0; m < S::kBackwardM; ++m) {
        multiply_one(k, m, b.word[0], b.word[1], apart[0][m]);
        multiply_one(k + 1, m, b.word[2], b.word[3], apart[kChains - 1][m]);
      }
    }
    PENSTOCK_UNROLL
    for (int m = 0; m < S::kBackwardM; ++m) {
      PENSTOCK_UNROLL
      for (int i = 0; i < 4; ++i) sums[m][i] = kChains == 2 ? apart[0][m][i] + apart[1][m][i] : apart[0][m][i];
    }
  }

 private:
  PENSTOCK_DEVICE device::Quad* rest(int k, int m) const {
    return rest_ + ((k - S::kBackwardKept) * S::kBackwardM + m) * S::kThreads + device::thread();
  }

  PENSTOCK_DEVICE void multiply_one(int k, int m, uint32_t b0, uint32_t b1, float (&d)[4]) const {
    device::multiply_add(d, k < S::kBackwardKept ? kept_[k % S::kBackwardKept][m] : *rest(k, m), b0, b1);
  }

  static_assert(S::kBackwardK % 2 == 0);
  device::Quad kept_[S::kBackwardKept][S::kBackwardM];
  device::Quad* rest_;  // the k-tiles that registers have no room for, in shared memory, thread by thread
};

template <class S>
PENSTOCK_DEVICE void run_backward(const BackwardProblem& problem) {
  using Memory = BackwardMemory<S>;
  constexpr int H = S::kHidden;
  char* shared = device::shared();
  const int thread = device::thread(), warp = thread / 32, lane = thread % 32;
  const int unit_group = warp / S::kParts, part = warp % S::kParts;
  const int rank = device::block() % S::kBlocks, group = device::block() / S::kBlocks;
  // the cells of a thread are those of the forward kernel: one unit, two lanes of every tile that its warp owns
  const int unit_in_block = 8 * unit_group + lane / 4, unit = rank * S::kUnits + unit_in_block;
  const int column = lane % 4 * 2;
  const int first_row = warp * S::kBackwardM * 16;

  PartialExchange<S> exchange(problem.exchange + group * S::kBackwardWords, shared + Memory::kPartials, rank);
  BackwardWeights<S> weights(shared + Memory::kWeights);
  auto* block_gates = reinterpret_cast<uint16_t*>(shared + Memory::kGates);
  constexpr int kCells = (S::kAhead + 1) * S::kOwned * 2 * S::kThreads;
  auto* gates_in = reinterpret_cast<device::Pair*>(shared + Memory::kInputs);
  auto* cells_in = reinterpret_cast<float*>(gates_in + kCells);
  auto* cells_before_in = cells_in + kCells;
  auto* dy_in = reinterpret_cast<uint32_t*>(cells_before_in + kCells);

  uint32_t message = 0, turn_step = 0;
  int loaded = -1;
  float biases[4] = {};
  for (int turn = group; turn < problem.tiles * problem.directions; turn += problem.groups) {
    const int direction = turn % problem.directions, tile = turn / problem.directions;
    if (direction != loaded) {
      weights.load(problem.transposed + int64_t(direction) * 4 * H * H, first_row, rank * 4 * S::kUnits);
      load_biases(problem.biases == nullptr ? nullptr : problem.biases + direction * 4 * H + 4 * unit, biases);
      loaded = direction;
    }
    LaneRing<S> ring(shared + Memory::kRings, problem.ranked, problem.batch, tile * S::kLanes,
                     problem.tiles * S::kLanes, direction == 1);

    const auto gates_at = [&](int32_t row) {
      return (int64_t(row) * problem.directions + direction) * 4 * H + 4 * unit;
    };
    const auto token_at = [&](int32_t row) { return (int64_t(row) * problem.directions + direction) * H + unit; };
    const auto state_at = [&](int32_t sequence) { return (int64_t(direction) * problem.batch + sequence) * H + unit; };
    const auto place = [&](uint32_t step, int owned, int i) {
      const int stage = step % (S::kAhead + 1);
      return ((stage * S::kOwned + owned) * 2 + i) * S::kThreads + thread;
    };
    const auto fetch = [&](uint32_t step) {
      PENSTOCK_UNROLL
      for (int owned = 0; owned < S::kOwned; ++owned) {
        const int n = owned * S::kParts + part;
        if (n >= S::kTiles) continue;
        PENSTOCK_UNROLL
        for (int i = 0; i < 2; ++i) {
          const LaneStep now = ring.at(step, 8 * n + column + i), next = ring.at(step + 1, 8 * n + column + i);
          const bool runs = now.row >= 0;
          const int64_t token = runs ? token_at(now.row) : 0;
          const int at = place(step, owned, i);
          device::copy_async<8>(gates_in + at, problem.gates + (runs ? gates_at(now.row) : 0), runs);
          device::copy_async<4>(cells_in + at, problem.cells + token, runs);
          // in time, the step after this one came before it
          const bool first = next.sequence != now.sequence;
          const float* before = !runs                   ? problem.cells
                                : !first                ? problem.cells + token_at(next.row)
                                : problem.c0 != nullptr ? problem.c0 + state_at(now.sequence)
                                                        : problem.cells;
          device::copy_async<4>(cells_before_in + at, before, runs && (!first || problem.c0 != nullptr));
          // four bytes at least: this unit's and its neighbour's
          const bool has_dy = problem.dy != nullptr;
          const int64_t of_y = problem.pooled ? token_at(now.sequence) : token;
          const void* dy = has_dy ? static_cast<const void*>(problem.dy + (runs ? of_y - unit % 2 : 0)) : problem.cells;
          device::copy_async<4>(dy_in + at, dy, runs && has_dy);
        }
      }
      device::close_copies();
    };
    const auto final_grad = [&](const float* grads, int32_t sequence) {
      return sequence < 0 || grads == nullptr ? 0.0f : grads[state_at(sequence)];
    };

    PENSTOCK_UNROLL
    for (int step = 0; step < S::kAhead; ++step) fetch(step);

    float dc[S::kOwned][2];
    PENSTOCK_UNROLL
    for (int owned = 0; owned < S::kOwned; ++owned) {
      const int n = owned * S::kParts + part;
      if (n >= S::kTiles) continue;
      PENSTOCK_UNROLL
      for (int i = 0; i < 2; ++i) dc[owned][i] = final_grad(problem.dc_n, ring.at(0, 8 * n + column + i).sequence);
    }

    bool more = true;
    for (uint32_t step = 0; more; ++step, ++turn_step) {
      ring.advance(step);
      more = ring.any(step + 1);
      fetch(step + S::kAhead);

      // a sequence's last token in time takes dh from h_n, the others from the step before this one
      bool fresh[S::kOwned][2], has_dy[S::kOwned][2];
      float dh[S::kOwned][2];
      PENSTOCK_UNROLL
      for (int owned = 0; owned < S::kOwned; ++owned) {
        const int n = owned * S::kParts + part;
        if (n >= S::kTiles) continue;
        PENSTOCK_UNROLL
        for (int i = 0; i < 2; ++i) {
          const auto [row, sequence] = ring.at(step, 8 * n + column + i);
          has_dy[owned][i] = row < 0 || problem.maximum == nullptr || problem.maximum[token_at(sequence)] == row;
          fresh[owned][i] = ring.at(step - 1, 8 * n + column + i).sequence != sequence;
          dh[owned][i] = fresh[owned][i] ? final_grad(problem.dh_n, sequence) : 0.0f;
        }
      }
      device::wait_copies<S::kAhead>();
      if (step > 0 && part < S::kTiles) exchange.wait(message);

      uint16_t* dgates = block_gates + turn_step % 2 * S::kLanes * S::kGateStride;
      PENSTOCK_UNROLL
      for (int owned = 0; owned < S::kOwned; ++owned) {
        const int n = owned * S::kParts + part;
        if (n >= S::kTiles) continue;
        float carried[2] = {};
        if (step > 0) exchange.receive(message, unit_in_block, 8 * n + column, carried);
        PENSTOCK_UNROLL
        for (int i = 0; i < 2; ++i) {
          const LaneStep now = ring.at(step, 8 * n + column + i), next = ring.at(step + 1, 8 * n + column + i);
          const int at = place(step, owned, i);
          const device::Pair saved = gates_in[at];
          const uint32_t dy = has_dy[owned][i] ? dy_in[at] : 0;
          float gates[4] = {low_half(saved.word[0]) + biases[0], high_half(saved.word[0]) + biases[1],
                            low_half(saved.word[1]) + biases[2], high_half(saved.word[1]) + biases[3]};
          const float dh_here =
              (fresh[owned][i] ? dh[owned][i] : carried[i]) + (unit % 2 ? high_half(dy) : low_half(dy));
          cell_backward(gates, cells_in[at], cells_before_in[at], dh_here, dc[owned][i]);
          device::Pair found = {{0, 0}};
          if (now.row >= 0) {
            found = {{device::pack(gates[0], gates[1]), device::pack(gates[2], gates[3])}};
            *reinterpret_cast<device::Pair*>(problem.dgates + gates_at(now.row)) = found;
          }
          *reinterpret_cast<device::Pair*>(dgates + (8 * n + column + i) * S::kGateStride + 4 * unit_in_block) = found;
          if (next.sequence != now.sequence) {
            if (now.sequence >= 0 && problem.dc0 != nullptr) problem.dc0[state_at(now.sequence)] = dc[owned][i];
            dc[owned][i] = final_grad(problem.dc_n, next.sequence);
          }
        }
      }
      if (step > 0) ++message;
      device::sync_warp();
      device::sync_block();
      if (more) {
        PENSTOCK_ROLL
        for (int n = 0; n < S::kTiles; ++n) {
          float sums[S::kBackwardM][4];
          weights.multiply(dgates + 8 * n * S::kGateStride, sums);
          PENSTOCK_UNROLL
          for (int m = 0; m < S::kBackwardM; ++m) {
            const int row = first_row + 16 * m;  // sixteen rows never part between blocks
            PENSTOCK_UNROLL
            for (int half = 0; half < 2; ++half) {
              exchange.send(message, row / S::kUnits, row % S::kUnits + 8 * half + lane / 4, 8 * n + column,
                            sums[m][2 * half], sums[m][2 * half + 1]);
            }
          }
        }
      }
    }
  }
  exchange.finish();
}

}  // namespace penstock::lstm::cuda
