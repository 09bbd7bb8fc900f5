// Pooling over the tokens of each sequence while the recurrence passes them, and its gradient.
#pragma once

#include "layer.h"
#include "panels.h"
#include "schedule.h"

namespace penstock::lstm::PENSTOCK_ISA {

using namespace penstock::PENSTOCK_ISA;

PENSTOCK_INLINE Ints load_ints(const int32_t* from, int64_t n) {
  Floats bits;
  if (__builtin_expect(n == kLanes, 1)) {
    std::memcpy(&bits, from, sizeof bits);
  } else {
    bits = load_part(reinterpret_cast<const float*>(from), n);
  }
  return (Ints)bits;
}

PENSTOCK_INLINE void store_ints(int32_t* to, Ints value, int64_t n) {
  if (__builtin_expect(n == kLanes, 1)) {
    std::memcpy(to, &value, sizeof value);
  } else {
    store_part(reinterpret_cast<float*>(to), (Floats)value, n);
  }
}

// One team's results so far. A maximum is that of torch.max: the first of equals, and a NaN above everything.
template <class T>
struct Pooled {
  Pool pool;
  int direction, directions;
  int64_t hidden_size;
  float* state;      // (rows of the team, H): the maximum or the sum
  T* out;            // (batch, directions * H)
  int32_t* maximum;  // (batch, directions * H), or null

  bool wanted() const { return pool != Pool::none; }

  void start(int64_t sequence, int64_t row) const {
    if (!wanted()) return;
    for (int64_t unit = 0; unit < hidden_size; ++unit) {
      state[row * hidden_size + unit] = pool == Pool::max ? -__builtin_inff() : 0.0f;
      if (maximum) maximum[(sequence * directions + direction) * hidden_size + unit] = 0;
    }
  }

  PENSTOCK_INLINE void add(int64_t sequence, int64_t row, int32_t token, int64_t unit, Floats h, int64_t n) const {
    float* at = state + row * hidden_size + unit;
    const Floats before = load(at, n);
    if (pool == Pool::mean) return store(at, before + h, n);
    // The reverse direction meets the first of equals last.
    const Ints higher = direction == 0 ? (h > before) | ((h != h) & (before == before)) : (h >= before) | (h != h);
    store(at, higher ? h : before, n);
    if (maximum == nullptr) return;
    int32_t* where = maximum + (sequence * directions + direction) * hidden_size + unit;
    store_ints(where, higher ? Ints{} + token : load_ints(where, n), n);
  }

  void finish(const Sequence& sequence, int64_t row) const {
    if (!wanted()) return;
    const float share = pool == Pool::mean ? 1.0f / float(sequence.length) : 1.0f;
    for (int64_t unit = 0; unit < hidden_size; unit += kLanes) {
      const int64_t n = hidden_size - unit < kLanes ? hidden_size - unit : kLanes;
      const Floats value = sequence.length == 0 ? Floats{} : load(state + row * hidden_size + unit, n) * share;
      store(out + (sequence.index * directions + direction) * hidden_size + unit, value, n);
    }
  }
};

template <class T>
struct PooledGradient {
  Pool pool;
  int direction, directions;
  int64_t hidden_size;
  const T* gradient;       // (batch, directions * H) or null
  const int32_t* maximum;  // (batch, directions * H), of `max`

  // The share of one token's h.
  PENSTOCK_INLINE Floats at(const Sequence& sequence, int32_t token, int64_t unit, int64_t n) const {
    const int64_t place = (sequence.index * directions + direction) * hidden_size + unit;
    const Floats whole = load(gradient + place, n);
    if (pool == Pool::mean) return whole * (1.0f / float(sequence.length));
    return load_ints(maximum + place, n) == token ? whole : Floats{};
  }
};

}  // namespace penstock::lstm::PENSTOCK_ISA
