#include "scratch.h"

#include <algorithm>

namespace penstock {
namespace {

constexpr size_t kAlignment = 64, kSmallestBlock = size_t{1} << 18;

}  // namespace

Scratch& Scratch::of_this_thread() {
  thread_local Scratch scratch;
  scratch.reset();
  return scratch;
}

void Scratch::reset() {
  used_ = 0;
  if (blocks_.size() <= 1) return;
  const size_t whole = total_;  // next time one block serves all that was asked for this time
  blocks_.clear();
  size_ = total_ = 0;
  take_bytes(whole);
  used_ = 0;
}

void* Scratch::take_bytes(size_t bytes) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (blocks_.empty() || size_ - used_ < bytes) {
    const size_t size = std::max(bytes, kSmallestBlock);
    blocks_.emplace_back(size);
    size_ = size;  // only now: without memory the next call still knows what there is
    used_ = 0;
    total_ += size;
  }
  void* p = blocks_.back().as<std::byte>() + used_;
  used_ += bytes;
  return p;
}

}  // namespace penstock
