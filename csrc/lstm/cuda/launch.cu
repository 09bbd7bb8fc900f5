#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "lstm/cuda/launch.h"

namespace penstock::lstm::cuda {
namespace {

// In the order of preference.
const Tier* const kTiers[] = {
#if !defined(PENSTOCK_WITHOUT_CLUSTERS)
    &kCluster128, &kCluster256, &kCluster384, &kCluster512, &kCluster512Of8,
#endif
    &kGrid128,    &kGrid256,    &kGrid384,    &kGrid512,    &kGrid768,       &kGrid1024};

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not find it
  throw std::runtime_error(std::string("cuda LSTM: ") + what + ": " + cudaGetErrorString(status));
}

struct Config {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};

  Config(const Tier& tier, const Kernel& kernel, int groups, cudaStream_t stream) {
    config.gridDim = dim3(groups * tier.blocks);
    config.blockDim = dim3(tier.threads);
    config.dynamicSmemBytes = size_t(kernel.shared_bytes);
    config.stream = stream;
    if (tier.cluster) {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {unsigned(tier.blocks), 1, 1};
    } else {
      attribute.id = cudaLaunchAttributeCooperative;  // refused unless all blocks run at once
      attribute.val.cooperative = 1;
    }
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  Config(const Config&) = delete;
};

// How many groups of a kernel run at once on the current device, 0 if none can.
int groups_at_once(const Tier& tier, const Kernel& kernel, const cudaDeviceProp& device) {
  if (kernel.function == nullptr || kernel.shared_bytes > int64_t(device.sharedMemPerBlockOptin)) return 0;
  if (tier.cluster && (device.major != 9 || device.minor != 0)) return 0;
  int groups = 0;
  const auto found = [&]() -> cudaError_t {
    cudaError_t status =
        cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kernel.shared_bytes));
    if (status != cudaSuccess) return status;
    if (!tier.cluster) {
      int blocks = 0;
      status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel.function, tier.threads,
                                                             size_t(kernel.shared_bytes));
      groups = blocks * device.multiProcessorCount / tier.blocks;
      return status;
    }
    if (tier.blocks > 8) {
      status = cudaFuncSetAttribute(kernel.function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      if (status != cudaSuccess) return status;
    }
    const Config launch(tier, kernel, 1, nullptr);
    return cudaOccupancyMaxActiveClusters(&groups, kernel.function, &launch.config);
  }();
  if (found == cudaSuccess) return groups;
  cudaGetLastError();
  return 0;
}

// What of a tier runs on a device.
struct Residency {
  int forward[3], backward[3];
  static bool some(const int (&groups)[3]) { return groups[0] || groups[1] || groups[2]; }
  bool usable() const { return some(forward) && some(backward); }
};

const Residency& residency(const Tier& tier) {
  static std::mutex mutex;
  static std::map<std::pair<int, const Tier*>, Residency> known;
  int device = 0;
  check(cudaGetDevice(&device), "no current device");
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace({device, &tier});
  if (is_new) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "the device's properties");
    for (int i = 0; i < 3; ++i) {
      entry->second.forward[i] = groups_at_once(tier, tier.forward.kernels[i], properties);
      entry->second.backward[i] = groups_at_once(tier, tier.backward.kernels[i], properties);
    }
  }
  return entry->second;
}

const Tier* tier_for(int hidden_size) {
  for (const Tier* tier : kTiers) {
    if (tier->hidden_size == hidden_size && residency(*tier).usable()) return tier;
  }
  return nullptr;
}

// A warp for each sequence counts those that come before it.
__global__ void rank_kernel(const int32_t* cu_seqlens, int32_t batch, int32_t tokens, Span* ranked) {
  const int64_t sequence = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (sequence >= batch) return;
  const Span span = span_of(cu_seqlens, int32_t(sequence), tokens);
  uint32_t rank = 0;
  for (int32_t other = threadIdx.x % 32; other < batch; other += 32) {
    rank += comes_before(span_of(cu_seqlens, other, tokens), span);
  }
  rank = __reduce_add_sync(~0u, rank);
  if (threadIdx.x % 32 == 0) ranked[rank] = span;
}

template <class AnyProblem>
void launch(const Plan& plan, Stream stream, AnyProblem problem) {
  problem.tiles = plan.tiles;
  problem.groups = plan.groups;
  const Config config(*plan.tier, *plan.kernel, plan.groups, static_cast<cudaStream_t>(stream));
  void* arguments[] = {&problem};
  check(cudaLaunchKernelExC(&config.config, plan.kernel->function, arguments),
        plan.backward ? "launching the backward recurrence" : "launching the forward recurrence");
}

}  // namespace

const char* why_not(int hidden_size) {
  for (const Tier* tier : kTiers) {
    if (tier->hidden_size != hidden_size) continue;
    return tier_for(hidden_size) ? nullptr
                                 : "this GPU cannot hold a direction's recurrent weights in blocks that run at once";
  }
  return "it has no kernels of this hidden size";
}

Plan make_plan(int hidden_size, int directions, int64_t batch, int64_t tokens, int64_t max_seqlen, bool backward) {
  const Tier* tier = tier_for(hidden_size);
  if (tier == nullptr) throw std::runtime_error(std::string("cuda LSTM: ") + why_not(hidden_size));
  const Pass& pass = backward ? tier->backward : tier->forward;
  const auto& at_once = backward ? residency(*tier).backward : residency(*tier).forward;
  const Lanes lanes = choose_lanes(batch, tokens, max_seqlen, directions, at_once, pass.time);
  // clusters wait for nobody and may queue; the groups of a grid must all run at once
  const int turns = lanes.tiles * directions;
  const int groups = tier->cluster ? turns : std::min(turns, at_once[lanes.width]);
  return {tier, &pass.kernels[lanes.width], kLaneWidths[lanes.width], lanes.tiles, groups, backward};
}

void rank_sequences(Stream stream, const int32_t* cu_seqlens, int32_t batch, int32_t tokens, Span* ranked) {
  if (batch == 0) return;
  constexpr int kWarps = 8;
  rank_kernel<<<(batch + kWarps - 1) / kWarps, 32 * kWarps, 0, static_cast<cudaStream_t>(stream)>>>(cu_seqlens, batch,
                                                                                                    tokens, ranked);
  check(cudaGetLastError(), "ranking the sequences");
}

void launch_forward(const Plan& plan, Stream stream, ForwardProblem problem) { launch(plan, stream, problem); }
void launch_backward(const Plan& plan, Stream stream, BackwardProblem problem) { launch(plan, stream, problem); }

}  // namespace penstock::lstm::cuda
