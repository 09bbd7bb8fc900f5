// Stands in for csrc/workspace.cpp: each block is a piece of the heap, of the size asked for and no more, so
// that the address sanitizer sees every step beyond it, and starts as NaN.
#include "workspace.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace penstock {

Block::Block(size_t bytes) : size_(bytes) {
  if (posix_memalign(&data_, 64, bytes == 0 ? 1 : bytes) != 0) throw std::bad_alloc();
  std::memset(data_, 0xff, bytes);
}

Block::Block(Block&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}

Block& Block::operator=(Block&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Block::~Block() { std::free(data_); }

}  // namespace penstock
