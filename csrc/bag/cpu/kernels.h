// One instruction set's kernels: included once by each of portable.cpp, avx2.cpp and avx512.cpp.
#pragma once

#include "bag/cpu/problem.h"
#include "simd.h"

namespace penstock {
namespace PENSTOCK_ISA {

using namespace penstock::bag;

// Rows of the table are fetched this many features ahead: each is somewhere else in memory.
constexpr int64_t kAhead = 16;

PENSTOCK_INLINE void fetch(const float* row, int64_t width, bool write) {
  for (int64_t d = 0; d < width; d += 16) write ? __builtin_prefetch(row + d, 1) : __builtin_prefetch(row + d, 0);
}

// Sums `count` rows of `width` floats, of which row i begins at row(i), in the order of i; calls done(begin, lanes,
// sum) for each vector of the sum. Four vectors at a time stay in registers.
template <int kVectors, class Row, class Done>
PENSTOCK_INLINE void sum_columns(int64_t begin, int64_t width, int64_t count, Row row, Done done) {
  Floats sums[kVectors] = {};
  if (begin + kVectors * kLanes <= width) {
    for (int64_t i = 0; i < count; ++i) {
      const float* from = row(i, begin == 0) + begin;
      for (int v = 0; v < kVectors; ++v) sums[v] += load(from + v * kLanes);
    }
    for (int v = 0; v < kVectors; ++v) done(begin + v * kLanes, int64_t{kLanes}, sums[v]);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* from = row(i, begin == 0) + begin;
    for (int v = 0; v < kVectors; ++v) {
      const int64_t left = width - begin - v * kLanes;
      if (left > 0) sums[v] += load(from + v * kLanes, left < kLanes ? left : kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    const int64_t left = width - begin - v * kLanes;
    if (left > 0) done(begin + v * kLanes, left < kLanes ? left : int64_t{kLanes}, sums[v]);
  }
}

template <class Row, class Done>
PENSTOCK_INLINE void sum_rows(int64_t width, int64_t count, Row row, Done done) {
  if (width <= kLanes) return sum_columns<1>(0, width, count, row, done);
  for (int64_t begin = 0; begin < width; begin += 4 * kLanes) sum_columns<4>(begin, width, count, row, done);
}

static bool mean(const MeanProblem& p, Range items, int32_t* features) {
  for (int64_t text = items.begin; text < items.end; ++text) {
    float* out = p.out + text * p.width;
    int64_t count = 0;
    if (!for_features(p.texts, p.texts.of(text), [&](int64_t row) __attribute__((always_inline)) {
          if (count < kAhead) fetch(p.table + row * p.width, p.width, false);
          features[count++] = int32_t(row);
        }))
      return false;
    const float over = count > 0 ? 1.0f / float(count) : 0.0f;
    sum_rows(
        p.width, count,
        [&](int64_t i, bool first) __attribute__((always_inline)) {
          if (first && i + kAhead < count) fetch(p.table + features[i + kAhead] * p.width, p.width, false);
          return p.table + features[i] * p.width;
        },
        [&](int64_t d, int64_t lanes, Floats sum)
            __attribute__((always_inline)) { store(out + d, sum * over, lanes); });
  }
  return true;
}

static void sum(const SumProblem& p, Range items) {
  for (int64_t item = items.begin; item < items.end; ++item) {
    const uint32_t* texts = p.texts + p.first[item];
    float* values = p.values + item * p.width;
    sum_rows(
        p.width, p.first[item + 1] - p.first[item],
        [&](int64_t i, bool) __attribute__((always_inline)) { return p.grad + int64_t{texts[i]} * p.width; },
        [&](int64_t d, int64_t lanes, Floats sum) __attribute__((always_inline)) { store(values + d, sum, lanes); });
  }
}

static void update(const UpdateProblem& p, Range items) {
  for (int64_t item = items.begin; item < items.end; ++item) {
    if (item + kAhead < items.end) {
      const int64_t next = p.rows[item + kAhead];
      fetch(p.table + next * p.width, p.width, true);
      fetch(p.sums + next, 1, true);
    }
    const int64_t row = p.rows[item];
    const float* g = p.values + item * p.width;
    float* to = p.table + row * p.width;
    Floats squares{};
    for (int64_t d = 0; d < p.width; d += kLanes) {
      const Floats x = load(g + d, p.width - d < kLanes ? p.width - d : kLanes);
      squares += x * x;
    }
    p.sums[row] += horizontal_sum(squares) / float(p.width);
    const float rate = p.rate / (__builtin_sqrtf(p.sums[row]) + p.eps);
    for (int64_t d = 0; d < p.width; d += kLanes) {
      const int64_t lanes = p.width - d < kLanes ? p.width - d : kLanes;
      store(to + d, load(to + d, lanes) - load(g + d, lanes) * rate, lanes);
    }
  }
}

}  // namespace PENSTOCK_ISA

#define PENSTOCK_JOIN(a, b) a##b
#define PENSTOCK_KERNELS(isa) PENSTOCK_JOIN(isa, _kernels)
const bag::Kernels bag::PENSTOCK_KERNELS(PENSTOCK_ISA){PENSTOCK_ISA::mean, PENSTOCK_ISA::sum, PENSTOCK_ISA::update};

}  // namespace penstock
