// What forward and backward on the matrix unit share. Their scores have keys in rows and queries in columns: reductions
// over keys then run down the columns, and pairs of rows are what the unit multiplies.
#pragma once

#include "attention/cpu/common.h"
#include "matmul_amx.h"

namespace penstock::PENSTOCK_ISA {

// Queries whose scores are computed together, keys in one group of dropout's, and the multiple that whatever is summed
// over, keys or queries, is filled up to with zeros.
constexpr int64_t kColumns = 2 * kLanes, kGroup = 64, kSummed = 2 * kAmxPairs;

// Rows 2i and 2i + 1 of kColumns bfloat16 as one row of pairs, in the order of query_at.
PENSTOCK_INLINE void store_pairs(const __m512i (&rows)[2], Pair* to) {
  store_as(to, _mm512_unpacklo_epi16(rows[0], rows[1]));
  store_as(to + kLanes, _mm512_unpackhi_epi16(rows[0], rows[1]));
}
// The query in a column of pairs: the first halves of each eight queries come first.
static inline int64_t query_at(int64_t column) {
  const int64_t half = column % kColumns / kLanes, eight = column % kLanes / 4;
  return column / kColumns * kColumns + eight * 8 + half * 4 + column % 4;
}
PENSTOCK_INLINE __m512i to_bf16(const Floats (&halves)[2]) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)halves[1], (__m512)halves[0]);
}

// The queries that see a key: the inverse of visible_keys.
PENSTOCK_INLINE Range visible_queries(const Problem& p, const Spans& s, int64_t key) {
  if (key >= s.length_k) return {0, 0};
  const int64_t place = key - s.length_k + s.length_q;
  const int64_t low = p.window_right < 0 ? 0 : place - p.window_right;
  const int64_t high = p.window_left < 0 ? s.length_q : place + p.window_left + 1;
  return Range{low, high}.within(0, s.length_q);
}

// Calls body(key, whole) for every second key in [0, count); `whole` is a std::true_type where all of the queries
// [first, last] see it and the next, counted from `offset`.
template <class Body>
PENSTOCK_INLINE void for_pairs_of_keys(const Problem& p, const Spans& s, int64_t first, int64_t last, int64_t offset,
                                       int64_t count, Body body) {
  const int64_t low = visible_keys(p, s, last).begin - offset, high = visible_keys(p, s, first).end - offset;
  int64_t key = 0;
  for (; key < count && key < low; key += 2) body(key, std::false_type{});
  for (; key + 2 <= high && key < count; key += 2) body(key, std::true_type{});
  for (; key < count; key += 2) body(key, std::false_type{});
}

// Which of kColumns queries keep each of kGroup keys, by key, for each half of the queries.
struct Kept {
  uint16_t lanes[kGroup][2];

  // Only the first `queries` of them matter; first_query is a multiple of 16.
  void fill(const KeepWeights& rule, int64_t first_query, int64_t queries, int64_t first_key) {
    uint64_t words[kColumns]{};
    for (int64_t i = 0; i < queries; i += KeepWeights::kQueries)
      rule.fill(first_query + i, first_key, kGroup, words + i, 1);
    // Bytes first: 16 queries' for a group of eight keys lie together, even groups in one vector and odd in another.
    const __m512i two_queries =
        _mm512_broadcast_i32x4(_mm_set_epi8(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0));
    const __m512i eight_queries = _mm512_set_epi16(31, 23, 15, 7, 30, 22, 14, 6, 29, 21, 13, 5, 28, 20, 12, 4, 27, 19,
                                                   11, 3, 26, 18, 10, 2, 25, 17, 9, 1, 24, 16, 8, 0);
    __m512i bytes[4];
    for (int i = 0; i < 4; ++i)
      bytes[i] =
          _mm512_permutexvar_epi16(eight_queries, _mm512_shuffle_epi8(load_as<__m512i>(words + 8 * i), two_queries));
    for (int half = 0; half < 2; ++half) {
      __m512i even = _mm512_unpacklo_epi64(bytes[2 * half], bytes[2 * half + 1]);
      __m512i odd = _mm512_unpackhi_epi64(bytes[2 * half], bytes[2 * half + 1]);
      for (int bit = 7; bit >= 0; --bit) {
        const uint64_t even_bits = _mm512_movepi8_mask(even), odd_bits = _mm512_movepi8_mask(odd);
        for (int i = 0; i < 4; ++i) {
          lanes[16 * i + bit][half] = uint16_t(even_bits >> (16 * i));
          lanes[16 * i + 8 + bit][half] = uint16_t(odd_bits >> (16 * i));
        }
        even = _mm512_add_epi8(even, even);
        odd = _mm512_add_epi8(odd, odd);
      }
    }
  }
};

}  // namespace penstock::PENSTOCK_ISA
