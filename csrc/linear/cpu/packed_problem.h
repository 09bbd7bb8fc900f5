#pragma once

#include <cstddef>

#include "scratch.h"
#include "types.h"

namespace penstock::linear {

// Rows of the weights of linear layers side by side.
struct Part {
  const void* weight;  // (rows, in_features)
  const float* bias;   // (rows), or null
  int64_t rows;
};

// What products multiply.
enum class Kind { float32, bfloat16, int8 };

// Weights to be packed: of the type of `kind`, or, for int8, of `dtype`.
struct Weights {
  Kind kind;
  DType dtype;
  int64_t in_features, out_features;  // the latter, of all parts together
  const Part* parts;
  int64_t count;
};

// What becomes of a product before it is written: nothing; gelu; of the halves (gate, value) of a row gelu(gate) value;
// (z - mean) rstd norm_weight + norm_bias, of z = residual + it.
enum class Then { nothing, gelu, geglu, norm };

// A layer that rows go through: then(x W^T + bias). Tensors are dense.
struct PackedLayer {
  Kind kind;
  Then then;
  int64_t in_features, out_features;  // out has half as many columns with geglu
  const void* packed;
  void* out;  // null where only later layers of the call read it
  // with norm
  const void* residual;  // null if it is what layer `residual_of` of the call gives
  int64_t residual_of;
  DType residual_dtype;                  // of residual and z
  void* z;                               // may be null: it is not asked for
  const float *norm_weight, *norm_bias;  // norm_bias may be null
  float eps;

  int64_t width() const { return then == Then::geglu ? out_features / 2 : out_features; }
};

// Each layer's x is what the one before it gives.
struct PackedCall {
  DType dtype;  // of x and out; that of `kind` unless that is int8
  int64_t rows;
  const void* x;
  const PackedLayer* layers;
  int64_t count;
  int64_t block;  // rows that a layer takes at a time
};

// Rows that are best computed at a time: their sums stay in the second-level cache.
constexpr int64_t block_rows(int64_t out_features) {
  constexpr int64_t kSums = 48 * 1536, kLeast = 24, kMost = 96, kTile = 6;
  const int64_t rows = kSums / out_features / kTile * kTile;
  return rows < kLeast ? kLeast : rows > kMost ? kMost : rows;
}

// One instruction set's kernels.
struct PackedKernels {
  size_t (*bytes)(const Weights&);
  void (*pack)(const Weights&, void* memory);
  void (*run)(const PackedCall&, Range block, Scratch&);
};
extern const PackedKernels portable_packed, avx2_packed, avx512_packed, avx512_bf16_packed, amx_bf16_packed;

}  // namespace penstock::linear
