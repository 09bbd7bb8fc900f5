// The kernels of one hidden size and way of holding W_hh, as a table of what a launch needs to know.
#pragma once

#include <cstdint>

#include "lstm/cuda/problem.h"

namespace penstock::lstm::cuda {

struct Kernel {
  const void* function;  // null where it would not fit any GPU
  int64_t shared_bytes;
  int64_t exchange_words;  // of one group
};

// Kernels for each width of kLaneWidths, and their predicted time.
struct Pass {
  StepTime time;
  Kernel kernels[3];
};

// A tier: how many blocks hold one direction's W_hh together, as a cluster or as part of a grid that runs all at once.
struct Tier {
  const char* name;
  int hidden_size, blocks, threads;
  bool cluster;
  Pass forward, backward;
};

extern const Tier kCluster128, kCluster256, kCluster384, kCluster512, kCluster512Of8;  // sm_90a
extern const Tier kGrid128, kGrid256, kGrid384, kGrid512, kGrid768, kGrid1024;         // sm_80 and later

}  // namespace penstock::lstm::cuda
