// A step of AdamW on some rows of a table, in the namespace PENSTOCK_ISA (see simd.h).
#pragma once

#include "rowwise/cpu/columns.h"

namespace penstock::PENSTOCK_ISA {

static void adamw_rows(const AdamWProblem& p, const Item& item) {
  const float scale = 1.0f / p.divisor;
  for (int64_t i = item.first; i < item.last; ++i) {
    const int64_t at = p.names[i] * p.width;
    float *parameter = p.parameter + at, *mean = p.mean + at, *square = p.square + at;
    const float* gradient = p.gradient + at;
    for_columns(p.width, [&](auto c) __attribute__((always_inline)) {
      const Floats g = c.load(gradient) * scale;
      const Floats m = c.load(mean) * p.beta1 + g * p.rest1;
      const Floats v = c.load(square) * p.beta2 + g * p.rest2 * g;
      c.store(mean, m), c.store(square, v);
      const Floats size = square_root(v) * p.correction + p.eps;
      c.store(parameter, c.load(parameter) * p.decay - p.rate * m / size);
    });
  }
}

// Several vectors at a time: each waits for its last multiplication.
static void decay_rows(const DecayProblem& p, const Item& item) {
  constexpr int kTogether = 8;
  for (int64_t i = item.first; i < item.last; ++i) {
    float* const row = p.parameter + p.names[i] * p.width;
    int64_t d = 0;
    for (; d + kTogether * kLanes <= p.width; d += kTogether * kLanes) {
      Floats x[kTogether];
      for (int v = 0; v < kTogether; ++v) x[v] = load(row + d + v * kLanes);
      for (int64_t k = 0; k < p.count; ++k)
        for (int v = 0; v < kTogether; ++v) x[v] *= p.factors[k];
      for (int v = 0; v < kTogether; ++v) store(row + d + v * kLanes, x[v]);
    }
    for (; d < p.width; d += kLanes) {
      const int64_t n = p.width - d < kLanes ? p.width - d : kLanes;
      Floats x = load(row + d, n);
      for (int64_t k = 0; k < p.count; ++k) x *= p.factors[k];
      store(row + d, x, n);
    }
  }
}

}  // namespace penstock::PENSTOCK_ISA
