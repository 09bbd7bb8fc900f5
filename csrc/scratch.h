#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "types.h"

namespace penstock {

// Memory for intermediate results that one thread keeps from call to call: fresh pages cost more than the arithmetic
// done on them. `take` gives uninitialised arrays aligned to cache lines, which stay valid until `reset`.
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
  struct Free {
    void operator()(std::byte* p) const;
  };
  void* take_bytes(size_t bytes);

  std::vector<std::unique_ptr<std::byte, Free>> blocks_;
  size_t size_ = 0, used_ = 0, total_ = 0;  // of the last block; of all
};

}  // namespace penstock
