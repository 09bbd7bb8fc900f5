// Launching the recurrent kernels on the current device: plain pointers and a stream, no CUDA types.
//
// Everything here throws std::runtime_error with one line when the device or the driver refuses.
#pragma once

#include <cstdint>

#include "lstm/cuda/kernels.h"

namespace penstock::lstm::cuda {

using Stream = void*;  // cudaStream_t

// How one launch shares out a batch.
struct Plan {
  const Tier* tier;
  const Kernel* kernel;
  int lanes;   // of a tile
  int tiles;   // of one direction
  int groups;  // of blocks
  bool backward;
  int64_t exchange_words() const { return kernel->exchange_words * groups; }
};

// Null if the current device can hold a layer of this hidden size, else the reason in one line.
const char* why_not(int hidden_size);

// For the current device. Depends on sizes alone; max_seqlen may be any upper bound of the lengths.
Plan make_plan(int hidden_size, int directions, int64_t batch, int64_t tokens, int64_t max_seqlen, bool backward);

// Fills `ranked` (batch), longest first.
void rank_sequences(Stream stream, const int32_t* cu_seqlens, int32_t batch, int32_t tokens, Span* ranked);

void launch_forward(const Plan& plan, Stream stream, ForwardProblem problem);
void launch_backward(const Plan& plan, Stream stream, BackwardProblem problem);

}  // namespace penstock::lstm::cuda
