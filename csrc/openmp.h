// The OpenMP run time that torch has loaded, called without linking to one.
#pragma once

namespace penstock {

struct OpenMP {
  // gcc's entry point, which Intel's and LLVM's also have: runs a function on a team of threads.
  void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
  int (*get_thread_num)();
  int (*get_num_threads)();
  int (*get_num_procs)();
  // Intel's and LLVM's alone: milliseconds that a thread spins before it sleeps.
  void (*set_blocktime)(int milliseconds);
  int (*get_blocktime)();
};

// All null where none is loaded, and in a forked child: it inherits OpenMP's idea of its threads but not the threads,
// and would wait for them.
const OpenMP& openmp();

}  // namespace penstock
