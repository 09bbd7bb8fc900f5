// The threads of one call, and the barrier at which a team of them meets.
#pragma once

#include <atomic>

#include "threads.h"

namespace penstock::lstm {

// Calls function(member, members) on `members` <= threads threads at the same time.
template <class Function>
inline void parallel(int threads, Function& function) {
  run_together(
      threads, [](void* context, int member, int members) { (*static_cast<Function*>(context))(member, members); },
      &function);
}

class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  void wait();

 private:
  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

}  // namespace penstock::lstm
