// Kernels from shapes; included by the files that instantiate them.
#pragma once

#include "lstm/cuda/backward.h"
#include "lstm/cuda/forward.h"
#include "lstm/cuda/kernels.h"

namespace penstock::lstm::cuda {

constexpr int64_t kMostSharedBytes = 227 * 1024;  // of a block on sm_90; sm_80 has 163 KiB

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) lstm_forward(const __grid_constant__ ForwardProblem problem) {
  run_forward<S>(problem);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) lstm_backward(const __grid_constant__ BackwardProblem problem) {
  run_backward<S>(problem);
}

template <class S>
Kernel forward_kernel() {
  if constexpr (ForwardMemory<S>::kBytes <= kMostSharedBytes) {
    const auto function = reinterpret_cast<const void*>(lstm_forward<S>);
    return {function, ForwardMemory<S>::kBytes, S::kForwardWords};
  } else {
    return {};
  }
}

template <class S>
Kernel backward_kernel() {
  if constexpr (BackwardMemory<S>::kBytes <= kMostSharedBytes) {
    const auto function = reinterpret_cast<const void*>(lstm_backward<S>);
    return {function, BackwardMemory<S>::kBytes, S::kBackwardWords};
  } else {
    return {};
  }
}

template <int kHidden, int kBlocks, int kParts, bool kCluster>
Tier make_tier(const char* name, StepTime forward, StepTime backward) {
  using Narrow = Shape<kHidden, kBlocks, kParts, 8, kCluster>;
  using Middle = Shape<kHidden, kBlocks, kParts, 16, kCluster>;
  using Wide = Shape<kHidden, kBlocks, kParts, 32, kCluster>;
  return {name,
          kHidden,
          kBlocks,
          Narrow::kThreads,
          kCluster,
          {forward, {forward_kernel<Narrow>(), forward_kernel<Middle>(), forward_kernel<Wide>()}},
          {backward, {backward_kernel<Narrow>(), backward_kernel<Middle>(), backward_kernel<Wide>()}}};
}

}  // namespace penstock::lstm::cuda
