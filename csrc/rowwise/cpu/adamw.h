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
      const Floats m = c.load(mean) * p.beta1 + g * (1.0f - p.beta1);
      const Floats v = c.load(square) * p.beta2 + g * g * (1.0f - p.beta2);
      c.store(mean, m), c.store(square, v);
      const Floats size = square_root(v) * p.correction + p.eps;
      c.store(parameter, c.load(parameter) * p.decay - p.rate * m / size);
    });
  }
}

}  // namespace penstock::PENSTOCK_ISA
