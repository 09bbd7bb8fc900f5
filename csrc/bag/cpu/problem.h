#pragma once

#include <cstdint>

#include "types.h"

namespace penstock::bag {

// A text's features are its n-grams of 1 to `ngrams` tokens. A token alone has the table's row of its id; a longer
// n-gram has one of the `buckets` rows behind those, by its hash. kernels/bag/plain.py says the same in torch.
constexpr int kMostNgrams = 8;
constexpr uint64_t kHashFactor = 0x9E3779B97F4A7C15u, kMixFactor = 0xD6E8FEB86659FD93u;

// Ragged texts, whose offsets are clamped to the tokens that are there.
struct Texts {
  const int32_t* tokens;      // (total)
  const int32_t* cu_seqlens;  // (batch + 1)
  int64_t total, batch;
  int64_t vocabulary, buckets;  // rows of the table
  int ngrams;

  PENSTOCK_INLINE Range of(int64_t text) const {
    const Range found = Range{cu_seqlens[text], cu_seqlens[text + 1]}.within(0, total);
    return found.empty() ? Range{0, 0} : found;
  }
};

// The number of features of a text with this number of tokens.
PENSTOCK_INLINE int64_t features_of(int64_t length, int ngrams) {
  int64_t count = 0;
  for (int n = 1; n <= ngrams && n <= length; ++n) count += length - n + 1;
  return count;
}

PENSTOCK_INLINE int64_t bucket_of(uint64_t hash, int64_t buckets) {
  hash = (hash ^ hash >> 32) * kMixFactor;
  return int64_t((hash >> 32) * uint64_t(buckets) >> 32);
}

// Calls found(row) for each feature of the text at `range`, token by token and there by rising length. Returns whether
// all tokens are of the vocabulary; where one is not, it stops.
template <class Found>
PENSTOCK_INLINE bool for_features(const Texts& texts, Range range, Found found) {
  for (int64_t at = range.begin; at < range.end; ++at) {
    const int64_t token = texts.tokens[at];
    if (uint64_t(token) >= uint64_t(texts.vocabulary)) return false;
    found(token);
    uint64_t hash = uint64_t(token) + 1;
    const int64_t last = at + texts.ngrams < range.end ? at + texts.ngrams : range.end;
    for (int64_t next = at + 1; next < last; ++next) {
      hash = hash * kHashFactor + uint64_t(uint32_t(texts.tokens[next])) + 1;
      found(texts.vocabulary + bucket_of(hash, texts.buckets));
    }
  }
  return true;
}

// out[text] = the mean of the table's rows over the text's features, 0 without any.
struct MeanProblem {
  Texts texts;
  int64_t width;
  const float* table;  // (vocabulary + buckets, width)
  float* out;          // (batch, width)
};

// values[i] = the sum over all places in `texts` of the feature rows[i] of grad[text]; `first` says where the texts of
// each row begin.
struct SumProblem {
  int64_t width;
  const float* grad;      // (batch, width), each row over its text's number of features
  const uint32_t* texts;  // of the features, sorted by row and, of one row, by place
  const int64_t* first;   // (rows + 1)
  float* values;          // (rows, width)
};

// Adagrad with one sum for a row: sums[r] += mean(g^2), table[r] -= rate g / (sqrt(sums[r]) + eps), with g = values[i]
// for r = rows[i]. Rows are distinct.
struct UpdateProblem {
  int64_t width;
  float rate, eps;
  const int64_t* rows;  // (count)
  const float* values;  // (count, width)
  float *table, *sums;
};

// One instruction set's kernels, each on items [begin, end): texts or rows.
struct Kernels {
  bool (*mean)(const MeanProblem&, Range, int32_t* features);  // whether all tokens are of the vocabulary
  void (*sum)(const SumProblem&, Range);
  void (*update)(const UpdateProblem&, Range);
};
extern const Kernels portable_kernels, avx2_kernels, avx512_kernels;

}  // namespace penstock::bag
