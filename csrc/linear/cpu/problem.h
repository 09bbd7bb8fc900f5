#pragma once

#include <cstdint>

#include "scratch.h"

namespace penstock {

struct bf16;

namespace linear {

// grad_weight = grad_out^T x, (rows, columns), summed over tokens in float32. Tensors are dense.
struct WeightGradient {
  int64_t tokens, rows, columns;
  const bf16 *grad_out, *x;  // (tokens, rows), (tokens, columns)
  float* grad_weight;
};

// What of the result is computed at a time.
struct Block {
  int64_t row, rows, column, columns;
};

// How a result is divided into blocks: `rows` and `columns` of each but the last ones.
struct Division {
  int64_t rows, columns, count;
};

// The fastest on so many threads. What a block sums does not depend on it.
Division divide(const WeightGradient& p, int threads);

// Defined where the compiler knows Intel's matrix unit.
void compute_on_amx(const WeightGradient& p, const Block& block, Scratch& scratch);

}  // namespace linear
}  // namespace penstock
