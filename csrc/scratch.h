#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "types.h"
#include "workspace.h"

namespace penstock {

// Pieces of the workspace that one thread keeps from call to call, handed out bit by bit. `take` gives uninitialised
// arrays aligned to cache lines, which stay valid until `reset`.
class Scratch {
 public:
  // The calling thread's own, reset.
  static Scratch& of_this_thread();

  template <class T>
  PENSTOCK_INLINE T* take(int64_t count) {
    return static_cast<T*>(take_bytes(size_t(count) * sizeof(T)));
  }
  void reset();

 private:
  void* take_bytes(size_t bytes);

  std::vector<Block> blocks_;
  size_t size_ = 0, used_ = 0, total_ = 0;  // of the last block; of all
};

}  // namespace penstock
