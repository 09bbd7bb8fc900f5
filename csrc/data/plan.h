// The batches of one epoch, by token budget.
#pragma once

#include <cstdint>
#include <vector>

namespace penstock {

struct PlanOptions {
  int64_t tokens_per_batch;
  int64_t batches_per_step;
  int64_t window_batches;  // 0: pack the shuffled order, see best_fit; else sort by length inside windows this large
  bool shuffle;
  bool worst_first;
};

struct Plan {
  std::vector<int64_t> order;    // row numbers, batch after batch
  std::vector<int64_t> bounds;   // batch b is order[bounds[b] .. bounds[b + 1])
  std::vector<int64_t> tokens;   // per batch: the sum of the lengths,
  std::vector<int64_t> squares;  // the sum of their squares (what attention costs),
  std::vector<int32_t> longest;  // and the greatest
};

// `rows` are indices into `lengths`; null means all of them. Every row is in exactly one batch; the number of batches
// is a multiple of batches_per_step. A batch holds at most tokens_per_batch tokens unless it is a single longer
// example; an example counts as one token at least, so that empty ones do not pile up without end.
Plan plan_epoch(const int32_t* lengths, const int64_t* rows, int64_t count, uint64_t seed, uint64_t epoch,
                const PlanOptions& options);

}  // namespace penstock
