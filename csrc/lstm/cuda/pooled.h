// Pooling over the tokens of each sequence while a lane runs them.
#pragma once

#include "lstm/cuda/device.h"
#include "lstm/cuda/shape.h"

namespace penstock::lstm::cuda {

// The maxima or sums of h so far, of a thread's cells: beside the cell states in registers, or in shared memory where
// W_hh has taken all registers.
template <class S>
class RunningPools {
 public:
  PENSTOCK_DEVICE RunningPools(char* shared, bool sums)
      : rest_(reinterpret_cast<float*>(shared) + device::thread()), sums_(sums) {}

  PENSTOCK_DEVICE void start(int owned, int i) {
    of(owned, i) = sums_ ? 0.0f : device::bits_to_float(0xff800000u);  // minus infinity
  }

  // Whether h is the maximum now, as torch.max sees it: the first of equals, NaN above everything. When tokens come
  // from the last on, the first of equals is met last.
  PENSTOCK_DEVICE bool add(int owned, int i, float h, bool from_first) {
    float& value = of(owned, i);
    const float before = value;
    const bool higher = from_first ? h > before || (h != h && before == before) : h >= before || h != h;
    value = sums_ ? before + h : higher ? h : before;
    return higher && !sums_;
  }

  PENSTOCK_DEVICE float value(int owned, int i) { return of(owned, i); }

 private:
  PENSTOCK_DEVICE float& of(int owned, int i) {
    if constexpr (S::kPoolsKept) {
      return kept_[owned][i];
    } else {
      return rest_[(owned * 2 + i) * S::kThreads];
    }
  }

  float kept_[S::kOwned][2];
  float* rest_;
  bool sums_;
};

}  // namespace penstock::lstm::cuda
