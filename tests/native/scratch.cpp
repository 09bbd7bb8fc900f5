// Stands in for csrc/scratch.cpp: whatever is taken is a piece of the heap of its exact size, so that the address
// sanitizer sees every step beyond it, and starts as NaN.
#include "scratch.h"

#include <cstring>
#include <new>

namespace penstock {

void Scratch::Free::operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t(64)); }

Scratch& Scratch::of_this_thread() {
  thread_local Scratch scratch;
  scratch.reset();
  return scratch;
}

void Scratch::reset() { blocks_.clear(); }

void* Scratch::take_bytes(size_t bytes) {
  blocks_.emplace_back(static_cast<std::byte*>(::operator new[](bytes, std::align_val_t(64))));
  std::memset(blocks_.back().get(), 0xff, bytes);
  return blocks_.back().get();
}

}  // namespace penstock
