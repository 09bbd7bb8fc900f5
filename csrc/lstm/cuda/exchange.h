// How the blocks of a group hand each other h (forward) and partial sums of dh (backward), once per step.
//
// The messages of a group are numbered from 0; number n lies in half n % 2 of a double buffer. In a cluster they are
// written straight into the readers' shared memory and counted by a barrier there. In a grid they pass through global
// memory in words that carry their number beside the value, so that a word proves by itself that it is new. No message
// n + 1 can overtake a reader of n - 1: README.md beside this file has the argument.
#pragma once

#include "lstm/cuda/device.h"
#include "lstm/cuda/shape.h"

namespace penstock::lstm::cuda {

// The largest divisor of a count up to 8: the number of loads under way at a time.
constexpr int batch_of(int count) {
  int batch = 8;
  while (count % batch) --batch;
  return batch;
}

// The two barriers at the start of shared memory, each armed for the next message of its half.
template <uint32_t kBytes>
class MessageBarriers {
 public:
  PENSTOCK_DEVICE MessageBarriers() : barriers_(reinterpret_cast<uint64_t*>(device::shared())) {
    if (device::thread() == 0) {
      for (int half = 0; half < 2; ++half) {
        device::init_barrier(barriers_ + half);
        device::expect_bytes(barriers_ + half, kBytes);
      }
    }
    device::sync_warp();
    device::sync_cluster();  // no message before its barrier is there
  }
  PENSTOCK_DEVICE uint64_t* of(uint32_t number) const { return barriers_ + number % 2; }

  // Every thread that reads the message waits for it; thread 0 is one of them.
  PENSTOCK_DEVICE void wait(uint32_t number) const {
    device::wait_barrier(of(number), number / 2 % 2);
    if (device::thread() == 0) device::expect_bytes(of(number), kBytes);
    device::sync_warp();
  }

 private:
  uint64_t* barriers_;
};

// Message n is h before step n of all lanes: every block receives all of it.
template <class S, bool kCluster = S::kCluster>
class StateExchange;

template <class S>
class StateExchange<S, true> {
 public:
  PENSTOCK_DEVICE StateExchange(uint64_t*, char* shared) : states_(reinterpret_cast<uint16_t*>(shared)) {}

  // Hands on what the warp computed for lanes 8 * tile ...: a thread holds, of lane i / 4, units 2 (i % 4) and the
  // next, of the eight from `first_unit`.
  PENSTOCK_DEVICE void post(uint32_t number, int tile, int first_unit, uint32_t pair) {
    const int lane = device::thread() % 32;
    device::Quad eight;
    PENSTOCK_UNROLL
    for (int i = 0; i < 4; ++i) eight.word[i] = device::shuffle(pair, (lane & ~3) | i);
    uint16_t* to = states_ + (number % 2 * S::kLanes + 8 * tile + lane / 4) * S::kStateStride + first_unit;
    PENSTOCK_UNROLL
    for (int rank = 0; rank < S::kBlocks; rank += 4) {
      device::store_remote(to, barriers_.of(number), rank + lane % 4, eight);
    }
  }

  // (N, kStateStride)
  PENSTOCK_DEVICE const uint16_t* receive(uint32_t number) {
    barriers_.wait(number);
    return states_ + number % 2 * S::kLanes * S::kStateStride;
  }

  // No block leaves while another may write to it.
  PENSTOCK_DEVICE void finish() {
    device::sync_warp();
    device::sync_cluster();
  }

 private:
  static_assert(S::kBlocks % 4 == 0);
  MessageBarriers<S::kLanes * S::kHidden * 2> barriers_;
  uint16_t* states_;
};

template <class S>
class StateExchange<S, false> {
 public:
  PENSTOCK_DEVICE StateExchange(uint64_t* words, char* shared)
      : words_(words), states_(reinterpret_cast<uint16_t*>(shared)) {}

  PENSTOCK_DEVICE void post(uint32_t number, int tile, int first_unit, uint32_t pair) {
    const int lane = device::thread() % 32;
    const int64_t row = number % 2 * S::kLanes + 8 * tile + lane / 4;
    device::publish(words_ + (row * S::kHidden + first_unit) / 2 + lane % 4, pair, number + 1);
  }

  PENSTOCK_DEVICE const uint16_t* receive(uint32_t number) {
    uint16_t* states = states_ + number % 2 * S::kLanes * S::kStateStride;
    const uint64_t* words = words_ + int64_t(number % 2) * S::kLanes * S::kHidden / 2;
    PENSTOCK_ROLL
    for (int first = 0; first < kPairs; first += kBatch) {
      device::Pair values[kBatch];
      const int at = first * S::kThreads + device::thread();
      device::await(words + 2 * at, 2 * S::kThreads, number + 1, values);
      PENSTOCK_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int pair = at + i * S::kThreads, lane = pair / (S::kHidden / 4), unit = pair % (S::kHidden / 4) * 4;
        *reinterpret_cast<device::Pair*>(states + lane * S::kStateStride + unit) = values[i];
      }
    }
    device::sync_warp();
    device::sync_block();
    return states;
  }

  PENSTOCK_DEVICE void finish() {}

 private:
  static constexpr int kPairs = S::kLanes * S::kHidden / 4 / S::kThreads;  // of words, that a thread reads
  static constexpr int kBatch = batch_of(kPairs);
  static_assert(S::kLanes * S::kHidden / 4 % S::kThreads == 0);
  uint64_t* words_;
  uint16_t* states_;
};

// Message n is, from every block to every block, the sender's contribution to the receiver's units of dh.
template <class S, bool kCluster = S::kCluster>
class PartialExchange;

template <class S>
class PartialExchange<S, true> {
 public:
  PENSTOCK_DEVICE PartialExchange(uint64_t*, char* shared, int rank)
      : partials_(reinterpret_cast<float*>(shared)), rank_(rank) {}

  // Contributions to `unit` of block `receiver` for two lanes, from `lane` on.
  PENSTOCK_DEVICE void send(uint32_t number, int receiver, int unit, int lane, float first, float second) {
    float* to = at(number, rank_, unit, lane);
    const device::Pair pair = {{device::float_to_bits(first), device::float_to_bits(second)}};
    device::store_remote(to, barriers_.of(number), receiver, pair);
  }

  PENSTOCK_DEVICE void wait(uint32_t number) { barriers_.wait(number); }

  // The sums, in the order of the senders, for `unit` of this block.
  PENSTOCK_DEVICE void receive(uint32_t number, int unit, int lane, float (&sums)[2]) {
    sums[0] = sums[1] = 0.0f;
    PENSTOCK_UNROLL
    for (int sender = 0; sender < S::kBlocks; ++sender) {
      const auto pair = *reinterpret_cast<const device::Pair*>(at(number, sender, unit, lane));
      sums[0] += device::bits_to_float(pair.word[0]);
      sums[1] += device::bits_to_float(pair.word[1]);
    }
  }

  // No block leaves while another may write to it.
  PENSTOCK_DEVICE void finish() {
    device::sync_warp();
    device::sync_cluster();
  }

 private:
  PENSTOCK_DEVICE float* at(uint32_t number, int sender, int unit, int lane) const {
    return partials_ + ((number % 2 * S::kBlocks + sender) * S::kUnits + unit) * S::kPartialStride + lane;
  }

  MessageBarriers<S::kHidden * S::kLanes * 4> barriers_;
  float* partials_;
  int rank_;
};

template <class S>
class PartialExchange<S, false> {
 public:
  PENSTOCK_DEVICE PartialExchange(uint64_t* words, char*, int rank) : words_(words), rank_(rank) {}

  PENSTOCK_DEVICE void send(uint32_t number, int receiver, int unit, int lane, float first, float second) {
    const device::Pair pair = {{device::float_to_bits(first), device::float_to_bits(second)}};
    device::publish(at(number, receiver, rank_, unit, lane), pair, number + 1);
  }

  PENSTOCK_DEVICE void wait(uint32_t) {}

  PENSTOCK_DEVICE void receive(uint32_t number, int unit, int lane, float (&sums)[2]) {
    sums[0] = sums[1] = 0.0f;
    PENSTOCK_UNROLL
    for (int first = 0; first < S::kBlocks; first += kBatch) {
      device::Pair values[kBatch];
      device::await(at(number, rank_, first, unit, lane), S::kUnits * S::kLanes, number + 1, values);
      PENSTOCK_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        sums[0] += device::bits_to_float(values[i].word[0]);
        sums[1] += device::bits_to_float(values[i].word[1]);
      }
    }
  }

  PENSTOCK_DEVICE void finish() {}

 private:
  PENSTOCK_DEVICE uint64_t* at(uint32_t number, int receiver, int sender, int unit, int lane) const {
    return words_ +
           (((int64_t(number % 2) * S::kBlocks + receiver) * S::kBlocks + sender) * S::kUnits + unit) * S::kLanes +
           lane;
  }

  static constexpr int kBatch = batch_of(S::kBlocks);  // senders at a time
  uint64_t* words_;
  int rank_;
};

}  // namespace penstock::lstm::cuda
