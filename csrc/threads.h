#pragma once

#include <cstdint>
#include <functional>

namespace penstock {

// Calls work(item, worker) once for every item in [0, items), on at most `threads` threads; 0 <= worker < threads tells
// the threads of one call apart. Items are handed out in order as threads become free, so put the long ones first.
// Runs on torch's own OpenMP threads where there are any: threads of ours would compete with them, because OpenMP's
// idle threads spin for milliseconds after every operation. An exception thrown by `work` arrives at the caller. Where
// the system starts no more threads, fewer do the work, the caller's own at least.
void parallel_for(int64_t items, int threads, const std::function<void(int64_t item, int worker)>& work);

// Calls work(context, member, members) for every member on a thread of its own, all at the same time; `members` is
// `threads`, or fewer where the run time grants no more (inside another parallel region) or the system starts no more.
void run_together(int threads, void (*work)(void* context, int member, int members), void* context);

}  // namespace penstock
