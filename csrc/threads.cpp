#include "threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "load.h"
#include "openmp.h"

namespace penstock {
namespace {

// Threads 1, 2, ... of body(i), at most `count`: fewer where the system starts no more.
template <class Body>
void start_threads(std::vector<std::jthread>& threads, int count, Body body) {
  try {
    threads.reserve(size_t(count));
    for (int i = 1; i <= count; ++i) threads.emplace_back(body, i);
  } catch (const std::system_error&) {
  } catch (const std::bad_alloc&) {
  }
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
  // by the team that could work, for torch's own operations use it even where there is one item here
  if (threads > 1 && openmp().parallel != nullptr) follow_load(threads);
  threads = int(std::min<int64_t>(threads, items));
  Job job{items, work};
  if (threads <= 1) {
    job.run();
  } else if (openmp().parallel != nullptr) {
    openmp().parallel([](void* data) { static_cast<Job*>(data)->run(); }, &job, unsigned(threads), 0);
  } else {
    std::vector<std::jthread> helpers;
    start_threads(helpers, threads - 1, [&job](int) { job.run(); });
    job.run();
  }
  if (job.error) std::rethrow_exception(job.error);
}

void run_together(int threads, void (*work)(void* context, int member, int members), void* context) {
  if (threads <= 1) return work(context, 0, 1);
  if (openmp().parallel != nullptr && openmp().get_num_threads != nullptr) {
    follow_load(threads);
    struct Call {
      void (*work)(void*, int, int);
      void* context;
    } call{work, context};
    openmp().parallel(
        [](void* data) {
          const Call& call = *static_cast<Call*>(data);
          call.work(call.context, openmp().get_thread_num(), openmp().get_num_threads());
        },
        &call, unsigned(threads), 0);
    return;
  }
  // Members wait for each other in `work`, so none begins before it is known how many there are.
  std::atomic<int> members{0};
  std::vector<std::jthread> helpers;
  start_threads(helpers, threads - 1, [&](int i) {
    members.wait(0);
    work(context, i, members);
  });
  members = int(helpers.size()) + 1;
  members.notify_all();
  work(context, 0, members);
}

}  // namespace penstock
