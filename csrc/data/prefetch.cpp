#include "data/prefetch.h"

#include <algorithm>
#include <system_error>

namespace penstock {

void run(const Shards& shards, Task& task) {
  shards.gather(task.rows, task.count, task.cut, task.values, task.capacity, task.cu_seqlens);
  for (int64_t i = 0; i < task.count; ++i) task.labels[i] = task.all_labels[task.rows[i]];
}

Prefetcher::Prefetcher(const Shards& shards, int threads) : shards_(shards) {
  try {
    threads_.reserve(size_t(std::max(threads, 0)));
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  } catch (const std::system_error&) {
    // those that started do the work, without any `wait` does it
  }
}

Prefetcher::~Prefetcher() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  submitted_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Prefetcher::submit(std::shared_ptr<Task> task) {
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(task));
  }
  submitted_.notify_one();
}

void Prefetcher::wait(const Task& task) {
  std::unique_lock lock(mutex_);
  while (threads_.empty() && !task.done && !queue_.empty()) work_on_next(lock);
  finished_.wait(lock, [&] { return task.done; });
}

void Prefetcher::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    submitted_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    work_on_next(lock);
  }
}

void Prefetcher::work_on_next(std::unique_lock<std::mutex>& lock) {
  const std::shared_ptr<Task> task = std::move(queue_.front());
  queue_.pop_front();
  lock.unlock();
  std::exception_ptr error;
  try {
    run(shards_, *task);
  } catch (...) {
    error = std::current_exception();
  }
  lock.lock();
  task->error = error;
  task->done = true;
  finished_.notify_all();
}

}  // namespace penstock
