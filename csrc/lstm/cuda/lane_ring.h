// What the lanes of a tile do at the steps around the present one: a ring in shared memory for each warp, filled ahead
// of use by the warp itself, so that no warp waits for another.
#pragma once

#include "lstm/cuda/device.h"
#include "lstm/cuda/shape.h"

namespace penstock::lstm::cuda {

template <class S>
class LaneRing {
 public:
  // Filled for steps 0 to kAhead.
  PENSTOCK_DEVICE LaneRing(char* shared, const Span* ranked, int batch, int first_lane, int lanes, bool from_first_row)
      : ring_(reinterpret_cast<LaneStep*>(shared) + device::thread() / 32 * S::kRing * S::kLanes),
        lane_(device::thread() % 32),
        cursor_(ranked, lane_ < S::kLanes ? batch : 0, first_lane + lane_, lanes, from_first_row) {
    device::sync_warp();
    if (lane_ < S::kLanes) {
      ring_[(S::kRing - 1) * S::kLanes + lane_] = {-1, -1};
      for (int step = 0; step <= S::kAhead; ++step) ring_[step * S::kLanes + lane_] = cursor_.advance();
    }
    device::sync_warp();
  }

  // To be called at the start of a step: adds the step kAhead + 1 later.
  PENSTOCK_DEVICE void advance(uint32_t step) {
    device::sync_warp();
    if (lane_ < S::kLanes) ring_[slot(step + S::kAhead + 1) + lane_] = cursor_.advance();
    device::sync_warp();
  }

  // From one step before the present one to kAhead + 1 steps after it.
  PENSTOCK_DEVICE LaneStep at(uint32_t step, int lane) const { return ring_[slot(step) + lane]; }

  // Whether any lane runs at this step: the same answer in every warp of the group.
  PENSTOCK_DEVICE bool any(uint32_t step) const {
    return device::any(lane_ < S::kLanes && ring_[slot(step) + lane_].row >= 0);
  }

 private:
  PENSTOCK_DEVICE int slot(uint32_t step) const { return int(step % S::kRing) * S::kLanes; }

  LaneStep* ring_;
  int lane_;
  LaneCursor cursor_;
};

}  // namespace penstock::lstm::cuda
