// Runs a kernel on the emulated machine of lstm/cuda/device.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace penstock::emulator {

struct Launch {
  int blocks, threads;  // of one group: its blocks run at once
  size_t shared_bytes;  // of a block
  int first_block;      // blockIdx of the group's first
  uint64_t seed;        // of the order in which threads run
};

// Runs `kernel` in every thread of the group. Throws std::runtime_error when no thread can go on, or one does what the
// machine forbids (an address outside its block's shared memory, a warp that parts before a common instruction, ...).
void run(const Launch& launch, const std::function<void()>& kernel);

}  // namespace penstock::emulator
