// Dropout by the rows' places in their sequences, in the namespace PENSTOCK_ISA (see simd.h).
#pragma once

#include "dropout.h"
#include "rowwise/cpu/columns.h"

namespace penstock::PENSTOCK_ISA {

// Which units of each row in turn are kept.
class RowMasks {
 public:
  static constexpr int64_t words(int64_t width) { return width / 64 + 1; }

  RowMasks(const Dropout& dropout, int64_t width, int64_t first_row, uint64_t* words)
      : dropout_(dropout), width_(width), row_(first_row), words_(words), rule_(DropoutKey(0, 0, 0), 0) {
    if (dropout.threshold == 0) return;
    int64_t low = 0, high = dropout.batch;  // the last sequence that begins at or before the row
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (dropout.cu_seqlens[middle] <= first_row ? low : high) = middle;
    }
    enter(low);
  }

  // Computes the next row's mask; null without dropout.
  const uint64_t* next() {
    if (dropout_.threshold == 0) return nullptr;
    while (row_ >= dropout_.cu_seqlens[sequence_ + 1] && sequence_ + 1 < dropout_.batch) enter(sequence_ + 1);
    if (!dropout_.per_sequence) rule_.fill(uint32_t(row_ - dropout_.cu_seqlens[sequence_]), 0, width_, words_);
    ++row_;
    return words_;
  }

 private:
  void enter(int64_t sequence) {
    sequence_ = sequence;
    const int64_t id = dropout_.ids == nullptr ? sequence : dropout_.ids[sequence];
    rule_ = KeepRule(DropoutKey(dropout_.seed, id, dropout_.stream), dropout_.threshold);
    if (dropout_.per_sequence) rule_.fill(0, 0, width_, words_);
  }

  const Dropout& dropout_;
  int64_t width_, row_, sequence_ = 0;
  uint64_t* words_;
  KeepRule rule_;
};

template <class Columns>
PENSTOCK_INLINE Floats drop(const uint64_t* words, const Columns& c, float scale, Floats x) {
  return words == nullptr ? x : keep(keep_lanes(words, c.begin), x * scale);
}

template <class Element>
static void dropout_rows(const DropoutProblem& p, const Item& item, Scratch& scratch) {
  RowMasks masks(p.dropout, p.width, item.first, scratch.take<uint64_t>(RowMasks::words(p.width)));
  for (int64_t row = item.first; row < item.last; ++row) {
    const uint64_t* words = masks.next();
    const Element* x = static_cast<const Element*>(p.x) + row * p.width;
    Element* out = static_cast<Element*>(p.out) + row * p.width;
    for_columns(p.width, [&](auto c) __attribute__((always_inline)) {
      c.store(out, drop(words, c, p.dropout.scale, c.load(x)));
    });
  }
}

}  // namespace penstock::PENSTOCK_ISA
