#include "load.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>

#include "openmp.h"

namespace penstock {

#if defined(__linux__) && defined(SYS_sched_setattr)
namespace {

constexpr int64_t kEvery = 250'000'000;      // nanoseconds
constexpr int64_t kLeast = 20'000'000;       // of the team's threads together: less tells nothing
constexpr double kBusy = 0.3, kQuiet = 0.1;  // of the time that they could have run
constexpr int64_t kFirstTry = 2'000'000'000, kLastTry = 64'000'000'000;  // nanoseconds
constexpr uint64_t kSlice = 100'000;                                     // nanoseconds, the shortest that Linux grants

std::atomic<bool> brief{false};

bool said_by_the_user() {
  for (const char* name : {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
    if (std::getenv(name) != nullptr) return true;
  return false;
}

struct Spent {
  int64_t running = 0, waiting = 0;  // nanoseconds
};

// On a core and waiting for one, since this thread began; zeros where the system does not tell.
Spent spent() {
  Spent now;
  const int file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
  if (file < 0) return now;
  char text[96];
  const ssize_t size = read(file, text, sizeof text - 1);
  close(file);
  text[size < 0 ? 0 : size] = 0;
  long long running, waiting;
  if (std::sscanf(text, "%lld %lld", &running, &waiting) == 2) now = {running, waiting};
  return now;
}

// How long this thread may run before another's turn: a thread of a shorter slice is let in at once when it wakes, even
// while one of a low priority runs. From Linux 6.12; before, the system takes no notice. 0 is the system's own.
void set_slice(uint64_t nanoseconds) {
  const int policy = sched_getscheduler(0);
  if (policy != SCHED_OTHER && policy != SCHED_BATCH) return;
  struct {  // sched_setattr(2)
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes{sizeof attributes, uint32_t(policy), 0, getpriority(PRIO_PROCESS, 0), 0, nanoseconds, 0, 0};
  syscall(SYS_sched_setattr, 0, &attributes, 0);
}

struct Sums {
  std::atomic<int64_t> running{0}, waiting{0};
};

// Of one thread of the team: adds what it spent since the last time.
void look(void* data) {
  thread_local Spent before;
  thread_local bool sliced = false;
  const Spent now = spent();
  if (before.running != 0) {
    static_cast<Sums*>(data)->running += now.running - before.running;
    static_cast<Sums*>(data)->waiting += now.waiting - before.waiting;
  }
  before = now;
  if (sliced != brief) set_slice((sliced = brief) ? kSlice : 0);
}

// When threads that sleep at once should try to spin again. Beside one process of a low priority they wait for each
// other: the system lets them sleep and wake on one core, and leaves the other core to that process. Spinning, each
// would have a core; that they wait now does not tell. A try that fails doubles the time until the next.
class Tries {
 public:
  bool is_due(int64_t now) { return now >= next_; }
  void begin(int64_t now) { began_ = now; }
  // They sleep at once from now on.
  void failed(int64_t now) {
    pause_ = now - began_ < kFirstTry ? std::min(2 * pause_, kLastTry) : kFirstTry;
    next_ = now + pause_;
  }

 private:
  int64_t began_ = 0, next_ = 0, pause_ = kFirstTry;
};

// gcc's OpenMP sleeps at once while its threads are more than the cores: these are idle ones that make them more.
struct Idle {
  std::mutex mutex;
  std::condition_variable change;
  bool leave = false;
};

void start_idle(Idle* idle, int threads) {
  std::thread([idle, threads] {
    openmp().parallel([](void*) {}, nullptr, unsigned(threads), 0);
    std::unique_lock lock(idle->mutex);
    idle->change.wait(lock, [idle] { return idle->leave; });
    lock.unlock();
    delete idle;
  }).detach();
}

void end_idle(Idle* idle) {
  const std::lock_guard lock(idle->mutex);
  idle->leave = true;
  idle->change.notify_all();
}

void wait_briefly(bool briefly, int threads) {
  static Idle* idle = nullptr;
  static int usual = 0;
  if (openmp().set_blocktime != nullptr && openmp().get_blocktime != nullptr) {
    if (briefly) usual = openmp().get_blocktime();
    openmp().set_blocktime(briefly ? 0 : usual);
  } else if (const int more = briefly && openmp().get_num_procs != nullptr ? openmp().get_num_procs() - threads + 2 : 0;
             more > 1) {  // else the team alone has more threads than there are cores
    idle = new Idle;
    try {
      start_idle(idle, more);
    } catch (const std::system_error&) {  // the system starts no more threads
      delete idle;
      idle = nullptr;
    }
  } else if (idle != nullptr) {
    end_idle(idle);
    idle = nullptr;
  }
  brief = briefly;
}

}  // namespace

void follow_load(int threads) {
  static const bool leave = said_by_the_user();
  static std::atomic<int64_t> due{0};
  if (leave) return;
  const int64_t now = std::chrono::steady_clock::now().time_since_epoch().count();
  int64_t expected = due.load(std::memory_order_relaxed);
  if (now < expected || !due.compare_exchange_strong(expected, now + kEvery)) return;
  static std::mutex looking;
  const std::unique_lock lock(looking, std::try_to_lock);
  if (!lock) return;
  Sums sums;
  openmp().parallel(look, &sums, unsigned(threads), 0);
  const double could = double(sums.running + sums.waiting);
  if (could < kLeast) return;
  const double share = double(sums.waiting) / could;
  static Tries tries;
  if (brief && (share < kQuiet || tries.is_due(now))) {
    wait_briefly(false, threads);
    tries.begin(now);
  } else if (!brief && share > kBusy) {
    wait_briefly(true, threads);
    tries.failed(now);
  }
}

#else

void follow_load(int) {}

namespace {
constexpr bool brief = false;
}

#endif

bool waits_briefly() { return brief; }

}  // namespace penstock
