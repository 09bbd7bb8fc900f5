// Stands in for csrc/scratch.cpp: whatever is taken is a block of its own, which workspace.cpp beside this one gives
// its exact size.
#include "scratch.h"

namespace penstock {

Scratch& Scratch::of_this_thread() {
  thread_local Scratch scratch;
  scratch.reset();
  return scratch;
}

void Scratch::reset() { blocks_.clear(); }

void* Scratch::take_bytes(size_t bytes) {
  blocks_.emplace_back(bytes);
  return blocks_.back().as<void>();
}

}  // namespace penstock
