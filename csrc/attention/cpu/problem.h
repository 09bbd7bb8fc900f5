#pragma once

#include <cstdint>

#include "scratch.h"
#include "types.h"

namespace penstock::attention {

// A tensor (tokens, heads, head_dim) whose last dimension is dense; strides in elements.
struct Tensor {
  void* data;
  int64_t token_stride, head_stride;
};

// One call of varlen attention, forward or backward, on raw memory; kernels/attention/__init__.py says what it means.
struct Problem {
  DType dtype;
  int64_t batch, heads, kv_heads, head_dim, total_q, total_k;
  const int32_t *cu_seqlens_q, *cu_seqlens_k;
  float scale;
  int64_t window_left, window_right;  // -1: unbounded
  uint32_t dropout_threshold;         // 0: no dropout
  float dropout_scale;
  uint64_t seed;
  const int64_t* ids;
  Tensor q, k, v, out;
  float* lse;  // (heads, total_q)
  Tensor grad_out, grad_q, grad_k, grad_v;

  PENSTOCK_INLINE int64_t group() const { return heads / kv_heads; }
};

// Where one sequence's queries and keys lie; never beyond the tensors, whatever cu_seqlens holds.
struct Spans {
  int64_t first_q, length_q, first_k, length_k;

  PENSTOCK_INLINE Spans(const Problem& p, int64_t b)
      : first_q(clamp(p.cu_seqlens_q[b], p.total_q)),
        length_q(clamp(p.cu_seqlens_q[b + 1] - first_q, p.total_q - first_q)),
        first_k(clamp(p.cu_seqlens_k[b], p.total_k)),
        length_k(clamp(p.cu_seqlens_k[b + 1] - first_k, p.total_k - first_k)) {}

  static PENSTOCK_INLINE int64_t clamp(int64_t x, int64_t high) { return x < 0 ? 0 : x > high ? high : x; }
};

// The keys that one query of a sequence sees.
PENSTOCK_INLINE Range visible_keys(const Problem& p, const Spans& s, int64_t query) {
  const int64_t place = query + s.length_k - s.length_q;
  const int64_t low = p.window_left < 0 ? 0 : place - p.window_left;
  const int64_t high = p.window_right < 0 ? s.length_k : place + p.window_right + 1;
  return Range{low, high}.within(0, s.length_k);
}

// The keys that some query in [first, last] sees, or a few more: both bounds grow with the query.
PENSTOCK_INLINE Range visible_keys(const Problem& p, const Spans& s, int64_t first, int64_t last) {
  const Range keys{visible_keys(p, s, first).begin, visible_keys(p, s, last).end};
  return keys.empty() ? Range{0, 0} : keys;  // its size is never negative
}

// What one thread computes at a time. Forward: queries [first, last) of one head. Backward: all queries of the query
// heads that share kv head `head`.
struct Item {
  int64_t sequence, head, first, last;
};

// One instruction set's kernels.
struct Kernels {
  void (*forward)(const Problem&, const Item&, Scratch&);
  void (*backward)(const Problem&, const Item&, Scratch&);
};
extern const Kernels portable_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels, amx_bf16_kernels;

}  // namespace penstock::attention
