// The kernels on the emulated machine, called from Python through ctypes (tests/emulated_cuda.py).
#include <array>
#include <map>
#include <stdexcept>
#include <string>

#include "emulator.h"
#include "lstm/cuda/backward.h"
#include "lstm/cuda/forward.h"

namespace {

using namespace penstock::lstm::cuda;

struct Kernel {
  int blocks, threads;
  int64_t forward_bytes, backward_bytes, forward_words, backward_words;
  void (*forward)(const ForwardProblem&);
  void (*backward)(const BackwardProblem&);
};

using Key = std::array<int, 5>;  // H, blocks, parts, lanes, cluster
std::map<Key, Kernel> kernels;

// What a shape needs; with kRun, its kernels too.
template <bool kRun, int kHidden, int kBlocks, int kParts, int kLanes, bool kCluster>
void add() {
  using S = Shape<kHidden, kBlocks, kParts, kLanes, kCluster>;
  Kernel kernel{
      kBlocks, S::kThreads, ForwardMemory<S>::kBytes, BackwardMemory<S>::kBytes, S::kForwardWords, S::kBackwardWords,
      nullptr, nullptr};
  if constexpr (kRun) {
    kernel.forward = run_forward<S>;
    kernel.backward = run_backward<S>;
  }
  kernels[{kHidden, kBlocks, kParts, kLanes, kCluster}] = kernel;
}

// The three widths of a shape; which of them are compiled costs seconds each.
template <bool kCluster, bool kRun8, bool kRun16, bool kRun32, int kHidden, int kBlocks, int kParts>
void add_widths() {
  add<kRun8, kHidden, kBlocks, kParts, 8, kCluster>();
  add<kRun16, kHidden, kBlocks, kParts, 16, kCluster>();
  add<kRun32, kHidden, kBlocks, kParts, 32, kCluster>();
}

const Kernel& kernel(const int* key) {
  if (kernels.empty()) {
#if !defined(PENSTOCK_TIERS)
    // as the tiers are, but small
    add_widths<true, true, true, true, 64, 4, 1>();
    add_widths<false, true, true, false, 64, 4, 1>();
    add_widths<true, true, false, true, 128, 4, 2>();
    add_widths<false, true, false, true, 128, 8, 4>();
#else
    add_widths<true, true, false, false, 128, 4, 1>();
    add_widths<true, true, false, false, 256, 4, 1>();
    add_widths<true, true, false, false, 384, 8, 1>();
    add_widths<true, false, true, false, 512, 16, 2>();
    add_widths<true, true, false, false, 512, 8, 1>();
    add_widths<false, false, false, false, 128, 4, 1>();
    add_widths<false, true, false, false, 256, 4, 1>();
    add_widths<false, true, false, false, 384, 12, 2>();
    add_widths<false, false, false, false, 512, 16, 2>();
    add_widths<false, true, false, false, 768, 48, 3>();
    add_widths<false, true, false, false, 1024, 64, 4>();
#endif
  }
  const auto found = kernels.find({key[0], key[1], key[2], key[3], key[4]});
  if (found == kernels.end()) throw std::runtime_error("no such shape");
  return found->second;
}

template <class AnyProblem>
void each_group(const Kernel& kernel, int64_t bytes, void (*recurrence)(const AnyProblem&), const AnyProblem& problem,
                uint64_t seed) {
  if (recurrence == nullptr) throw std::runtime_error("this shape is not compiled for the emulated machine");
  const auto run = [&] { recurrence(problem); };
  for (int group = 0; group < problem.groups; ++group) {
    penstock::emulator::run({kernel.blocks, kernel.threads, size_t(bytes), group * kernel.blocks, seed + group}, run);
  }
}

template <class Body>
const char* caught(Body body) {
  static std::string error;
  try {
    body();
    return nullptr;
  } catch (const std::exception& exception) {
    error = exception.what();
    return error.c_str();
  }
}

}  // namespace

extern "C" {

// Forward and backward: exchange words of a group, and bytes of shared memory of a block.
const char* needs(const int* key, int64_t* words, int64_t* shared_bytes) {
  return caught([&] {
    const Kernel& k = kernel(key);
    words[0] = k.forward_words;
    words[1] = k.backward_words;
    shared_bytes[0] = k.forward_bytes;
    shared_bytes[1] = k.backward_bytes;
  });
}

void rank_sequences(const int32_t* cu_seqlens, int32_t batch, int32_t tokens, Span* ranked) {
  for (int32_t b = 0; b < batch; ++b) {
    const Span span = span_of(cu_seqlens, b, tokens);
    int64_t rank = 0;
    for (int32_t other = 0; other < batch; ++other) {
      rank += comes_before(span_of(cu_seqlens, other, tokens), span);
    }
    ranked[rank] = span;
  }
}

// The rows of one lane, step by step; returns how many.
int32_t lane_rows(const Span* ranked, int32_t batch, int32_t lane, int32_t lanes, bool from_first_row, int32_t most,
                  int32_t* rows) {
  LaneCursor cursor(ranked, batch, lane, lanes, from_first_row);
  for (int32_t step = 0; step < most; ++step) {
    rows[step] = cursor.advance().row;
    if (rows[step] < 0) return step;
  }
  return most;
}

void split_into_lanes(int64_t batch, int64_t tokens, int64_t max_seqlen, int directions, const int* groups,
                      double fixed, double per_eight_lanes, int* lanes_and_tiles) {
  const int at_once[3] = {groups[0], groups[1], groups[2]};
  const Lanes lanes = choose_lanes(batch, tokens, max_seqlen, directions, at_once, {fixed, per_eight_lanes});
  lanes_and_tiles[0] = kLaneWidths[lanes.width];
  lanes_and_tiles[1] = lanes.tiles;
}

const char* forward(const int* key, const ForwardProblem* problem, uint64_t seed) {
  return caught([&] {
    const Kernel& k = kernel(key);
    each_group(k, k.forward_bytes, k.forward, *problem, seed);
  });
}

const char* backward(const int* key, const BackwardProblem* problem, uint64_t seed) {
  return caught([&] {
    const Kernel& k = kernel(key);
    each_group(k, k.backward_bytes, k.backward, *problem, seed);
  });
}
}
