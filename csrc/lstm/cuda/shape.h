// How one direction's W_hh is shared out among thread blocks, warps and registers.
//
// A group of C blocks holds W_hh: a block owns U = H / C units with their four gates, in registers as the A operands of
// m16n8k16 products. Forward, a warp owns eight units (32 gate rows) over one of `parts` parts of K = H; the two 16-row
// tiles hold gates i and f, then g and o, so that a thread receives the four gates of one unit for two lanes. Backward,
// the same slice is multiplied transposed: a warp owns a share of the H rows over K = 4U.
#pragma once

#include <cstdint>

#include "schedule.h"

namespace penstock::lstm::cuda {

constexpr int kMostFragments = 32;  // A operands of 16 x 16 that a thread's registers keep: 128 registers

constexpr int64_t align128(int64_t bytes) { return (bytes + 127) / 128 * 128; }

template <int kHidden_, int kBlocks_, int kParts_, int kLanes_, bool kCluster_>
struct Shape {
  static constexpr int kHidden = kHidden_, kBlocks = kBlocks_, kParts = kParts_, kLanes = kLanes_;
  static constexpr bool kCluster = kCluster_;  // the blocks of a group form a cluster; else they meet in global memory
  static constexpr int kUnits = kHidden / kBlocks;
  static constexpr int kUnitGroups = kUnits / 8;
  static constexpr int kWarps = kUnitGroups * kParts;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTiles = kLanes / 8;                      // n-tiles of a product
  static constexpr int kOwned = (kTiles + kParts - 1) / kParts;  // n-tiles whose cells a warp computes, at most
  static_assert(kHidden % (kBlocks * 8) == 0 && kHidden % (kParts * 32) == 0 && kLanes % 8 == 0 && kLanes <= 32);

  // Steps between asking for a step's inputs and using them: the wider the tile, the longer its steps. The ring of lane
  // steps spans one step before to one step beyond that.
  static constexpr int kAhead = 32 / kLanes;
  static constexpr int kRing = kAhead == 1 ? 4 : 8;

  // forward: k-tiles of a warp, the first of them in registers
  static constexpr int kForwardK = kHidden / 16 / kParts;
  static constexpr int kForwardKept = kForwardK < kMostFragments / 2 ? kForwardK : kMostFragments / 2;
  static constexpr bool kPoolsKept = kForwardK == kForwardKept;  // running pools in registers too
  // backward: m-tiles of a warp, k-tiles, the first of them in registers
  static constexpr int kBackwardM = kHidden / 16 / kWarps;
  static constexpr int kBackwardK = kUnits / 4;
  static constexpr int kBackwardKept =
      kBackwardK < kMostFragments / kBackwardM ? kBackwardK : kMostFragments / kBackwardM;
  static_assert(kHidden % (16 * kWarps) == 0 && kUnits % 16 == 0);

  // words that Problem::exchange must hold for one group
  static constexpr int64_t kForwardWords = kCluster ? 0 : int64_t{2} * kLanes * kHidden / 2;
  static constexpr int64_t kBackwardWords = kCluster ? 0 : int64_t{2} * kBlocks * kHidden * kLanes;

  // rows of shared memory, padded by 16 bytes modulo 128 so that eight of them fall into different banks
  static constexpr int kStateStride = kHidden + 8;                      // bf16, one lane's h
  static constexpr int kGateStride = 4 * kUnits + 8;                    // bf16, one lane's gate gradients
  static constexpr int kPartialStride = kLanes + (kLanes > 8 ? 8 : 0);  // float, one unit's partial sums
};

// Offsets into a block's shared memory, in bytes.
template <class S>
struct ForwardMemory {
  static constexpr int64_t kStates = 128;  // after the two barriers: bf16 (2, N, kStateStride)
  static constexpr int64_t kRings = kStates + align128(int64_t{2} * S::kLanes * S::kStateStride * 2);
  static constexpr int64_t kInputs = kRings + align128(int64_t{S::kWarps} * S::kRing * S::kLanes * 8);
  static constexpr int64_t kSums = kInputs + int64_t{S::kAhead + 1} * S::kOwned * 2 * S::kThreads * 8;
  static constexpr int64_t kWeights = kSums + (S::kParts > 1 ? int64_t{S::kWarps} * S::kTiles * 2 * 32 * 16 : 0);
  static constexpr int64_t kPools = kWeights + int64_t{S::kForwardK - S::kForwardKept} * 2 * S::kThreads * 16;
  static constexpr int64_t kBytes = kPools + (S::kPoolsKept ? 0 : int64_t{S::kOwned} * 2 * S::kThreads * 4);
};

template <class S>
struct BackwardMemory {
  static constexpr int64_t kGates = 128;  // after the two barriers: bf16 (2, N, kGateStride)
  static constexpr int64_t kRings = kGates + align128(int64_t{2} * S::kLanes * S::kGateStride * 2);
  static constexpr int64_t kInputs = kRings + align128(int64_t{S::kWarps} * S::kRing * S::kLanes * 8);
  static constexpr int64_t kInputBytes = 20;  // of a cell: gates 8, c 4, c before 4, dy 4
  static constexpr int64_t kPartials = kInputs + int64_t{S::kAhead + 1} * S::kOwned * 2 * S::kThreads * kInputBytes;
  static constexpr int64_t kWeights = kPartials + (S::kCluster ? int64_t{2} * S::kHidden * S::kPartialStride * 4 : 0);
  static constexpr int64_t kBytes =
      kWeights + int64_t{S::kBackwardK - S::kBackwardKept} * S::kBackwardM * S::kThreads * 16;
};

}  // namespace penstock::lstm::cuda
