#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "lstm/cuda/device.h"

namespace penstock::emulator {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr int kWarpSize = 32;

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool real;
};

struct Warp;

struct Fiber {
  Warp* warp;
  int block, thread;
  bool started = false, done = false;
  jmp_buf resume;
  const char* waits_for = "";
  std::vector<std::vector<Copy>> closed;
  std::vector<Copy> open;
};

// A common instruction of a warp: its lanes' operands in, results out.
struct Common {
  int arrived = 0;
  const char* name = nullptr;
  uint64_t in[kWarpSize][10];
  uint32_t out[kWarpSize][4];
};

struct Warp {
  Fiber* lanes;
  uint32_t ready = ~0u;
  uint64_t priority = 0;
  Common common;
};

struct Meeting {
  int arrived = 0, expected = 0;
  std::vector<Fiber*> waiting;
};

struct Barrier {
  int pending = 1;
  int64_t bytes = 0;
  uint32_t phase = 0;
  std::vector<Fiber*> waiting;
};

struct Message {
  char* to;
  char bytes[16];
  int size;
  uint64_t* barrier;
};

// One run. Fibers cannot throw across each other's stacks: an error is kept and thrown by run().
struct Machine {
  explicit Machine(const Launch& launch, const std::function<void()>& kernel)
      : launch(launch), kernel(kernel), random(launch.seed) {
    const int threads = launch.blocks * launch.threads;
    stacks = static_cast<char*>(mmap(nullptr, threads * kStackBytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) throw std::bad_alloc();
    fibers.resize(threads);
    warps.resize(threads / kWarpSize);
    for (int i = 0; i < threads; ++i) {
      fibers[i].warp = &warps[i / kWarpSize];
      fibers[i].block = i / launch.threads;
      fibers[i].thread = i % launch.threads;
    }
    for (size_t w = 0; w < warps.size(); ++w) {
      warps[w].lanes = &fibers[w * kWarpSize];
      warps[w].priority = random();
    }
    shared_stride = (launch.shared_bytes + 1023) / 1024 * 1024 + 1024;
    shared.resize(shared_stride * launch.blocks / 8 + 16);
    std::fill(shared.begin(), shared.end(), 0xffffffffffffffffull);  // NaN: what nobody wrote must not matter
    meetings.resize(launch.blocks * 16);
  }
  ~Machine() { munmap(stacks, fibers.size() * kStackBytes); }

  char* shared_of(int block) {
    char* base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 127) / 128 * 128);
    return base + block * shared_stride;
  }

  void run();
  void resume(Fiber* fiber);
  void block_current(const char* waits_for);
  [[noreturn]] void fail(const std::string& what);
  void wake(Fiber* fiber) { fiber->warp->ready |= 1u << fiber->thread % kWarpSize; }
  void wake_all(std::vector<Fiber*>& waiting) {
    for (Fiber* fiber : waiting) wake(fiber);
    waiting.clear();
  }
  void deliver(size_t which);
  void phase_may_end(Barrier& barrier);
  Barrier& barrier_at(uint64_t* at) {
    const auto found = barriers.find(at);
    if (found == barriers.end()) fail("a barrier is used that was not initialised");
    return found->second;
  }
  void check_shared(const void* at, int bytes, int alignment, int block) {
    const char* first = static_cast<const char*>(at);
    if (first < shared_of(block) || first + bytes > shared_of(block) + launch.shared_bytes) {
      fail("an address outside the block's shared memory");
    }
    if (reinterpret_cast<uintptr_t>(first) % alignment) fail("a misaligned address in shared memory");
  }
  void meet(Meeting& meeting, int expected, const char* name);
  // Runs `instruct` once all lanes of the warp have put in their operands.
  template <class Instruct>
  uint32_t* together(const char* name, std::initializer_list<uint64_t> operands, Instruct instruct);

  const Launch& launch;
  const std::function<void()>& kernel;
  std::mt19937_64 random;
  char* stacks;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<uint64_t> shared;
  size_t shared_stride;
  std::vector<Meeting> meetings;  // 16 of each block
  Meeting cluster;
  std::unordered_map<uint64_t*, Barrier> barriers;
  std::unordered_map<const void*, std::vector<Fiber*>> awaited;
  std::vector<Message> messages;
  Fiber* current = nullptr;
  jmp_buf scheduler;
  std::string error;
};

Machine* machine = nullptr;

void enter() {
  machine->kernel();
  machine->current->done = true;
  machine->block_current("nothing: it has ended");
}

void Machine::block_current(const char* waits_for) {
  Fiber* self = current;
  self->waits_for = waits_for;
  if (!_setjmp(self->resume)) _longjmp(scheduler, 1);
}

void Machine::fail(const std::string& what) {
  error = "block " + std::to_string(current->block) + ", thread " + std::to_string(current->thread) + ": " + what;
  current->done = true;
  block_current("nothing: it failed");
  __builtin_unreachable();
}

// Returns when the fiber waits or has ended.
__attribute__((noinline)) void Machine::resume(Fiber* fiber) {
  current = fiber;
  if (_setjmp(scheduler)) return;
  if (current->started) _longjmp(current->resume, 1);
  current->started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + (current - fibers.data()) * kStackBytes;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  setcontext(&context);
}

void Machine::run() {
  size_t left = fibers.size();
  while (left && error.empty()) {
    // messages arrive in any order, sooner or later
    while (!messages.empty() && random() % 2) deliver(random() % messages.size());
    Warp* chosen = nullptr;
    for (Warp& warp : warps) {
      if (warp.ready && (chosen == nullptr || warp.priority > chosen->priority)) chosen = &warp;
    }
    if (chosen == nullptr) {
      if (messages.empty()) {
        error = "no thread can go on; they wait for:";
        for (const char* reason : {"a warp", "a barrier of the block", "the cluster", "bytes", "a word"}) {
          const auto waits = [&](const Fiber& f) { return !f.done && std::strcmp(f.waits_for, reason) == 0; };
          error += " " + std::to_string(std::count_if(fibers.begin(), fibers.end(), waits)) + " " + reason + ";";
        }
        break;
      }
      deliver(random() % messages.size());
      continue;
    }
    if (random() % 8 == 0) chosen->priority = random();
    for (int turn = 0; turn < 64 && chosen->ready && error.empty(); ++turn) {
      for (uint32_t ready = chosen->ready; ready && error.empty(); ready &= ready - 1) {
        const int lane = __builtin_ctz(ready);
        chosen->ready &= ~(1u << lane);
        resume(&chosen->lanes[lane]);
        if (current->done) --left;
      }
    }
  }
  if (!error.empty()) throw std::runtime_error(error);
  if (!messages.empty()) throw std::runtime_error("a block has ended before a message to it arrived");
}

void Machine::phase_may_end(Barrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  barrier.pending = 1;
  ++barrier.phase;
  wake_all(barrier.waiting);
}

void Machine::deliver(size_t which) {
  std::swap(messages[which], messages.back());
  const Message message = messages.back();
  messages.pop_back();
  std::memcpy(message.to, message.bytes, message.size);
  Barrier& barrier = barriers[message.barrier];
  barrier.bytes -= message.size;
  phase_may_end(barrier);
}

void Machine::meet(Meeting& meeting, int expected, const char* name) {
  if (meeting.arrived && meeting.expected != expected) fail("threads disagree on how many meet at a barrier");
  meeting.expected = expected;
  if (++meeting.arrived == expected) {
    meeting.arrived = 0;
    wake_all(meeting.waiting);
    return;
  }
  meeting.waiting.push_back(current);
  block_current(name);
}

template <class Instruct>
uint32_t* Machine::together(const char* name, std::initializer_list<uint64_t> operands, Instruct instruct) {
  Common& common = current->warp->common;
  const int lane = current->thread % kWarpSize;
  if (common.arrived && std::strcmp(common.name, name) != 0) {
    fail(std::string("its warp is at ") + common.name + ", it is at " + name);
  }
  common.name = name;
  std::copy(operands.begin(), operands.end(), common.in[lane]);
  if (++common.arrived == kWarpSize) {
    common.arrived = 0;
    instruct(common);
    current->warp->ready |= ~(1u << lane);
  } else {
    block_current("a warp");
  }
  return common.out[lane];
}

}  // namespace

void run(const Launch& launch, const std::function<void()>& kernel) {
  auto here = std::make_unique<Machine>(launch, kernel);
  machine = here.get();
  here->run();
}

}  // namespace penstock::emulator

namespace penstock::device {

using emulator::Barrier;
using emulator::Common;
using emulator::kWarpSize;
using emulator::machine;

int thread() { return machine->current->thread; }
int block() { return machine->launch.first_block + machine->current->block; }
char* shared() { return machine->shared_of(machine->current->block); }

void sync_warp() {
  machine->together("sync_warp", {}, [](Common&) {});
}

bool any(bool value) {
  return *machine->together("any", {value}, [](Common& c) {
    uint32_t found = 0;
    for (auto& in : c.in) found |= uint32_t(in[0]);
    for (auto& out : c.out) out[0] = found;
  });
}

uint32_t shuffle(uint32_t value, int lane) {
  return *machine->together("shuffle", {value, uint64_t(lane)}, [](Common& c) {
    for (int i = 0; i < kWarpSize; ++i) c.out[i][0] = uint32_t(c.in[c.in[i][1]][0]);
  });
}

void sync_block() { sync_threads(0, machine->launch.threads); }

void sync_threads(int barrier, int threads) {
  machine->meet(machine->meetings[machine->current->block * 16 + barrier], threads, "a barrier of the block");
}

// The fragments as the PTX manual gives them for mma.m16n8k16: of A, a thread's words are rows i / 4, + 8, and columns
// 2 (i % 4), + 8; of B, rows 2 (i % 4), + 8 of column i / 4; of D, rows i / 4, + 8 and columns 2 (i % 4), + 1.
void multiply_add(float (&d)[4], const Quad& a, uint32_t b0, uint32_t b1) {
  uint32_t* out =
      machine->together("multiply_add",
                        {a.word[0], a.word[1], a.word[2], a.word[3], b0, b1, float_to_bits(d[0]), float_to_bits(d[1]),
                         float_to_bits(d[2]), float_to_bits(d[3])},
                        [](Common& c) {
                          float a[16][16], b[16][8];
                          const auto half = [](uint64_t pair, int which) {
                            return bits_to_float(which ? uint32_t(pair) & 0xffff0000u : uint32_t(pair) << 16);
                          };
                          for (int i = 0; i < kWarpSize; ++i) {
                            for (int w = 0; w < 4; ++w) {
                              for (int e = 0; e < 2; ++e)
                                a[i / 4 + w % 2 * 8][i % 4 * 2 + w / 2 * 8 + e] = half(c.in[i][w], e);
                            }
                            for (int w = 0; w < 2; ++w) {
                              for (int e = 0; e < 2; ++e) b[i % 4 * 2 + w * 8 + e][i / 4] = half(c.in[i][4 + w], e);
                            }
                          }
                          for (int i = 0; i < kWarpSize; ++i) {
                            for (int w = 0; w < 4; ++w) {
                              float sum = bits_to_float(uint32_t(c.in[i][6 + w]));
                              for (int k = 0; k < 16; ++k) sum += a[i / 4 + w / 2 * 8][k] * b[k][i % 4 * 2 + w % 2];
                              c.out[i][w] = float_to_bits(sum);
                            }
                          }
                        });
  for (int w = 0; w < 4; ++w) d[w] = bits_to_float(out[w]);
}

void load_matrices(Quad& out, const void* row) {
  machine->check_shared(row, 16, 16, machine->current->block);
  const uint32_t* found = machine->together("load_matrices", {reinterpret_cast<uintptr_t>(row)}, [](Common& c) {
    for (int i = 0; i < kWarpSize; ++i) {
      for (int w = 0; w < 4; ++w) {
        const auto* row = reinterpret_cast<const char*>(uintptr_t(c.in[8 * w + i / 4][0]));
        std::memcpy(&c.out[i][w], row + i % 4 * 4, 4);
      }
    }
  });
  std::copy(found, found + 4, out.word);
}

uint32_t transpose(uint32_t value) {
  return *machine->together("transpose", {value}, [](Common& c) {
    const auto element = [&](int row, int column) {
      return uint32_t(c.in[4 * row + column / 2][0]) >> (column % 2 * 16) & 0xffff;
    };
    for (int i = 0; i < kWarpSize; ++i) {
      c.out[i][0] = element(i % 4 * 2 + 1, i / 4) << 16 | element(i % 4 * 2, i / 4);
    }
  });
}

void copy_async(void* to, const void* from, int bytes, bool real) {
  machine->check_shared(to, bytes, bytes, machine->current->block);
  if (reinterpret_cast<uintptr_t>(from) % bytes) machine->fail("a misaligned address in global memory");
  std::memset(to, 0xff, bytes);  // nothing may be read there before the wait
  machine->current->open.push_back({to, from, bytes, real});
}

void close_copies() {
  auto& fiber = *machine->current;
  fiber.closed.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void wait_copies(int open) {
  auto& closed = machine->current->closed;
  while (int(closed.size()) > open) {
    for (const auto& copy : closed.front()) {
      if (copy.real) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
    closed.erase(closed.begin());
  }
}

void publish(uint64_t* at, uint32_t value, uint32_t stamp) {
  *at = uint64_t(stamp) << 32 | value;
  const auto found = machine->awaited.find(at);
  if (found == machine->awaited.end()) return;
  machine->wake_all(found->second);
  machine->awaited.erase(found);
}

uint32_t await_word(const uint64_t* at, uint32_t stamp) {
  while (*at >> 32 != stamp) {
    if (*at >> 32 > stamp) machine->fail("a message was overwritten before it was read");
    machine->awaited[at].push_back(machine->current);
    machine->block_current("a word");
  }
  return uint32_t(*at);
}

void sync_cluster() {
  machine->meet(machine->cluster, machine->launch.blocks * machine->launch.threads, "the cluster");
}

void init_barrier(uint64_t* barrier) {
  machine->check_shared(barrier, 8, 8, machine->current->block);
  machine->barriers[barrier] = Barrier();
}

void expect_bytes(uint64_t* at, uint32_t bytes) {
  Barrier& barrier = machine->barrier_at(at);
  if (barrier.pending == 0) machine->fail("a barrier is armed twice in one phase");
  barrier.bytes += bytes;
  --barrier.pending;
  machine->phase_may_end(barrier);
}

void wait_barrier(uint64_t* at, uint32_t parity) {
  Barrier& barrier = machine->barrier_at(at);
  while (barrier.phase % 2 == parity) {
    barrier.waiting.push_back(machine->current);
    machine->block_current("bytes");
  }
}

void store_remote(void* to, uint64_t* barrier, int rank, const void* value, int bytes) {
  const int here = machine->current->block;
  if (rank < 0 || rank >= machine->launch.blocks) machine->fail("no such block in the cluster");
  machine->check_shared(to, bytes, bytes, here);
  const auto there = [&](void* at) { return machine->shared_of(rank) + (static_cast<char*>(at) - shared()); };
  emulator::Message message{there(to), {}, bytes, reinterpret_cast<uint64_t*>(there(barrier))};
  machine->barrier_at(message.barrier);
  std::memcpy(message.bytes, value, bytes);
  machine->messages.push_back(message);
}

}  // namespace penstock::device
