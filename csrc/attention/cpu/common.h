// What forward and backward share, in the namespace PENSTOCK_ISA (see simd.h).
#pragma once

#include "attention/cpu/problem.h"
#include "dropout.h"
#include "exp.h"
#include "pack.h"

namespace penstock::PENSTOCK_ISA {

using namespace penstock::attention;

// Rows of queries whose scores are computed together, even and a whole number of tiles, and the keys packed together.
constexpr int64_t kStrip = 12, kKeyBlock = 512;

template <class Element>
static Element* rows_of(const Tensor& tensor, int64_t token, int64_t head) {
  return static_cast<Element*>(tensor.data) + token * tensor.token_stride + head * tensor.head_stride;
}

// Dropout of one query head; drops nothing where there is none.
static inline KeepWeights keep_rule(const Problem& p, int64_t sequence, int64_t head) {
  const int64_t id = p.dropout_threshold > 0 ? p.ids[sequence] : 0;
  return KeepWeights(HeadKey(p.seed, id, uint32_t(head)), p.dropout_threshold);
}

// Which of up to kKeys keys the queries of a strip keep. They are drawn for sixteen queries at a time, and no strip
// meets more than two such groups.
template <int64_t kKeys>
class KeptKeys {
 public:
  // From here on the keys are those from `first` on, a multiple of 64.
  void start(int64_t first, int64_t count) {
    keys_ = {first, first + count};
    groups_[0] = groups_[1] = -1;
  }

  // Bit k % 64 of word k / 64 says whether `query` keeps key first + k, which it must see.
  const uint64_t* of(const Problem& p, const Spans& s, const KeepWeights& rule, int64_t query) {
    constexpr int64_t kQueries = KeepWeights::kQueries;
    const int64_t group = query / kQueries, slot = group % 2;
    if (groups_[slot] != group) {
      groups_[slot] = group;
      const int64_t first = group * kQueries;
      const Range seen = visible_keys(p, s, first, first + kQueries - 1).within(keys_.begin, keys_.end);
      const int64_t from = (seen.begin - keys_.begin) / 64 * 64;
      if (!seen.empty())
        rule.fill(first, keys_.begin + from, seen.end - keys_.begin - from, words_[slot][0] + from / 64, kRow);
    }
    return words_[slot][query % kQueries];
  }

 private:
  static constexpr int64_t kRow = (kKeys + 63) / 64;

  Range keys_{};
  int64_t groups_[2]{-1, -1};
  uint64_t words_[2][KeepWeights::kQueries][kRow]{};
};

// The sizes of one head's operands.
template <class Unit>
struct Shape {
  static constexpr int kElements = UnitTraits<Unit>::kElements;
  int64_t units;    // of a head's row
  int64_t row;      // units from row to row
  int64_t width;    // lanes of a head's row
  int64_t vectors;  // width / kLanes

  explicit Shape(int64_t head_dim)
      : units((head_dim + kElements - 1) / kElements),
        row(round_up(units, kLanes)),
        width(round_up(head_dim, kLanes)),
        vectors(width / kLanes) {}
};

// `rows` rows from copy_rows as the right operand of a product that sums over the rows: floats as they are, bfloat16
// paired in `paired`.
template <class Unit>
static const Unit* summed_over_rows(const Unit* from, const Shape<Unit>& shape, int64_t rows,
                                    [[maybe_unused]] Unit* paired) {
  if constexpr (Shape<Unit>::kElements == 1) {
    return from;
  } else {
    pair_rows(from, shape.row, rows, shape.width, paired, shape.width);
    return paired;
  }
}

template <class Element>
static float dot(const Element* a, const Element* b, int64_t count) {
  Floats sum{};
  int64_t d = 0;
  for (; d + kLanes <= count; d += kLanes) sum += load(a + d) * load(b + d);
  float result = horizontal_sum(sum);
  for (; d < count; ++d) result += to_float(a[d]) * to_float(b[d]);
  return result;
}

// Calls body(c, whole) for every vector c in [from, to); `whole` is a std::true_type where the vector lies in `inner`.
template <class Body>
PENSTOCK_INLINE void for_vectors(int64_t from, int64_t to, Range inner, Body body) {
  const int64_t last = (inner.end < to ? inner.end : to) / kLanes * kLanes;
  int64_t c = from;
  for (; c < to && c < inner.begin; c += kLanes) body(c, std::false_type{});
  for (; c < last; c += kLanes) body(c, std::true_type{});
  for (; c < to; c += kLanes) body(c, std::false_type{});
}

// The size of the near-equal parts, a multiple of `multiple`, that `count` is divided into so that none exceeds `most`.
constexpr int64_t part_size(int64_t count, int64_t most, int64_t multiple) {
  const int64_t parts = (count + most - 1) / most;
  return parts == 0 ? most : round_up((count + parts - 1) / parts, multiple);
}

// head_dim elements of x * factor.
template <class Element>
static void write_row(const float* x, float factor, int64_t head_dim, Element* to) {
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) store(to + d, load(x + d) * factor);
  if (d < head_dim) store_part(to + d, load(x + d) * factor, head_dim - d);
}

// The gradients of `count` keys and their values from key `first` on, from rows of `width` floats.
template <class Element>
static void write_key_gradients(const Problem& p, const Spans& s, int64_t head, int64_t first, int64_t count,
                                int64_t width, const float* grad_k, const float* grad_v) {
  Element* k = rows_of<Element>(p.grad_k, s.first_k + first, head);
  Element* v = rows_of<Element>(p.grad_v, s.first_k + first, head);
  for (int64_t i = 0; i < count; ++i) {
    write_row(grad_k + i * width, p.scale * p.dropout_scale, p.head_dim, k + i * p.grad_k.token_stride);
    write_row(grad_v + i * width, p.dropout_scale, p.head_dim, v + i * p.grad_v.token_stride);
  }
}

static inline void fill_zero(float* x, int64_t count) { std::memset(x, 0, size_t(count) * sizeof(float)); }

}  // namespace penstock::PENSTOCK_ISA
