#include "data/plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "data/random.h"

namespace penstock {
namespace {

struct Span {
  int64_t begin, end;  // in the order before the batches were arranged
  int64_t tokens, squares;
};

int64_t cost(int32_t length) { return std::max(length, 1); }

// Next-fit: a batch is closed by the first example that does not fit.
void next_fit(const int64_t* order, const int32_t* lengths, int64_t begin, int64_t end, int64_t budget,
              std::vector<Span>& batches) {
  Span open{begin, begin, 0, 0};
  int64_t used = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t length = lengths[order[i]];
    if (open.end > open.begin && used + cost(length) > budget) {
      batches.push_back(open);
      open = {i, i, 0, 0};
      used = 0;
    }
    used += cost(length);
    open.end = i + 1;
    open.tokens += length;
    open.squares += length * length;
  }
  if (open.end > open.begin) batches.push_back(open);
}

// Bounded best-fit: of a few open batches, an example goes to the one where it leaves the least room; where it fits in
// none, the fullest is closed and a new one opened. Within a batch the order stays; batches are in the order of their
// opening, so an example moves by a few batches at most.
void best_fit(std::vector<int64_t>& order, const int32_t* lengths, int64_t budget, std::vector<Span>& batches) {
  constexpr int kOpen = 16;
  const auto count = static_cast<int64_t>(order.size());
  // The lengths first, and then in their place the batches: gathering them is bound by the cache's misses, which
  // overlap only as long as no branch waits for one.
  std::vector<int32_t> batch_of(count);
  for (int64_t i = 0; i < count; ++i) batch_of[i] = lengths[order[i]];
  int32_t rooms[kOpen];  // of the open batches, ascending,
  int32_t open[kOpen];   // and which they are
  std::fill(rooms, rooms + kOpen, std::numeric_limits<int32_t>::min());
  for (int64_t i = 0; i < count; ++i) {
    const int32_t length = batch_of[i], needed = std::max(length, 1);
    int k = 0;
    for (const int32_t room : rooms) k += room < needed;  // a sum, for a search would branch where nothing is foreseen
    if (k == kOpen) {
      std::copy(rooms + 1, rooms + kOpen, rooms);
      std::copy(open + 1, open + kOpen, open);
      --k;
      rooms[k] = static_cast<int32_t>(budget);
      open[k] = static_cast<int32_t>(batches.size());
      batches.push_back({0, 0, 0, 0});
    }
    const int32_t chosen = open[k], left = rooms[k] - needed;
    for (; k > 0 && rooms[k - 1] > left; --k) {
      rooms[k] = rooms[k - 1];
      open[k] = open[k - 1];
    }
    rooms[k] = left;
    open[k] = chosen;
    batch_of[i] = chosen;
    Span& batch = batches[chosen];
    ++batch.end;
    batch.tokens += length;
    batch.squares += int64_t{length} * length;
  }
  int64_t begin = 0;
  for (Span& batch : batches) {
    const int64_t size = batch.end;
    batch.begin = batch.end = begin;
    begin += size;
  }
  std::vector<int64_t> arranged(count);
  for (int64_t i = 0; i < count; ++i) arranged[batches[batch_of[i]].end++] = order[i];
  order.swap(arranged);
}

// Stable by length, so that equal lengths keep their shuffled order.
void radix_sort(int64_t* order, const int32_t* lengths, int64_t count, std::vector<int64_t>& scratch) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  int32_t longest = 0;
  for (int64_t i = 0; i < count; ++i) longest = std::max(longest, lengths[order[i]]);
  scratch.resize(count);
  int64_t *from = order, *to = scratch.data();
  for (int shift = 0; shift < 32 && (longest >> shift) != 0; shift += kBits) {
    int64_t starts[kBuckets] = {};
    for (int64_t i = 0; i < count; ++i) ++starts[(lengths[from[i]] >> shift) & (kBuckets - 1)];
    std::exclusive_scan(starts, starts + kBuckets, starts, int64_t{0});
    for (int64_t i = 0; i < count; ++i) to[starts[(lengths[from[i]] >> shift) & (kBuckets - 1)]++] = from[i];
    std::swap(from, to);
  }
  if (from != order) std::copy(from, from + count, order);
}

void bucket(int64_t* order, const int32_t* lengths, int64_t count, const PlanOptions& options,
            std::vector<Span>& batches) {
  std::vector<int64_t> scratch;
  const int64_t window = options.window_batches * options.tokens_per_batch;
  for (int64_t begin = 0; begin < count;) {
    int64_t end = begin;
    for (int64_t used = 0; end < count && (end == begin || used + cost(lengths[order[end]]) <= window); ++end)
      used += cost(lengths[order[end]]);
    radix_sort(order + begin, lengths, end - begin, scratch);
    next_fit(order, lengths, begin, end, options.tokens_per_batch, batches);
    begin = end;
  }
}

// The last step gets as many batches as the others: its largest ones are halved, each half well inside the budget.
// Where it has too few examples for that, the step before is taken in, and so on; batches stay empty only where an
// epoch has fewer examples than batches.
void complete_last_step(const int64_t* order, const int32_t* lengths, int64_t batches_per_step,
                        std::vector<Span>& batches) {
  const int64_t surplus = static_cast<int64_t>(batches.size()) % batches_per_step;
  if (surplus == 0) return;
  int64_t first = static_cast<int64_t>(batches.size()) - surplus, wanted = batches_per_step;
  const auto examples = [&] {
    int64_t count = 0;
    for (size_t i = first; i < batches.size(); ++i) count += batches[i].end - batches[i].begin;
    return count;
  };
  while (first > 0 && examples() < wanted) {
    first -= batches_per_step;
    wanted += batches_per_step;
  }
  while (static_cast<int64_t>(batches.size()) - first < wanted) {
    auto largest = batches.end();
    for (auto it = batches.begin() + first; it != batches.end(); ++it)
      if (it->end - it->begin > 1 && (largest == batches.end() || it->tokens > largest->tokens)) largest = it;
    if (largest == batches.end()) {
      const int64_t end = batches.back().end;
      batches.push_back({end, end, 0, 0});
      continue;
    }
    Span left{largest->begin, largest->begin, 0, 0}, right = *largest;
    while (left.end == left.begin || (left.tokens < largest->tokens / 2 && right.end - right.begin > 1)) {
      const int64_t length = lengths[order[right.begin]];
      left.end = ++right.begin;
      left.tokens += length;
      left.squares += length * length;
      right.tokens -= length;
      right.squares -= length * length;
    }
    *largest = left;
    batches.insert(largest + 1, right);
  }
}

}  // namespace

Plan plan_epoch(const int32_t* lengths, const int64_t* rows, int64_t count, uint64_t seed, uint64_t epoch,
                const PlanOptions& options) {
  std::vector<int64_t> order(count);
  if (rows != nullptr)
    std::copy(rows, rows + count, order.begin());
  else
    std::iota(order.begin(), order.end(), int64_t{0});

  Random random(seed, epoch);
  if (options.shuffle) random.shuffle(order.data(), count);

  std::vector<Span> batches;
  if (options.window_batches > 0) {
    bucket(order.data(), lengths, count, options, batches);
    if (options.shuffle) random.shuffle(batches.data(), static_cast<int64_t>(batches.size()));
  } else if (options.shuffle) {
    best_fit(order, lengths, options.tokens_per_batch, batches);
  } else {
    next_fit(order.data(), lengths, 0, count, options.tokens_per_batch, batches);
  }
  if (options.worst_first && !batches.empty()) {
    const auto smaller = [](const Span& a, const Span& b) {
      return a.tokens != b.tokens ? a.tokens < b.tokens : a.squares < b.squares;
    };
    std::iter_swap(batches.begin(), std::max_element(batches.begin(), batches.end(), smaller));
  }
  complete_last_step(order.data(), lengths, options.batches_per_step, batches);

  Plan plan;
  plan.order.reserve(count);
  plan.bounds.push_back(0);
  for (const Span& batch : batches) {
    int32_t longest = 0;
    for (int64_t i = batch.begin; i < batch.end; ++i) {
      longest = std::max(longest, lengths[order[i]]);
      plan.order.push_back(order[i]);
    }
    plan.bounds.push_back(static_cast<int64_t>(plan.order.size()));
    plan.tokens.push_back(batch.tokens);
    plan.squares.push_back(batch.squares);
    plan.longest.push_back(longest);
  }
  return plan;
}

}  // namespace penstock
