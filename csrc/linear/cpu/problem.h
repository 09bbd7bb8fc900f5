#pragma once

#include <cstdint>

#include "scratch.h"
#include "types.h"

namespace penstock::linear {

// grad_weight = grad_out^T x, (rows, columns), and grad_bias, (rows), summed over tokens in float32. Tensors are dense.
struct WeightGradient {
  int64_t tokens, rows, columns;
  const bf16 *grad_out, *x;        // (tokens, rows), (tokens, columns)
  float *grad_weight, *grad_bias;  // the latter may be null
};

// What of the result is computed at a time.
struct Block {
  int64_t row, rows, column, columns;
};

// Defined where the compiler knows Intel's matrix unit.
void compute_on_amx(const WeightGradient& p, const Block& block, Scratch& scratch);

}  // namespace penstock::linear
