#include "threads.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace penstock {
namespace {

// The entry point of gcc's OpenMP run time, which Intel's and LLVM's also have: runs a function on a team of threads.
using GompParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// Found in whichever OpenMP library is loaded already, under the names that builds of torch give it; never loads one.
GompParallel loaded_openmp() {
  for (const char* name : {"libgomp.so.1", "libgomp.so", "libiomp5.so", "libomp.so", "libomp.dylib", "libiomp5.dylib"}) {
    void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) continue;
    if (void* symbol = dlsym(library, "GOMP_parallel")) return reinterpret_cast<GompParallel>(symbol);
    dlclose(library);
  }
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

struct Job {
  const int64_t items;
  const std::function<void(int64_t, int)>& work;
  std::atomic<int64_t> next{0};
  std::atomic<int> workers{0};
  std::mutex mutex{};
  std::exception_ptr error{};

  void run() {
    const int worker = workers.fetch_add(1);
    try {
      for (int64_t item; (item = next.fetch_add(1)) < items;) work(item, worker);
    } catch (...) {
      const std::lock_guard lock(mutex);
      error = std::current_exception();
      next = items;
    }
  }
};

}  // namespace

void parallel_for(int64_t items, int threads, const std::function<void(int64_t, int)>& work) {
  static const GompParallel openmp = loaded_openmp();
  threads = int(std::min<int64_t>(threads, items));
  Job job{items, work};
  if (threads <= 1) {
    job.run();
  } else if (openmp != nullptr) {
    openmp([](void* data) { static_cast<Job*>(data)->run(); }, &job, unsigned(threads), 0);
  } else {
    std::vector<std::jthread> helpers;
    for (int i = 1; i < threads; ++i) helpers.emplace_back([&job] { job.run(); });
    job.run();
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace penstock
