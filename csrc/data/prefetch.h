// Worker threads that fill batches ahead of the consumer. They never touch Python.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "data/shards.h"

namespace penstock {

// What to gather and where to: the memory belongs to the caller and must live until the task is waited for.
struct Task {
  const int64_t* rows;
  int64_t count;
  const int64_t* all_labels;  // of the whole store
  Cut cut;
  int32_t* values;
  int64_t capacity;
  int32_t* cu_seqlens;
  int64_t* labels;
  bool done = false;
  std::exception_ptr error{};
};

void run(const Shards& shards, Task& task);

class Prefetcher {
 public:
  // Fewer threads where the system starts no more; with none at all, `wait` does the work.
  Prefetcher(const Shards& shards, int threads);
  ~Prefetcher();  // finishes the tasks being worked on, drops the others

  void submit(std::shared_ptr<Task> task);
  void wait(const Task& task);  // until it is done

 private:
  void work();
  void work_on_next(std::unique_lock<std::mutex>& lock);  // unlocked meanwhile

  const Shards& shards_;
  std::mutex mutex_;
  std::condition_variable submitted_, finished_;
  std::deque<std::shared_ptr<Task>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace penstock
