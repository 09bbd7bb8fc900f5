// The words that all of csrc/ shares.
#pragma once

#include <cstdint>

// Of functions that disappear in their callers: free functions and members alike.
#define PENSTOCK_INLINE inline __attribute__((always_inline))

namespace penstock {

struct bf16 {
  uint16_t bits;
};

// Of a tensor's elements, in memory.
enum class DType { float32, bfloat16 };

// Items [begin, end).
struct Range {
  int64_t begin, end;

  PENSTOCK_INLINE int64_t size() const { return end - begin; }
  PENSTOCK_INLINE bool empty() const { return begin >= end; }
  PENSTOCK_INLINE Range within(int64_t from, int64_t to) const {
    return {begin < from ? from : begin, end > to ? to : end};
  }
};

// Part i of n items in `parts` near-equal parts.
PENSTOCK_INLINE Range share(int64_t n, int64_t parts, int64_t i) { return {n * i / parts, n * (i + 1) / parts}; }

}  // namespace penstock
