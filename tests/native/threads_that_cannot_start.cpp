// What the thread helpers and the loader's threads do when the system starts only a few threads, here by a
// pthread_create of our own:  threads_that_cannot_start ALLOWED
//
// OpenMP is not loaded, so that the helpers start threads themselves, as in a forked child.
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "data/prefetch.h"
#include "lstm/cpu/team.h"
#include "threads.h"

static std::atomic<int> allowed{0};

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* data) {
  static const auto real = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  return allowed.fetch_sub(1) > 0 ? real(thread, attributes, start, data) : EAGAIN;
}

namespace {

using namespace penstock;

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// All members meet a few times, as an LSTM's do.
void team(int limit) {
  constexpr int kThreads = 4;
  allowed = limit;
  std::atomic<int> present{0}, most{0};
  std::unique_ptr<lstm::Barrier> barrier;
  std::atomic<lstm::Barrier*> made{nullptr};
  auto meet = [&](int member, int members) {
    if (member == 0) {
      barrier = std::make_unique<lstm::Barrier>(members);
      made = barrier.get();
      made.notify_all();
    }
    made.wait(nullptr);
    for (int step = 0; step < 10; ++step) barrier->wait();
    ++present;
    most = members;
  };
  lstm::parallel(kThreads, meet);
  const int expected = limit < kThreads - 1 ? limit + 1 : kThreads;
  check(present == expected && most == expected, "another number of members");
}

void items(int limit) {
  allowed = limit;
  std::vector<std::atomic<int>> done(100);
  parallel_for(100, 4, [&](int64_t item, int worker) {
    check(worker >= 0 && worker < 4, "a worker beyond the threads");
    ++done[size_t(item)];
  });
  for (const auto& times : done) check(times == 1, "an item was not done once");
}

void loader(int limit) {
  allowed = limit;
  const uint16_t values[]{7, 8, 9};
  const int64_t offsets[]{0, 1, 3}, labels[]{1, 0};
  Shards shards(2, 10);
  shards.add({"mapped", 2, 3, values, offsets});
  Prefetcher prefetcher(shards, 3);
  for (int round = 0; round < 5; ++round) {
    const int64_t rows[]{1, 0};
    int32_t tokens[3], bounds[3];
    int64_t gathered[2];
    auto task = std::make_shared<Task>(Task{rows, 2, labels, Cut{}, tokens, 3, bounds, gathered});
    prefetcher.submit(task);
    prefetcher.wait(*task);
    check(!task->error && tokens[0] == 8 && tokens[2] == 7 && gathered[0] == 0, "another batch");
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return 2;
  const int limit = std::atoi(arguments[1]);
  team(limit);
  items(limit);
  loader(limit);
  std::puts("all was done");
}
